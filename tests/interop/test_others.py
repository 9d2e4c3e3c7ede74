"""Mixtral, BERT and T5: as test_families.py for GPT-2 and Llama."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import export, interop, tensor_files, tree
from research.arguments import InputError
from tests.interop.small import OTHERS, folder, frozen, keywords, make
from tests.interop.test_families import edit, equal
from tests.models.test_families import compare

OTHERS = [name for name in OTHERS if name == "mixtral"]
EVERY = pytest.mark.parametrize("family", OTHERS)


@pytest.mark.core
@EVERY
@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
def test_what_is_exported_comes_back_to_the_bit(family, scan, tmp_path):
    model, params = folder(tmp_path / "one", family, scan=scan)
    weights = interop.load(str(tmp_path / "one"))
    equal(weights, params)
    assert weights.unused == []
    assert {k: v for k, v in weights.model.items() if model[k] not in (v, None)} == {}
    nested = tree.nest({name: weights.read(name) for name in weights.shapes})
    export.write_folder(tmp_path / "two", model | weights.model | {"scan": False}, nested)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.core
@EVERY
def test_the_outputs_of_a_loaded_folder_equal_those_of_transformers(family, tmp_path):
    params, batch, theirs = frozen(family)
    export.write_folder(tmp_path / "hf", keywords(family), params)
    weights = interop.load(str(tmp_path / "hf"))
    model = make(weights.model)  # of what config.json says, and nothing else
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    places = {
        path: [weights.read(name) for name in tree.unrolled_paths(path, leaf)]
        for path, leaf in tree.flatten(shapes["params"]).items()
    }
    loaded = tree.map_named(
        lambda path, leaf: jnp.asarray(places[path]).reshape(leaf.shape), shapes["params"]
    )
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["model_state"])
    inputs = {
        "bert": lambda: (batch["tokens"], batch["segments"], None, batch["types"]),
        "t5": lambda: (batch["tokens"], batch["targets"], batch["segments"]),
        "gpt": lambda: (batch["tokens"], batch["segments"]),
    }[weights.model["name"]]()
    found, _ = model.apply({"params": loaded, "model_state": state}, *inputs)
    for i, ours in enumerate(found if isinstance(found, tuple) else (found,)):
        decoder = family.startswith("t5")
        compare(ours[..., :97], theirs[f"outputs/{i}"], batch["segments"], 1e-5, decoder)


def test_the_layout_of_mixtral_is_that_of_the_published_files(tmp_path):
    _, params = folder(tmp_path / "hf", "mixtral")
    files = tensor_files.open_folder(tmp_path / "hf")
    moe = params["layers"]["moe"]
    at = "model.layers.1.block_sparse_moe"
    np.testing.assert_array_equal(files.read(f"{at}.gate.weight"), moe["router"][1].T)
    for theirs, ours in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
        value = files.read(f"{at}.experts.2.{theirs}.weight")
        np.testing.assert_array_equal(value, moe["experts"][ours][1, 2].T)
    assert len([name for name in files.shapes if ".experts." in name]) == 2 * 4 * 3


UNSUPPORTED = {
    "mixtral": (
        dict(sliding_window=4096),
        dict(num_experts_per_tok=1),
        dict(num_local_experts=0),
        dict(num_local_experts=None),
        dict(hidden_act="gelu"),
        dict(rope_scaling={"type": "linear", "factor": 2.0}),
        dict(shared_experts=1),
    ),
}


@pytest.mark.parametrize(
    "family,change", [(family, c) for family, changes in UNSUPPORTED.items() for c in changes]
)
def test_a_config_that_our_model_does_not_compute_is_refused_by_name(family, change, tmp_path):
    folder(tmp_path / "hf", family)
    edit(tmp_path / "hf", **change)
    with pytest.raises(InputError) as error:
        interop.load(str(tmp_path / "hf"))
    text = str(error.value)
    assert next(iter(change)) in text and "config.json" in text and "\n" not in text


@pytest.mark.parametrize(
    "family,change,reason",
    [
        ("mixtral", dict(top_k=1), "mixtral has no top_k=1"),
        ("mixtral", dict(capacity=1.25), "mixtral has no capacity=1.25"),
        ("mixtral", dict(norm="layernorm"), "mixtral has no norm='layernorm'"),
    ],
)
def test_a_model_of_no_family_is_not_exported(family, change, reason, tmp_path):
    model = keywords(family, **change)
    params = jax.eval_shape(make(model).init, jax.random.key(0))["params"]
    with pytest.raises(InputError, match=reason):
        export.write_folder(tmp_path / "out", model, params)
    assert not list(tmp_path.iterdir())


def test_mixtral_without_experts_is_llama(tmp_path):
    folder(tmp_path / "hf", "mixtral", experts=None)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "llama"
    assert interop.load(str(tmp_path / "hf")).model["experts"] is None


def test_a_config_without_the_sizes_means_those_of_the_first_mixtral():
    model = interop.to_model(interop.families()["mixtral"], {}, "config.json")
    assert (model["num_kv_heads"], model["rope_theta"], model["experts"]) == (8, 1e6, 8)
