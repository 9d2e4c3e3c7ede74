"""Adagrad (Duchi, Hazan and Singer, JMLR 2011): gradients over the root of their sum of squares."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.arguments import NonNegative, Positive


class AdagradState(NamedTuple):
    """The squares of all gradients so far, on top of the accumulator's first value."""

    sum_of_squares: Any


def make(accumulator: NonNegative = 0.0, eps: Positive = 1e-10) -> optax.GradientTransformation:
    """Scales by 1 / (root + eps), as torch; the sum of squares begins at `accumulator`."""

    def init(params: optax.Params) -> AdagradState:
        return AdagradState(jax.tree.map(lambda p: jnp.full_like(p, accumulator), params))

    def update(updates: optax.Updates, state: AdagradState, params: object = None) -> tuple:
        sums = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, updates)
        changed = jax.tree.map(lambda s, g: g / (jnp.sqrt(s) + eps), sums, updates)
        return changed, AdagradState(sums)

    return optax.GradientTransformation(init, update)
