"""Schedule-free learning (arXiv:2405.15682): an average of the weights in place of a schedule.

    chain=("adam", "lr", "schedule_free"), adam=dict(b1=0.0), lr=dict(schedule="constant", ...)

The parameters of a run are the average x, which is evaluated; this part keeps the fast weights z.
The gradient must be taken between them: gradients/schedule_free.py belongs to it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.arguments import NonNegative, Rate
from research.optim.decay import penalty


class ScheduleFreeState(NamedTuple):
    """The place of the gradient, the sum of weights, the largest learning rate, and z."""

    b1: jax.Array
    weight_sum: jax.Array
    max_lr: jax.Array
    z: Any


def make(
    b1: Rate = 0.9, power: NonNegative = 2.0, decay: NonNegative = 0.0, rules: tuple = ()
) -> optax.GradientTransformationExtraArgs:
    """Moves z by the update and x towards z; stands behind `lr`, last in the chain.

    An update weighs (largest learning rate so far) ^ `power` in the average. The gradient is taken
    at y = (1 - b1) z + b1 x, and decayed there: by `decay`, with `rules` as in the part `decay`.
    """
    pull = penalty(lambda y: decay * y, rules, "schedule_free")

    def init(params: optax.Params) -> ScheduleFreeState:
        z = jax.tree.map(lambda p: jnp.array(p, copy=True), params)  # both buffers are donated
        return ScheduleFreeState(jnp.asarray(b1, float), jnp.zeros(()), jnp.zeros(()), z)

    def update(
        updates: optax.Updates,
        state: ScheduleFreeState,
        params: optax.Params,
        *,
        learning_rate: jax.Array,
        **_: Any,
    ) -> tuple:
        y = jax.tree.map(lambda x, z: (1 - b1) * z + b1 * x, params, state.z)
        pulls, _ = pull.update(jax.tree.map(jnp.zeros_like, y), pull.init(y), y)
        max_lr = jnp.maximum(state.max_lr, learning_rate).astype(state.max_lr.dtype)
        weight = max_lr**power
        total = (state.weight_sum + weight).astype(state.weight_sum.dtype)
        share = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1.0), 0.0)
        step = lambda z, u, d: (z + u - learning_rate * d).astype(z.dtype)  # noqa: E731
        z = jax.tree.map(step, state.z, updates, pulls)
        moved = jax.tree.map(lambda x, z: (share * (z - x)).astype(x.dtype), params, z)
        return moved, ScheduleFreeState(jnp.asarray(b1, float), total, max_lr, z)

    return optax.GradientTransformationExtraArgs(init, update)
