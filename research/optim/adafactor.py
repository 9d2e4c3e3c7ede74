"""Adafactor (arXiv:1804.04235): of a matrix, the second moments of its rows and columns only.

Without its learning rate, which is relative to the parameter's size: lr=dict(peak=1e-2, ...) moves
a parameter by 1 %. Its max(1e-2, 1/sqrt(t)) is lr's `inverse_sqrt`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.arguments import Count, Positive
from research.optim import layerwise


class AdafactorState(NamedTuple):
    """Updates so far, and the moments by number of layers (optim.layerwise)."""

    count: jax.Array
    moments: Any


class Moments(NamedTuple):
    """Means of the squared gradient over one axis each, or of all elements: the others None."""

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
    least `least` (`relative`). The two largest axes are factored if both have `min_size` elements:
    1 is as torch and the paper, whose eps differ by less than float32 can tell.
    """

    def axes(p: jax.Array) -> tuple[int, int] | None:
        """The axes that rows and columns are averaged over: the largest and the second."""
        order = sorted(range(p.ndim), key=lambda axis: (p.shape[axis], axis))
        return order[-1:-3:-1] if p.ndim > 1 and p.shape[order[-2]] >= min_size else None

    def init(params: optax.Params) -> Moments:
        def without(which: int) -> Any:
            mean = lambda p: axes(p) and jnp.zeros_like(p.mean(axes(p)[which]))  # noqa: E731
            return jax.tree.map(mean, params)

        whole = jax.tree.map(lambda p: None if axes(p) else jnp.zeros_like(p), params)
        return Moments(without(0), without(1), whole)

    def one(g: jax.Array, p: jax.Array, row: Any, col: Any, nu: Any, keep: jax.Array) -> tuple:
        square, keep = g * g + eps, keep.astype(g.dtype)
        mix = lambda old, new: keep * old + (1 - keep) * new  # noqa: E731
        if found := axes(p):
            row, col = mix(row, square.mean(found[0])), mix(col, square.mean(found[1]))
            rows, cols = jnp.expand_dims(row, found[0]), jnp.expand_dims(col, found[1])
            u = g * jax.lax.rsqrt(rows / rows.mean(found[1], keepdims=True)) * jax.lax.rsqrt(cols)
        else:
            nu = mix(nu, square)
            u = g * jax.lax.rsqrt(nu)
        rms = lambda x: jnp.sqrt(jnp.mean(x * x))  # noqa: E731
        u = u if max_rms is None else u / jnp.maximum(1.0, rms(u) / max_rms)
        return u * jnp.maximum(rms(p), least) if relative else u, row, col, nu

    def step(updates: Any, state: Moments, params: Any, *, keep: jax.Array, **_: Any) -> tuple:
        each = lambda *leaves: one(*leaves, keep)  # noqa: E731
        parts = jax.tree.map(each, updates, params, *state)
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
