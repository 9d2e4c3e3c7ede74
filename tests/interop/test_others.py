"""Mixtral, BERT and T5: as test_families.py for GPT-2 and Llama."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import export, interop, tensor_files, tree
from research.arguments import InputError
from tests.interop.small import OTHERS, folder, frozen, keywords, make
from tests.interop.test_families import edit, equal, refusal
from tests.models.test_families import compare

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
        decoder = family.startswith(("t5", "switch"))
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
    "bert_mlm": (
        dict(hidden_act="silu"),
        dict(position_embedding_type="relative_key"),
        dict(is_decoder=True),
        dict(add_cross_attention=True),
        dict(tie_word_embeddings=False),
        dict(architectures=["BertForMultipleChoice"]),
        dict(hidden_size="wide"),
        dict(quantization_config={"bits": 4}),
    ),
    "t5_v1.1": (
        dict(feed_forward_proj="gated-silu"),
        dict(dense_act_fn="relu"),
        dict(scale_decoder_outputs=True),
        dict(is_encoder_decoder=False),
        dict(is_decoder=True),
        dict(num_layers=None),
        dict(num_experts=8),
    ),
    "switch": (
        dict(encoder_sparse_step=1),
        dict(decoder_sparse_step=0),
        dict(encoder_sparse_step=3, decoder_sparse_step=3),
        dict(router_dtype="bfloat16"),
        dict(router_bias=True),
        dict(num_selected_experts=2),
        dict(dense_act_fn="silu"),
        dict(feed_forward_proj="gated-gelu"),
        dict(expert_capacity=0),
        dict(num_experts=0),
        dict(num_layers="two"),
    ),
}


@pytest.mark.parametrize(
    "family,change", [(family, c) for family, changes in UNSUPPORTED.items() for c in changes]
)
def test_a_config_that_our_model_does_not_compute_is_refused_by_name(family, change, tmp_path):
    text = refusal(tmp_path / "hf", family, change)
    assert next(iter(change)).removesuffix("s") in text or "wrong kind" in text


@pytest.mark.parametrize(
    "family,change,reason",
    [
        ("mixtral", dict(top_k=1), "mixtral has no top_k=1"),
        ("mixtral", dict(capacity=1.25), "mixtral has no capacity=1.25"),
        ("mixtral", dict(norm="layernorm"), "mixtral has no norm='layernorm'"),
        ("bert_mlm", dict(mlp="swiglu"), "bert has no mlp='swiglu'"),
        ("t5_v1.0", dict(experts=4), "t5 has no experts=4"),
        ("t5_v1.0", dict(mlp="gelu"), "t5 has no mlp='gelu'"),
        ("switch", dict(room=None, capacity=1.25), "switch_transformers has no capacity=1.25"),
        ("switch", dict(top_k=2), "switch_transformers has no top_k=2"),
        ("switch", dict(mlp="geglu"), "switch_transformers has no mlp='geglu'"),
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


def rewrite(path, change):
    """Writes the tensors of a folder again as `change` of their dict."""
    files = tensor_files.open_folder(path)
    values = change({name: files.read(name) for name in files.shapes})
    tensors = [(name, value.shape, lambda v=value: v) for name, value in values.items()]
    tensor_files.write(path / "model.safetensors", tensors)


def test_the_layout_of_bert_is_that_of_the_published_files(tmp_path):
    _, params = folder(tmp_path / "hf", "bert_pretrain")
    files = tensor_files.open_folder(tmp_path / "hf")
    attention = params["layers"]["attention"]
    at = "bert.encoder.layer.1"
    for name, value in {
        f"{at}.attention.self.key.weight": attention["k"][1].reshape(32, 32).T,
        f"{at}.attention.self.key.bias": attention["k_bias"][1].reshape(32),
        f"{at}.attention.output.dense.weight": attention["out"][1].reshape(32, 32).T,
        f"{at}.attention.output.LayerNorm.weight": params["layers"]["norm1"]["scale"][1],
        f"{at}.output.LayerNorm.bias": params["layers"]["norm2"]["bias"][1],
        f"{at}.output.dense.weight": params["layers"]["mlp"]["down"][1].T,
        "bert.embeddings.word_embeddings.weight": params["embed"][:97],
        "cls.predictions.bias": params["vocab_bias"][:97],
        "cls.seq_relationship.weight": params["classifier"]["kernel"].T,
    }.items():
        np.testing.assert_array_equal(files.read(name), value, err_msg=name)


def test_an_old_file_of_bert_with_more_heads_is_read(tmp_path):
    """As the first published ones: gamma and beta, the head twice, a pooler, the next sentence."""
    _, params = folder(tmp_path / "hf", "bert_pretrain")
    edit(tmp_path / "hf", architectures=["BertForMaskedLM"])

    def age(values):
        names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        old = {}
        for name, value in values.items():
            for today, before in names.items():
                name = name.replace(today, before)
            old[name] = value
        embed, bias = old["bert.embeddings.word_embeddings.weight"], old["cls.predictions.bias"]
        copies = {"cls.predictions.decoder.weight": embed, "cls.predictions.decoder.bias": bias}
        return old | copies | {"bert.embeddings.position_ids": np.arange(32.0)}

    rewrite(tmp_path / "hf", age)
    weights = interop.load(str(tmp_path / "hf"))
    assert weights.model["head"] == "mlm"
    assert weights.unused == ["cls.seq_relationship.bias", "cls.seq_relationship.weight"]
    # The pooler is no part of this head, and there for one that wants it.
    equal(weights, {name: leaf for name, leaf in params.items() if name != "classifier"})
    rewrite(tmp_path / "hf", lambda values: values | {"bert.adapter": np.ones(3)})
    with pytest.raises(InputError, match=r"bert.adapter is not part of this BERT"):
        interop.load(str(tmp_path / "hf"))


def test_a_bert_without_a_head_is_read(tmp_path):
    _, params = folder(tmp_path / "hf", "bert_classify")
    edit(tmp_path / "hf", architectures=["BertModel"])

    def bare(values):
        return {name[5:]: value for name, value in values.items() if name.startswith("bert.")}

    rewrite(tmp_path / "hf", bare)
    weights = interop.load(str(tmp_path / "hf"))
    assert weights.model["head"] is None and weights.unused == []
    equal(weights, {name: leaf for name, leaf in params.items() if name != "classifier"})


def test_the_number_of_labels_is_that_of_their_names(tmp_path):
    folder(tmp_path / "hf", "bert_tag")
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["architectures"] == ["BertForTokenClassification"]
    assert list(written["id2label"]) == list("01234") and "num_labels" not in written
    assert interop.load(str(tmp_path / "hf")).model["labels"] == 5
    edit(tmp_path / "hf", id2label=None, label2id=None, num_labels=5)
    assert interop.load(str(tmp_path / "hf")).model["labels"] == 5
    edit(tmp_path / "hf", num_labels=3)
    with pytest.raises(InputError, match=r"classifier.weight has shape \(5, 32\)"):
        interop.load(str(tmp_path / "hf"))


def test_the_layout_of_t5_is_that_of_the_published_files(tmp_path):
    model, params = folder(tmp_path / "hf", "t5_v1.1", head_dim=16, decoder_layers=1)
    files = tensor_files.open_folder(tmp_path / "hf")
    layers = params["encoder"]["layers"]
    at = "encoder.block.1.layer"
    for name, value in {
        f"{at}.0.SelfAttention.q.weight": layers["attention"]["q"][1].reshape(32, 64).T,
        f"{at}.0.SelfAttention.o.weight": layers["attention"]["out"][1].reshape(64, 32).T,
        f"{at}.1.DenseReluDense.wi_0.weight": layers["mlp"]["gate"][1].T,
        f"{at}.1.layer_norm.weight": layers["norm3"]["scale"][1],
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": params["encoder"][
            "distances"
        ],
        "decoder.block.0.layer.1.layer_norm.weight": params["decoder"]["layers"]["norm2"]["scale"][
            0
        ],
        "lm_head.weight": params["head"][:, :97].T,
    }.items():
        np.testing.assert_array_equal(files.read(name), value, err_msg=name)
    equal(interop.load(str(tmp_path / "hf")), params)
    assert interop.load(str(tmp_path / "hf")).model["decoder_layers"] == 1


def test_the_layout_of_switch_is_that_of_the_published_files(tmp_path):
    _, params = folder(tmp_path / "hf", "switch", num_layers=4, decoder_layers=2)
    files = tensor_files.open_folder(tmp_path / "hf")
    dense, sparse = (params["encoder"]["layers"][f"turn{i}of2"] for i in (0, 1))
    at = "encoder.block"
    for name, value in {
        f"{at}.2.layer.1.mlp.wi.weight": dense["mlp"]["up"][1].T,
        f"{at}.3.layer.1.mlp.router.classifier.weight": sparse["moe"]["router"][1].T,
        f"{at}.3.layer.1.mlp.experts.expert_2.wo.weight": sparse["moe"]["experts"]["down"][1, 2].T,
        f"{at}.3.layer.0.SelfAttention.k.weight": sparse["attention"]["k"][1].reshape(32, 32).T,
        f"{at}.2.layer.1.layer_norm.weight": dense["norm3"]["scale"][1],
    }.items():
        np.testing.assert_array_equal(files.read(name), value, err_msg=name)
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    steps = {key: value for key, value in written.items() if "sparse" in key}
    assert steps == dict(
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=1,
        encoder_sparse_step=2,
        decoder_sparse_step=2,
    )
    # The steps follow from the numbers where a file does not say them.
    edit(tmp_path / "hf", encoder_sparse_step=None, decoder_sparse_step=None)
    equal(interop.load(str(tmp_path / "hf")), params)
    edit(tmp_path / "hf", num_sparse_decoder_layers=2)
    with pytest.raises(InputError, match="encoder_sparse_step=2, decoder_sparse_step=1 is not"):
        interop.load(str(tmp_path / "hf"))


def test_a_file_of_t5_with_its_embedding_thrice_is_read(tmp_path):
    _, params = folder(tmp_path / "hf", "t5_v1.0")
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    rewrite(tmp_path / "hf", lambda values: values | dict.fromkeys(names, values["shared.weight"]))
    equal(interop.load(str(tmp_path / "hf")), params)
    rewrite(tmp_path / "hf", lambda values: values | {names[2]: values[names[2]] + 1})
    with pytest.raises(InputError, match=r"lm_head.weight differs from shared.weight"):
        interop.load(str(tmp_path / "hf"))


@pytest.mark.parametrize(
    "change",
    [
        dict(tie_word_embeddings=True, scale_decoder_outputs=False),  # as transformers 5 writes it
        dict(tie_word_embeddings=False, scale_decoder_outputs=False),
        dict(dense_act_fn="gelu_new", is_gated_act=True, num_decoder_layers=None),
    ],
)
def test_newer_spellings_of_a_config_of_t5_mean_the_same(change, tmp_path):
    _, params = folder(tmp_path / "hf", "t5_v1.1")
    edit(tmp_path / "hf", **change)
    weights = interop.load(str(tmp_path / "hf"))
    equal(weights, params)
    assert weights.model["mlp"] == "geglu" and not weights.model["tie_embeddings"]
