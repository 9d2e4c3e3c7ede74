"""Adafactor (arXiv:1804.04235): of a matrix, the second moments of its rows and columns only.

Without its learning rate, which is relative to the parameter's size: lr=dict(peak=1e-2, ...) moves
a parameter by 1 %. Its max(1e-2, 1/sqrt(t)) is lr's `inverse_sqrt`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.arguments import Count, Positive
from research.optim import as_matrix, is_matrix, layerwise


class AdafactorState(NamedTuple):
    """Updates so far, and the moments by number of layers (optim.layerwise)."""

    count: jax.Array
    moments: Any


class Moments(NamedTuple):
    """Mean squares of each row and column, or of every element: the others None."""

    nu_row: Any
    nu_col: Any
    nu: Any


def make(
    decay: Positive = 0.8,
    max_rms: Positive | None = 1.0,
    relative: bool = True,
    least: Positive = 1e-3,
    eps: Positive = 1e-30,
    min_size: Count = 128,
) -> optax.GradientTransformation:
    """Scales by factored second moments whose memory is 1 - t^-decay, each layer by itself.

    The update is scaled down to an RMS of `max_rms` (None: not), and times the parameter's RMS, at
    least `least` (`relative`). Factored are matrices (optim.as_matrix: heads belong together) with
    at least `min_size` rows and columns: 1 is as torch and the paper, whose eps differ by less than
    float32 can tell.
    """

    def is_factored(path: str, p: jax.Array) -> bool:
        return is_matrix(path, p) and min(as_matrix(path, p)) >= min_size

    def init(params: optax.Params) -> Moments:
        def side(which: int) -> Any:
            def one(path: str, p: jax.Array) -> Any:
                size = as_matrix(path, p)[which]
                return jnp.zeros(size, p.dtype) if is_factored(path, p) else None

            return tree.map_named(one, params)

        whole = lambda path, p: None if is_factored(path, p) else jnp.zeros_like(p)  # noqa: E731
        return Moments(side(0), side(1), tree.map_named(whole, params))

    def one(
        path: str, g: jax.Array, p: jax.Array, row: Any, col: Any, nu: Any, keep: jax.Array
    ) -> tuple:
        square, keep = g * g + eps, keep.astype(g.dtype)
        mix = lambda old, new: keep * old + (1 - keep) * new  # noqa: E731
        if is_factored(path, p):
            square = square.reshape(as_matrix(path, p))
            row, col = mix(row, square.mean(1)), mix(col, square.mean(0))
            scale = jnp.outer(jax.lax.rsqrt(row / row.mean()), jax.lax.rsqrt(col))
            u = g * scale.reshape(g.shape)
        else:
            nu = mix(nu, square)
            u = g * jax.lax.rsqrt(nu)
        rms = lambda x: jnp.sqrt(jnp.mean(x * x))  # noqa: E731
        u = u if max_rms is None else u / jnp.maximum(1.0, rms(u) / max_rms)
        return u * jnp.maximum(rms(p), least) if relative else u, row, col, nu

    def step(updates: Any, state: Moments, params: Any, *, keep: jax.Array, **_: Any) -> tuple:
        each = lambda *leaves: one(*leaves, keep)  # noqa: E731
        parts = tree.map_named(each, updates, params, *state)
        pick = lambda i: jax.tree.map(lambda _, part: part[i], updates, parts)  # noqa: E731
        return pick(0), Moments(pick(1), pick(2), pick(3))

    inner = layerwise(optax.GradientTransformationExtraArgs(init, step))

    def start(params: optax.Params) -> AdafactorState:
        return AdafactorState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates: optax.Updates, state: AdafactorState, params: optax.Params) -> tuple:
        count = state.count + 1
        keep = 1 - jnp.asarray(count, float) ** -decay
        changed, moments = inner.update(updates, state.moments, params, keep=keep)
        return changed, AdafactorState(count, moments)

    return optax.GradientTransformation(start, update)
