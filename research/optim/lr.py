"""The learning rate: linear warm-up, then a schedule, counted in updates.

Written with arithmetic only, so that every number may be a tracer (populations of runs vmap the
step over them); some of optax's schedules branch in Python.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.arguments import Count, Fraction, InputError, NonNegative, Size


class LearningRateState(NamedTuple):
    """Updates so far, and the rate of the last one (read by the metrics)."""

    count: jax.Array
    learning_rate: jax.Array


def make(
    peak: NonNegative = 1e-3,
    schedule: Literal["constant", "linear", "cosine"] = "cosine",
    warmup: Size = 0,
    final: Fraction = 0.0,
    steps: Count | None = None,
) -> optax.GradientTransformation:
    """Scales updates by minus the learning rate.

    Rises from 0 to `peak` over `warmup` updates, then goes to `final` x peak at update `steps`
    (None: the steps of the run). Raises InputError when the warm-up does not fit into the steps.
    """
    if schedule != "constant" and steps is None:
        raise InputError(f"schedule {schedule!r} needs steps, the update at which it ends")
    if isinstance(warmup, int) and isinstance(steps, int) and warmup >= steps > 0:
        raise InputError(
            f"config.optim.lr.warmup={warmup} does not fit into {steps} steps; make it smaller"
        )

    def rate(count: jax.Array) -> jax.Array:
        # Update 0 already moves: (count + 1) / warmup reaches the peak at count = warmup - 1.
        rise = jnp.minimum(1.0, (count + 1) / jnp.maximum(warmup, 1))
        if schedule == "constant":
            return peak * rise
        done = jnp.clip((count - warmup) / jnp.maximum(steps - warmup, 1), 0.0, 1.0)
        shape = 1 - done if schedule == "linear" else (1 + jnp.cos(jnp.pi * done)) / 2
        return peak * rise * (final + (1 - final) * shape)

    def init(params: optax.Params) -> LearningRateState:
        return LearningRateState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates: optax.Updates, state: LearningRateState, params: object = None) -> tuple:
        value = rate(state.count).astype(jnp.float32)
        scaled = jax.tree.map(lambda u: (-value * u).astype(u.dtype), updates)
        return scaled, LearningRateState(state.count + 1, value)

    return optax.GradientTransformation(init, update)
