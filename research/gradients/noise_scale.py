"""The gradient noise scale (arXiv:1812.06162): beyond about this batch more examples help less.

    gradients=dict(chain=("noise_scale",), noise_scale=dict(micro_batches=4))

Accumulates as `accumulate` does, and compares the gradients of the micro-batches with their mean.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from research.arguments import Range, Rate
from research.gradients import Gradients, accumulate, widen

Parts = Annotated[int, Range(2)]


class NoiseScale(NamedTuple):
    """Averages over steps of |G|^2, the square of the true gradient, and of tr(S), the variance of
    an example's gradient; and the steps in them."""

    square: jax.Array
    variance: jax.Array
    steps: jax.Array


def init(**_: Any) -> NoiseScale:
    """Returns the averages of step 0."""
    return NoiseScale(jnp.zeros(()), jnp.zeros(()), jnp.zeros((), jnp.int32))


def make(grad_fn: Callable, micro_batches: Parts = 2, decay: Rate = 0.95) -> Callable:
    """Reports `noise_scale` = tr(S) / |G|^2 in examples, from averages over steps with `decay`:
    each estimate alone is unbiased but noisy, and early values may be negative."""

    def square(sums: Gradients) -> jax.Array:
        grads = [widen(g) / sums.weight for g in jax.tree.leaves(sums.grads)]
        return sum(jnp.sum(g * g) for g in grads)

    def measured(state: Any, batch: dict, key: jax.Array) -> Gradients:
        sums = grad_fn(state, batch, key)
        return sums._replace(metrics=sums.metrics | {"micro": (square(sums), jnp.float32(1))})

    accumulated = accumulate.make(measured, micro_batches)

    def noisy(state: Any, batch: dict, key: jax.Array) -> Gradients:
        sums = accumulated(state, batch, key)
        metrics = dict(sums.metrics)
        total, count = metrics.pop("micro")
        of_small, of_large = total / count, square(sums)
        large = len(jax.tree.leaves(batch)[0])
        small = large / micro_batches
        estimates = (
            (large * of_large - small * of_small) / (large - small),
            (of_small - of_large) / (1 / small - 1 / large),
        )
        old = state.grad_state["noise_scale"]
        finite = jnp.isfinite(of_small) & jnp.isfinite(of_large)
        # The first estimates weigh alike, so no average begins at zero.
        share = jnp.where(finite, jnp.maximum(1 - decay, 1 / (old.steps + 1)), 0.0)
        mix = lambda a, x: a + share * (jnp.where(finite, x, 0.0) - a)  # noqa: E731
        new = NoiseScale(*map(mix, old[:2], estimates), old.steps + finite)
        metrics["noise_scale"] = (new.variance / new.square, jnp.float32(1))
        return sums._replace(metrics=metrics, grad_state=sums.grad_state | {"noise_scale": new})

    return noisy
