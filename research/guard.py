"""Which updates count: a loss or gradient that is not finite is refused, a spike is noticed.

    accepted, guard, metrics = judge(state.guard, loss, finite, spike=10.0)

A spike is a loss far above the median of the last ones, in units of their spread (1.4826 times the
median absolute deviation, the standard deviation of a normal distribution; Hampel 1974). A median
is not moved by a few spikes and a non-finite loss never enters, so neither can blind the detector:
after a NaN the very next batch counts. A loss that stays on a new level is the median soon.
All of it is part of the state, so a resumed run judges as the run that was never cut.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

FLOOR = 0.01  # of the median: a loss that hardly varies does not make every wiggle a spike


class Guard(NamedTuple):
    """What is remembered of the losses so far."""

    losses: jax.Array  # (window,) the last finite ones, infinity where there is none yet
    count: jax.Array  # finite losses so far
    streak: jax.Array  # updates refused in a row
    rolled_back: jax.Array  # 1 from a rollback until the next update that counts


def init(window: int = 64) -> Guard:
    """Returns the guard of step 0."""
    zero = jnp.zeros((), jnp.int32)
    return Guard(jnp.full((window,), jnp.inf, jnp.float32), zero, zero, zero)


def judge(
    guard: Guard,
    loss: jax.Array,
    finite: jax.Array,
    spike: float | None = None,
    refuse_spikes: bool = False,
    excused: jax.Array | bool = False,
) -> tuple[jax.Array, Guard, dict[str, jax.Array]]:
    """Returns whether the update counts, the new guard, and metrics: `refused` (0 or 1),
    `refused_in_a_row`, `rolled_back` (1 until an update counts again), `loss_deviation` (0 until
    half of the window is filled), and `spike`.

    `finite` tells whether loss, gradients and update are finite. `spike` None notices none;
    `refuse_spikes` refuses the update of a loss more than `spike` deviations above the median.
    A refusal that is `excused` (an fp16 loss scale fell, and may mend it) adds nothing to the row.
    """
    window = guard.losses.shape[0]
    loss = loss.astype(jnp.float32)
    held = jnp.minimum(guard.count, window)
    middle = jnp.maximum(held - 1, 0) // 2
    median = jnp.sort(guard.losses)[middle]
    is_held = jnp.isfinite(guard.losses)
    distances = jnp.where(is_held, jnp.abs(guard.losses - median), jnp.inf)
    spread = 1.4826 * jnp.sort(distances)[middle]
    spread = jnp.maximum(spread, FLOOR * jnp.abs(median)) + jnp.finfo(jnp.float32).tiny
    is_known = (2 * held >= window) & jnp.isfinite(loss)
    deviation = jnp.where(is_known, (loss - median) / spread, 0.0)
    is_spike = jnp.bool_(False) if spike is None else deviation > spike

    accepted = finite & ~is_spike if refuse_spikes else finite
    entered = guard.losses.at[guard.count % window].set(loss)
    is_finite = finite & jnp.isfinite(loss)  # a batch without weight has no loss
    streak = jnp.where(accepted, 0, guard.streak + jnp.where(excused, 0, 1))
    new = Guard(
        losses=jnp.where(is_finite, entered, guard.losses),
        count=guard.count + is_finite,
        streak=streak,
        rolled_back=jnp.where(accepted, 0, guard.rolled_back),
    )
    metrics = {
        "refused": 1.0 - accepted,
        "refused_in_a_row": streak,
        "rolled_back": new.rolled_back,
        "loss_deviation": deviation,
        "spike": 1.0 * is_spike,
    }
    return accepted, new, metrics
