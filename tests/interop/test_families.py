"""What goes out comes back to the bit, computes what transformers computes, and what is not ours
is refused by name."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from research import export, interop, tensor_files, tree
from research.arguments import InputError
from research.models import gpt
from tests.interop.small import FAMILIES, folder, frozen, keywords, make

BOTH = pytest.mark.parametrize("family", FAMILIES)


def edit(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def refusal(path, family, change):
    """The one line that is said of a folder of `family` whose config.json has a `change`."""
    folder(path, family)
    edit(path, **change)
    with pytest.raises(InputError) as error:
        interop.load(str(path))
    assert "config.json" in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def equal(weights, params):
    ours, shapes = export.reader(params), export.shapes_of(params)
    assert weights.shapes == shapes
    for name in shapes:
        value = weights.read(name)
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, ours(name), err_msg=name)


@pytest.mark.core
@BOTH
@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_what_is_exported_comes_back_to_the_bit(family, scan, tie, tmp_path):
    model, params = folder(tmp_path / "one", family, scan=scan, tie_embeddings=tie)
    weights = interop.load(str(tmp_path / "one"))
    equal(weights, params)
    assert {k: v for k, v in weights.model.items() if model[k] not in (v, None)} == {}
    # And out again: the same file, byte for byte.
    nested = tree.nest({name: weights.read(name) for name in weights.shapes})
    export.write_folder(tmp_path / "two", model | weights.model | {"scan": False}, nested)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@BOTH
def test_bfloat16_goes_through_unchanged_and_float32_is_rounded_to_nearest(family, tmp_path):
    model, params = folder(tmp_path / "wide", family)
    export.write_folder(tmp_path / "a", model, params, "bf16")
    weights = interop.load(str(tmp_path / "a"))
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params)
    equal(weights, rounded)
    nested = tree.nest({name: weights.read(name) for name in weights.shapes})
    export.write_folder(tmp_path / "b", model, nested, "bf16")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (
        tmp_path / "b" / "model.safetensors"
    ).read_bytes()
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.core
@BOTH
def test_the_logits_of_a_loaded_folder_equal_those_of_transformers(family, tmp_path):
    params, batch, theirs = frozen(family)
    export.write_folder(tmp_path / "hf", keywords(family), params)
    weights = interop.load(str(tmp_path / "hf"))
    model = {key: value for key, value in weights.model.items() if key != "name"}
    loaded = tree.nest({name: jnp.asarray(weights.read(name)) for name in weights.shapes})
    loaded["layers"] = [loaded["layers"][str(i)] for i in range(2)]
    ours = gpt.make(**model, scan=False)
    shapes = jax.eval_shape(ours.init, jax.random.key(0))["params"]
    loaded = jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(loaded))
    inputs = batch["tokens"], batch["segments"], batch["positions"]
    logits = np.asarray(ours.apply({"params": loaded, "model_state": {}}, *inputs)[0][..., :97])
    real = batch["segments"] > 0
    expected = theirs["logits"][real]
    np.testing.assert_allclose(logits[real], expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_the_layout_is_that_of_the_published_files(tmp_path):
    """By hand, apart from the tables: a mistake that both ways share would not be seen above."""
    model, params = folder(tmp_path / "gpt2", "gpt2")
    files = tensor_files.open_folder(tmp_path / "gpt2")
    assert files.shapes["transformer.wte.weight"] == (97, 32)
    layer = {k: v[1] for k, v in params["layers"]["attention"].items()}
    fused = np.concatenate([layer[x].reshape(32, 32) for x in "qkv"], 1)
    np.testing.assert_array_equal(files.read("transformer.h.1.attn.c_attn.weight"), fused)
    fused = np.concatenate([layer[f"{x}_bias"].reshape(32) for x in "qkv"])
    np.testing.assert_array_equal(files.read("transformer.h.1.attn.c_attn.bias"), fused)
    model, params = folder(tmp_path / "llama", "llama")
    files = tensor_files.open_folder(tmp_path / "llama")
    layer = {k: v[1] for k, v in params["layers"]["attention"].items()}
    name = "model.layers.1.self_attn.{}_proj.weight"
    np.testing.assert_array_equal(files.read(name.format("k")), layer["k"].reshape(32, 16).T)
    np.testing.assert_array_equal(files.read(name.format("o")), layer["out"].reshape(32, 32).T)
    np.testing.assert_array_equal(files.read("lm_head.weight"), params["head"][:, :97].T)


@BOTH
def test_a_file_of_the_bare_model_and_one_with_the_head_twice_are_read(family, tmp_path):
    model, params = folder(tmp_path / "hf", family, tie_embeddings=True)
    files = tensor_files.open_folder(tmp_path / "hf")
    prefix = {"gpt2": "transformer.", "llama": "model."}[family]
    values = {name.removeprefix(prefix): files.read(name) for name in files.shapes}
    embed = values["wte.weight" if family == "gpt2" else "embed_tokens.weight"]
    mask = "h.0.attn.bias" if family == "gpt2" else "layers.0.self_attn.rotary_emb.inv_freq"

    def rewrite(values):
        tensors = [(name, value.shape, lambda v=value: v) for name, value in values.items()]
        tensor_files.write(tmp_path / "hf" / "model.safetensors", tensors)

    rewrite(values | {"lm_head.weight": embed, mask: np.ones((4, 4))})
    equal(interop.load(str(tmp_path / "hf")), params)
    rewrite(values | {"lm_head.weight": embed + 1})
    with pytest.raises(InputError, match=r"lm_head.weight differs from .*tied"):
        interop.load(str(tmp_path / "hf"))


UNSUPPORTED = {
    "gpt2": (
        dict(activation_function="relu"),
        dict(scale_attn_by_inverse_layer_idx=True),
        dict(scale_attn_weights=False),
        dict(add_cross_attention=True),
        dict(n_layer="two"),
        dict(n_head=5),
        dict(n_head=0),
        dict(quantization_config={"bits": 4}),
    ),
    "llama": (
        dict(rope_scaling={"type": "linear", "factor": 2.0}),
        dict(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}),
        dict(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
        dict(hidden_act="gelu"),
        dict(attention_bias=True),
        dict(mlp_bias=True),
        dict(head_dim=16),
        dict(sliding_window=128),
        dict(num_attention_heads=0),
        dict(num_attention_heads="four"),
        dict(hidden_size=None),
    ),
}


@pytest.mark.parametrize(
    "family,change", [(family, c) for family, changes in UNSUPPORTED.items() for c in changes]
)
def test_a_config_that_our_model_does_not_compute_is_refused_by_name(family, change, tmp_path):
    text = refusal(tmp_path / "hf", family, change)
    key = next(iter(change)).replace("rope_parameters", "rope_scaling")
    assert key in text or "kind" in text or ("heads" in text and "head" in key)


@pytest.mark.parametrize(
    "change,model",
    [
        (dict(rope_parameters=None, rope_theta=5e5), dict(rope_theta=5e5)),
        (dict(rope_parameters={"rope_theta": 7e5, "rope_type": "default"}), dict(rope_theta=7e5)),
        (dict(rope_parameters=None, rope_scaling={"type": "default"}), dict(rope_theta=1e4)),
        (dict(head_dim=8), {}),
        (dict(rms_norm_eps=1e-5), dict(norm_epsilon=1e-5)),
        (dict(sliding_window=None, use_sliding_window=False), {}),
    ],
)
def test_older_and_newer_spellings_of_a_config_mean_the_same(change, model, tmp_path):
    folder(tmp_path / "hf", "llama")
    edit(tmp_path / "hf", **change)
    weights = interop.load(str(tmp_path / "hf"))
    assert {key: weights.model[key] for key in model} == model


def test_another_family_is_named_and_so_is_a_folder_that_is_not_there(tmp_path):
    folder(tmp_path / "hf", "llama")
    edit(tmp_path / "hf", model_type="mamba")
    with pytest.raises(InputError, match=r"'mamba' is not supported; known: .*gpt2, .*llama"):
        interop.load(str(tmp_path / "hf"))
    with pytest.raises(InputError, match="is no folder here"):
        interop.load("openai-community/gpt2")


@pytest.mark.parametrize(
    "change,reason",
    [
        (dict(norm="rmsnorm"), "gpt2 has no norm='rmsnorm'"),
        (dict(num_kv_heads=2), "attention"),
        (dict(window=8), "window=8"),
        (dict(base_width=16), "base_width=16"),
        (dict(bias=False), "bias=False"),
    ],
)
def test_a_model_of_no_family_is_not_exported(change, reason, tmp_path):
    model = keywords("gpt2", **change)
    params = jax.eval_shape(make(model).init, jax.random.key(0))["params"]
    with pytest.raises(InputError, match=reason):
        export.write_folder(tmp_path / "out", model, params)
    assert not list(tmp_path.iterdir())
