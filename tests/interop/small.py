"""Small models of both families and their folders."""

import inspect
from pathlib import Path

import jax
import numpy as np

from research import export, tree
from research.models import gpt
from tests.models.test_parity import SHAPES

DEFAULTS = {name: p.default for name, p in inspect.signature(gpt.make).parameters.items()}
FAMILIES = tuple(SHAPES)


def keywords(family, **changes):
    """A complete config.model of a family of the frozen fixtures."""
    return {"name": "gpt"} | DEFAULTS | SHAPES[family] | changes


def make(model):
    return gpt.make(**{key: value for key, value in model.items() if key != "name"})


def frozen(family):
    """transformers' weights in our layout, a batch, and its numbers."""
    with np.load(Path(__file__).parent.parent / "fixtures" / f"{family}.npz") as file:
        theirs = dict(file)
    params = tree.nest({k[7:]: v for k, v in theirs.items() if k.startswith("params/")})
    batch = {k[6:]: v for k, v in theirs.items() if k.startswith("batch/")}
    return params, batch, theirs


def folder(path, family, **changes):
    """Writes a folder of random parameters; returns config.model and the parameters."""
    model = keywords(family, **changes)
    shapes = jax.eval_shape(make(model).init, jax.random.key(0))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    # The padding of the vocabulary does not travel: it comes back as zeros.
    params["embed"][model["vocab_size"] :] = 0
    if "head" in params:
        params["head"][:, model["vocab_size"] :] = 0
    export.write_folder(path, model, params)
    return model, params
