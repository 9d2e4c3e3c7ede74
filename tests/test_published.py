"""Every variant of every config, built of shapes alone: its parameters are as many as published,
its mesh divides them, and its `:tiny` needs no file."""

import importlib
import typing
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from research import build, sharding, tree
from research import config as config_lib
from research.models.layers import padded_size

ROOT = Path(__file__).resolve().parent.parent


def variants():
    """Every FILE:variant of configs/."""
    for path in sorted((ROOT / "configs").glob("*/*.py")):
        module = importlib.import_module(f"configs.{path.parent.name}.{path.stem}")
        kind = typing.get_type_hints(module.get_config)["variant"]
        for variant in typing.get_args(kind):
            yield f"{path.relative_to(ROOT / 'configs')}:{variant}"


# By hand, or as transformers' num_parameters() has them.
GPT = {"gpt2.py": (50_257, 1_024), "gpt3_175b.py": (50_257, 2_048)}
ROUNDED = {"125m": 125e6, "350m": 350e6, "760m": 760e6, "1.3b": 1.3e9, "2.7b": 2.7e9}
ROUNDED |= {"6.7b": 6.7e9, "13b": 13e9, "175b": 175e9}
PUBLISHED = {
    "nlp/gpt2.py:small": 124_439_808,
    "nlp/gpt2.py:medium": 354_823_168,
    "nlp/gpt2.py:large": 774_030_080,
    "nlp/gpt2.py:xl": 1_557_611_200,
    "nlp/llama_8b.py:full": 8_030_261_248,
    "nlp/mixtral_8x7b.py:full": 46_702_792_704,
    "nlp/bert.py:base": 109_514_298,  # BertForMaskedLM: no pooler, and a head
    "nlp/bert.py:large": 335_174_458,
    "nlp/sentiment.py:bert_base": 109_483_778,  # BertForSequenceClassification
    "nlp/sentiment.py:bert_large": 335_143_938,
    "nlp/questions.py:bert_base": 108_893_186,  # BertForQuestionAnswering: no pooler
    "nlp/questions.py:bert_large": 334_094_338,
    "nlp/t5.py:small": 76_961_152,
    "nlp/t5.py:base": 247_577_856,
    "nlp/t5.py:large": 783_150_080,
    "nlp/t5.py:xl": 2_849_757_184,
    "nlp/t5.py:xxl": 11_135_332_352,
    # t5-base has 222,903,552; in every second layer 127 more experts and a router.
    "nlp/t5.py:switch_base": 222_903_552 + 12 * (127 * 2 * 768 * 3_072 + 768 * 128),
    "vision/resnet50_imagenet.py:resnet50": 25_557_032,
    "vision/resnet50_imagenet.py:resnet101": 44_549_160,
    "vision/resnet50_imagenet.py:resnet152": 60_192_808,
    # timm's, less the token for a class and its position, as the mean of the patches is taken.
    "vision/vit_imagenet.py:ti16": 5_717_416 - 2 * 192,
    "vision/vit_imagenet.py:s16": 22_050_664 - 2 * 384,
    "vision/vit_imagenet.py:b16": 86_567_656 - 2 * 768,
    "vision/vit_imagenet.py:l16": 304_326_632 - 2 * 1_024,
}
CLASSES = {"imagenet": 1_000, "coco": 80, "voc": 20}


def load(spec):
    """The config with one device and the sizes that data would have decided."""
    config = config_lib.load(f"configs/{spec}").to_dict()
    given = dict(vocab_size=300, context=64, predictions=8, num_types=2, items=300)
    given |= dict(channels=config["data"].get("channels", 3), size=224)
    given["labels"] = next((n for name, n in CLASSES.items() if name in spec), 2)
    for section in ("model", "task"):
        values = config[section]
        config[section] = {k: given.get(k) if v is None else v for k, v in values.items()}
    for axis in ("fsdp", "tensor", "expert"):
        config["mesh"][axis] = 1
    return config_lib.resolve(config)


