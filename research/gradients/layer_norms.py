"""The norm of each layer's gradient as a metric: vanishing and exploding gradients become visible.

gradients=dict(chain=("accumulate", "layer_norms"))         # last: it looks at the whole batch
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from research import tree
from research.gradients import Gradients, widen


def make(grad_fn: Callable) -> Callable:
    """Adds `grad_norm/layers/3` for each layer and `grad_norm/embed` and so on for the rest: norms
    of the gradient of the mean loss."""

    def measured(state: Any, batch: dict, key: jax.Array) -> Gradients:
        sums = grad_fn(state, batch, key)
        squares: dict[str, jax.Array] = {}
        for path, leaf in tree.flatten(sums.grads).items():
            axes = tuple(range(tree.stacked_axes(path), leaf.ndim))
            values = jnp.sum(jnp.square(widen(leaf)), axes)
            for index, name in enumerate(tree.unrolled_paths(path, leaf)):
                group = re.match(r"(?:.*?/)??layers/\d+(?=/)|[^/]+", name)[0]
                value = values.reshape(-1)[index]
                squares[group] = squares.get(group, 0.0) + value
        norms = {f"grad_norm/{g}": (jnp.sqrt(s), sums.weight) for g, s in squares.items()}
        return sums._replace(metrics=sums.metrics | norms)

    return measured
