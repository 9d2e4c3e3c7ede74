"""ResNet and ViT: as test_families.py, with running moments, and with what pixels are."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from research import export, init_from, interop, tensor_files, tree
from research.arguments import InputError
from tests.interop.small import IMAGES, folder, frozen, keywords, make
from tests.interop.test_families import edit, equal, refusal
from tests.models.test_image_parity import near

EVERY = pytest.mark.parametrize("family", IMAGES)
ONES = pytest.mark.parametrize("family", ["resnet_bottleneck", "vit"])


@EVERY
def test_what_is_exported_comes_back_to_the_bit(family, tmp_path):
    # As a config may have it: the sizes that the data decides are not None any more.
    model, params = folder(tmp_path / "one", family)
    weights = interop.load(str(tmp_path / "one"))
    equal(weights, params)
    assert weights.unused == []
    free = ("mean", "std")
    odd = {k: v for k, v in weights.model.items() if model[k] not in (v, None) and k not in free}
    assert odd == {}
    nested = tree.nest({name: weights.read(name) for name in weights.shapes})
    export.write_folder(tmp_path / "two", model | weights.model, nested)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("family", ["vit", pytest.param("resnet_basic", marks=pytest.mark.slow)])
def test_the_logits_of_a_loaded_folder_equal_those_of_transformers(family, tmp_path):
    params, batch, theirs = frozen(family)
    export.write_folder(tmp_path / "hf", keywords(family), params)
    weights = interop.load(str(tmp_path / "hf"))
    model = make(weights.model)  # of what the folder says, and nothing else
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def value(path, leaf):
        name = path.partition("/")[2]
        rows = [weights.read(one) for one in tree.unrolled_paths(name, leaf)]
        return jnp.asarray(rows).reshape(leaf.shape)

    logits, _ = jax.jit(model.apply)(tree.map_named(value, shapes), batch["image"])
    near(logits, theirs["outputs/0"], 1e-5)


def test_the_layout_is_that_of_the_published_files(tmp_path):
    _, params = folder(tmp_path / "resnet", "resnet_bottleneck")
    files = tensor_files.open_folder(tmp_path / "resnet")
    at, ours = "resnet.encoder.stages.1.layers.0", params["stages"]["1"]["0"]
    for name, value in {
        f"{at}.layer.1.convolution.weight": ours["conv2"]["kernel"].transpose(3, 2, 0, 1),
        f"{at}.layer.1.normalization.running_var": ours["conv2"]["norm"]["variance"],
        f"{at}.shortcut.normalization.weight": ours["projection"]["norm"]["scale"],
        "resnet.embedder.embedder.normalization.running_mean": params["stem"]["norm"]["mean"],
        "classifier.1.weight": params["classifier"].T,
    }.items():
        np.testing.assert_array_equal(files.read(name), value, err_msg=name)
    assert files.shapes["resnet.embedder.embedder.normalization.num_batches_tracked"] == ()
    _, params = folder(tmp_path / "vit", "vit")
    files = tensor_files.open_folder(tmp_path / "vit")
    kernel = files.read("vit.embeddings.patch_embeddings.projection.weight")
    np.testing.assert_array_equal(kernel, params["patches"].transpose(3, 2, 0, 1))
    query = files.read("vit.encoder.layer.1.attention.attention.query.weight")
    np.testing.assert_array_equal(query, params["layers"]["attention"]["q"][1].reshape(32, 32).T)


def test_a_config_of_a_depth_is_exported_as_what_the_depth_means(tmp_path):
    from research.models import resnet

    model = {"name": "resnet", "depth": 18, "labels": 5, "channels": 3}
    made = jax.eval_shape(resnet.make(18, 5, 3).init, jax.random.key(0))
    shapes = export.with_moments(made["params"], made["model_state"])
    given = dict.fromkeys(("block", "blocks", "widths", "stem", "stem_width", "shortcut"))
    given |= dict(norm="batch", norm_epsilon=1e-5)
    config, _ = interop.describe(model | given, export.shapes_of(shapes))
    expected = dict(depths=(2, 2, 2, 2), hidden_sizes=(64, 128, 256, 512), layer_type="basic")
    assert {key: config[key] for key in expected} == expected and len(config["id2label"]) == 5


def test_a_config_that_leaves_a_width_to_the_model_is_exported(tmp_path):
    model = keywords("vit", mlp_width=None, labels=None)
    shapes = jax.eval_shape(make(model | dict(labels=7)).init, jax.random.key(0))["params"]
    config, _ = interop.describe(model, export.shapes_of(shapes))
    assert config["intermediate_size"] == 4 * 32 and len(config["id2label"]) == 7


@ONES
def test_what_pixels_are_travels(family, tmp_path):
    given = dict(mean=(0.5, 0.25, 0.125), std=(0.5, 0.5, 0.25))
    folder(tmp_path / "hf", family, **given)
    weights = interop.load(str(tmp_path / "hf"))
    assert {name: weights.model[name] for name in given} == given
    path = tmp_path / "hf" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rescale_factor": 1.0}))
    with pytest.raises(InputError, match="rescale_factor=1.0 is not 1 / 255"):
        interop.load(str(tmp_path / "hf"))
    path.unlink()
    assert "mean" not in interop.load(str(tmp_path / "hf")).model


def test_what_pixels_are_is_compared_as_the_models_take_it_and_said_where_nobody_says_it():
    model = keywords("vit")
    config = SimpleNamespace(model=ml_collections.FrozenConfigDict(model))
    run = SimpleNamespace(config=config, model=make(model), source=None)

    def notes(**there):
        origin = SimpleNamespace(name="RUN", model=there, shapes={}, tokenizer=None)
        return init_from.compare(run, {}, {}, origin)

    assert notes(**model) == []  # a run that left mean and std to the model, too
    (note,) = notes(**model | dict(mean=(0.5, 0.5, 0.5)))
    assert note.startswith("config.model.mean=(0.485, 0.456, 0.406), but RUN was trained with")
    (note,) = notes(**{key: value for key, value in model.items() if key not in ("mean", "std")})
    assert "RUN does not say how its pixels are scaled" in note


def test_an_exported_folder_names_the_classes_and_sees_the_part_that_evaluation_sees(tmp_path):
    model, params = keywords("vit"), frozen("vit")[0]
    classes = [f"kind {number}" for number in range(model["labels"])]
    data = dict(eval_pipeline=("center_crop",), center_crop=dict(share=0.75))
    export.write_folder(tmp_path / "hf", model, params, data=data, classes=classes)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert list(config["id2label"].values()) == list(config["label2id"]) == classes
    said = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert (said["size"], said["do_center_crop"]) == (dict(shortest_edge=32), True)
    assert said["crop_size"] == dict(height=24, width=24)
    assert interop.load(str(tmp_path / "hf")).model["labels"] == len(classes)


UNSUPPORTED = {
    "resnet_bottleneck": (
        dict(downsample_in_bottleneck=True),
        dict(downsample_in_first_stage=True),
        dict(hidden_act="gelu"),
        dict(layer_type="dense"),
        dict(depths=[1, "two"]),
        dict(depths=3),
        dict(hidden_sizes=[]),
        dict(num_groups=32),
    ),
    "vit": (
        dict(qkv_bias=False),
        dict(hidden_act="swish"),
        dict(patch_size=0),
        dict(patch_size=7),
        dict(image_size=[24, 24]),
        dict(architectures=["ViTForMaskedImageModeling"]),
        dict(use_mask_token=True),
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
        ("resnet_basic", dict(stem="small"), "resnet has no stem='small'"),
        ("resnet_basic", dict(norm="group", groups=4), "resnet has no norm='group'"),
        ("vit", dict(pool="mean"), "vit has no pool='mean'"),
    ],
)
def test_a_model_of_no_family_is_not_exported(family, change, reason, tmp_path):
    model = keywords(family, **change)
    shapes = jax.eval_shape(make(model).init, jax.random.key(0))
    params = export.with_moments(shapes["params"], shapes["model_state"])
    with pytest.raises(InputError, match=reason):
        export.write_folder(tmp_path / "out", model, params)


def test_a_model_without_classes_and_the_newest_names_are_read(tmp_path):
    _, params = folder(tmp_path / "hf", "vit")
    edit(tmp_path / "hf", architectures=["ViTModel"])
    files = tensor_files.open_folder(tmp_path / "hf")
    new = {
        name.removeprefix("vit.")
        .replace("encoder.layer.", "layers.")
        .replace("attention.attention.query", "attention.q_proj")
        .replace("attention.output.dense", "attention.o_proj")
        .replace("intermediate.dense", "mlp.fc1"): files.read(name)
        for name in files.shapes
        if not name.startswith("classifier")
    }
    new["pooler.dense.weight"] = np.zeros((32, 32), np.float32)
    tensors = [(name, value.shape, lambda v=value: v) for name, value in new.items()]
    tensor_files.write(tmp_path / "hf" / "model.safetensors", tensors)
    weights = interop.load(str(tmp_path / "hf"))
    without = {name: leaf for name, leaf in params.items() if not name.startswith("classifier")}
    equal(weights, without)
    assert weights.unused == ["pooler.dense.weight"]


def test_files_without_the_count_of_steps_are_read(tmp_path):
    _, params = folder(tmp_path / "hf", "resnet_basic")
    files = tensor_files.open_folder(tmp_path / "hf")
    kept = [name for name in files.shapes if not name.endswith("tracked")]
    tensors = [(name, files.shapes[name], lambda n=name: files.read(n)) for name in kept]
    tensor_files.write(tmp_path / "again.safetensors", tensors)
    (tmp_path / "again.safetensors").replace(tmp_path / "hf" / "model.safetensors")
    equal(interop.load(str(tmp_path / "hf")), params)
