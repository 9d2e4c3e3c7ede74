"""Layer-wise learning rate decay (arXiv:1801.06146; as in ELECTRA, arXiv:2003.10555): the further a
layer is from the output, the smaller its steps.
"""

import re

import jax
import numpy as np
import optax

from research import tree
from research.arguments import Count, InputError, Positive


def make(
    factor: Positive = 0.8,
    first: str = r"(^|/)(embed|positions|types)$",
    num_layers: Count | None = None,
) -> optax.GradientTransformation:
    """Multiplies updates by factor ** (layers above): the last layer by `factor`, the first by
    factor ** layers, what matches `first` (embeddings) by factor ** (layers + 1); the rest, head
    and final norm, by 1. `num_layers` None: those of the model."""
    tree.check_patterns((first,), "config.optim.layer_decay.first")
    if num_layers is None:
        raise InputError("layer_decay needs num_layers, the layers of the model; set it")

    def update(updates: optax.Updates, state: optax.EmptyState, params: object = None) -> tuple:
        def depth(name: str) -> int:
            match = re.search(r"(?:^|/)layers/(\d+)/", name)
            if match:
                return num_layers - int(match[1])
            return num_layers + 1 if re.search(first, name) else 0

        def one(path: str, leaf: jax.Array) -> jax.Array:
            depths = np.array([depth(name) for name in tree.unrolled_paths(path, leaf)])
            stacked = tree.stacked_axes(path)
            shape = (*leaf.shape[:stacked], *[1] * (leaf.ndim - stacked)) if stacked else ()
            return (leaf * factor ** depths.reshape(shape)).astype(leaf.dtype)

        return tree.map_named(one, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
