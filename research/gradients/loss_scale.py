"""Dynamic loss scaling for float16 (arXiv:1710.03740): small gradients stay above its least number.

The backward pass starts with the scale instead of 1 (gradients/plain.py), and the gradients are
divided by it here. When they overflow, the step refuses the update and the scale falls.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from research.arguments import Count, Positive, Range
from research.gradients import Gradients

Factor = Annotated[float, Range(1, above=True)]
# Of the loss's sum, where a token's gradient is not divided by the batch: 2^15 of mean losses, say.
INITIAL = 2.0**10


class LossScale(NamedTuple):
    """The scale, the finite steps since it last changed, and whether this step lowered it."""

    value: jax.Array
    finite_steps: jax.Array
    fell: jax.Array


def init(initial: Positive = INITIAL, **_: Any) -> LossScale:
    """Returns the scale of step 0."""
    return LossScale(jnp.float32(initial), jnp.int32(0), jnp.bool_(False))


def make(
    grad_fn: Callable,
    initial: Positive = INITIAL,
    factor: Factor = 2.0,
    grow_every: Count = 2_000,
    lowest: Positive = 2.0**-16,
) -> Callable:
    """Divides the scale by `factor` when a gradient is not finite, down to `lowest`, and multiplies
    it after `grow_every` finite steps. Reports it as the metric `loss_scale`."""

    def scaled(state: Any, batch: dict, key: jax.Array) -> Gradients:
        sums = grad_fn(state, batch, key)
        old = state.grad_state["loss_scale"]
        grads = jax.tree.map(lambda g: g / old.value.astype(g.dtype), sums.grads)
        finite = jnp.all(jnp.array([jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]))
        # A loss that is not finite is no overflow of the backward pass: no scale mends it.
        fell = ~finite & jnp.isfinite(sums.loss) & (old.value > lowest)
        steps = jnp.where(finite, old.finite_steps + 1, 0)
        grows = steps >= grow_every
        value = jnp.where(grows, old.value * factor, old.value)
        value = jnp.where(fell, jnp.maximum(old.value / factor, lowest), value)
        new = LossScale(value, jnp.where(grows, 0, steps), fell)
        metrics = sums.metrics | {"loss_scale": (old.value, jnp.float32(1))}
        grad_state = sums.grad_state | {"loss_scale": new}
        return sums._replace(grads=grads, metrics=metrics, grad_state=grad_state)

    return scaled
