"""Small models of the families, with the sizes of the frozen fixtures, and their folders."""

import importlib
import inspect
from pathlib import Path

import jax
import numpy as np

from research import export, tree
from tests.models import test_families, test_image_parity, test_parity

FAMILIES = tuple(test_parity.SHAPES)
# BERT has five, one for each head, and T5 two.
OTHERS = {name: module for name, (module, _) in test_families.FAMILIES.items()}
SHAPES = test_parity.SHAPES | {name: test_families.FAMILIES[name][1] for name in OTHERS}
IMAGES = tuple(test_image_parity.FAMILIES)
SHAPES |= test_image_parity.FAMILIES
SHAPES["switch"] = SHAPES["switch"] | dict(capacity=None, room=3)  # as transformers counts


def keywords(family, **changes):
    """A complete config.model of a family of the frozen fixtures."""
    name = OTHERS[family].__name__.rpartition(".")[2] if family in OTHERS else "gpt"
    name = family.partition("_")[0] if family in IMAGES else name
    made = inspect.signature(importlib.import_module(f"research.models.{name}").make)
    defaults = {name: p.default for name, p in made.parameters.items()}
    return {"name": name} | defaults | SHAPES[family] | changes


def make(model):
    module = importlib.import_module(f"research.models.{model['name']}")
    return module.make(**{key: value for key, value in model.items() if key != "name"})


def frozen(family):
    """transformers' weights in our layout, a batch, and its numbers."""
    with np.load(Path(__file__).parent.parent / "fixtures" / f"{family}.npz") as file:
        theirs = dict(file)
    places = ("params/", "state/")  # running moments too
    found = {k.partition("/")[2]: v for k, v in theirs.items() if k.startswith(places)}
    params = tree.nest(found)
    batch = {k[6:]: v for k, v in theirs.items() if k.startswith("batch/")}
    return params, batch, theirs


def folder(path, family, **changes):
    """Writes a folder of random parameters; returns config.model and the parameters."""
    model = keywords(family, **changes)
    shapes = jax.eval_shape(make(model).init, jax.random.key(0))
    shapes = export.with_moments(shapes["params"], shapes["model_state"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    # The padding of the vocabulary does not travel: it comes back as zeros.
    for name in {"embed", "vocab_bias"} & params.keys():
        params[name][model["vocab_size"] :] = 0
    if "head" in params:
        params["head"][:, model["vocab_size"] :] = 0
    export.write_folder(path, model, params)
    return model, params