def shapes(spec):
    run = build.build(load(spec), jax.devices()[:1], with_data=False)
    return run, tree.flatten(run.abstract.params)


def count(run, params):
    """The parameters without the rows that pad the vocabulary."""
    vocabulary = run.config.model.get("vocab_size")
    if vocabulary is None:
        return sum(leaf.size for leaf in params.values())
    total = 0
    for path, leaf in params.items():
        sizes = [vocabulary if size == padded_size(vocabulary) else size for size in leaf.shape]
        of_tokens = path in ("embed", "head", "vocab_bias")
        total += int(np.prod(sizes if of_tokens else leaf.shape, dtype=object))
    return total


@pytest.mark.parametrize("spec", variants())
def test_a_variant_is_built_of_shapes_alone_and_has_the_published_number_of_parameters(spec):
    run, params = shapes(spec)
    assert params
    if spec in PUBLISHED:
        assert count(run, params) == PUBLISHED[spec]
    file, variant = spec.removeprefix("nlp/").split(":")
    if file in GPT and variant != "tiny":
        (vocabulary, context), model = GPT[file], run.config.model
        layers, d = model.num_layers, model.width
        formula = layers * (12 * d * d + 13 * d) + (vocabulary + context + 2) * d
        assert count(run, params) == formula
        assert abs(formula - ROUNDED.get(variant, formula)) < 0.02 * formula


def test_every_published_size_is_a_variant():
    assert PUBLISHED.keys() <= set(variants())
    assert {f"nlp/gpt3_175b.py:{size}" for size in ROUNDED} <= set(variants())


def meshes():
    """The variants that are split over more than the data axis."""
    for spec in variants():
        mesh = config_lib.load(f"configs/{spec}").mesh
        if mesh.fsdp * mesh.tensor * mesh.expert > 1:
            yield spec


@pytest.mark.parametrize("spec", meshes())
def test_the_mesh_of_a_config_divides_its_parameters_and_its_batch(spec):
    """On paper: a mesh without devices. Half of 80 GB is left to what a step holds beside."""
    run, _ = shapes(spec)
    config = config_lib.load(f"configs/{spec}")
    sizes = dict.fromkeys(sharding.AXES, 1) | {
        axis: config.mesh[axis] for axis in ("fsdp", "tensor", "expert")
    }
    mesh = AbstractMesh(tuple(sizes.values()), sharding.AXES)
    sharding.batch_sharding(mesh, config.batch)
    params = run.abstract.params
    placed, notes = sharding.param_shardings(mesh, run.model.axes, params)
    placed = sharding.with_shardings(params, placed)
    state, _ = sharding.state_shardings(mesh, run.abstract, placed)
    assert sharding.bytes_per_device(sharding.with_shardings(run.abstract, state)) < 40e9
    assert not notes


def test_the_tiny_variant_of_a_published_model_is_a_run_and_needs_no_file():
    """Its data, its model and its step fit each other; test_families.py trains the shapes."""
    for file in ("gpt2", "gpt3_175b", "llama_8b", "mixtral_8x7b"):
        config = config_lib.load(f"configs/nlp/{file}.py:tiny")
        run = build.build(config, jax.devices()[:1])
        assert run.source.num_batches > 100
        whole = config_lib.load(f"configs/nlp/{file}.py").model
        small = ("vocab_size", "context", "num_layers", "num_heads", "num_kv_heads", "width")
        small += ("mlp_width", "experts", "remat")
        for key in set(config.model.keys()) - set(small):  # the shape, not the size
            assert config.model[key] == whole[key], (file, key)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [spec for spec in variants() if ":tiny" in spec])
def test_every_tiny_variant_learns_a_batch_by_heart(spec):
    config = config_lib.load(f"configs/{spec}")
    run = build.build(config, jax.devices()[:1])
    state, step, losses = build.init(run), build.jit_train_step(run), []
    with jax.set_mesh(run.mesh):
        batch = build.put(run, next(run.source.batches()))
        for _ in range(config.steps):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
