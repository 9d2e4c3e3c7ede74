"""The learning rate: a linear warm-up, then a schedule, counted in updates.

    lr = dict(peak=3e-4, schedule="cosine", warmup=1_000, final=0.1)

Written with arithmetic only, so that every number may be a tracer (populations of runs vmap the
step over them); some of optax's schedules branch in Python. `plateau` is a part of its own.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.arguments import Count, Fraction, InputError, NonNegative, Positive, Size

# Which schedules use an argument; elsewhere it would be set in vain.
USED_BY = {
    "power": ("polynomial", "wsd"),
    "boundaries": ("step",),
    "factor": ("step",),
    "cooldown": ("wsd",),
    "cycles": ("restarts",),
    "growth": ("restarts",),
    "start": ("one_cycle",),
}


class LearningRateState(NamedTuple):
    """Updates so far, and the rate of the last one (read by the metrics)."""

    count: jax.Array
    learning_rate: jax.Array


def make(
    peak: NonNegative = 1e-3,
    schedule: Literal[
        "constant",
        "linear",
        "cosine",
        "polynomial",
        "exponential",
        "step",
        "inverse_sqrt",
        "wsd",
        "restarts",
        "one_cycle",
    ] = "cosine",
    warmup: Size = 0,
    final: Fraction = 0.0,
    steps: Count | None = None,
    power: Positive = 1.0,
    boundaries: tuple = (),
    factor: Positive = 0.1,
    cooldown: Count | None = None,
    cycles: Count = 4,
    growth: Positive = 1.0,
    start: Fraction = 0.04,
) -> optax.GradientTransformation:
    """Scales updates by minus the learning rate.

    Rises from 0 to `peak` over `warmup` updates, then goes to `final` x peak at update `steps`
    (None: the steps of the run):
    linear, cosine (arXiv:1608.03983), polynomial (`power`), exponential (by the same factor every
    update; needs final above 0); step: x `factor` at each of `boundaries`, counted in updates;
    inverse_sqrt (arXiv:1706.03762): peak x sqrt(warmup / update), without an end; wsd: constant,
    then down over the last `cooldown` updates (None: a fifth of the steps) with `power`
    (arXiv:2405.18392); restarts: `cycles` cosines, each `growth` times as long as the one before
    (arXiv:1608.03983); one_cycle: a cosine from `start` x peak to the peak over the warm-up
    (0: 30 % of the steps), and one down (arXiv:1708.07120; momentum stays as it is).

    Raises InputError when the warm-up does not fit into the steps, or an argument is set that the
    schedule does not use.
    """
    given = dict(locals())
    _refuse(given)
    if schedule == "one_cycle" and isinstance(warmup, int) and warmup == 0:
        warmup = max(1, int(0.3 * steps))

    def shape(count: jax.Array) -> jax.Array:
        """The part of the peak after the warm-up."""
        if schedule == "constant":
            return jnp.ones(())
        if schedule == "step":
            return factor ** jnp.sum(count >= jnp.array(boundaries, jnp.int32))
        if schedule == "inverse_sqrt":
            since = jnp.maximum(warmup, 1)
            return jnp.sqrt(since / jnp.maximum(count + 1.0, since))
        # Of the way from the first update at the peak, or at the cooldown, to the last.
        begin = warmup
        if schedule == "wsd":
            begin = steps - (jnp.maximum(1, steps // 5) if cooldown is None else cooldown)
        done = jnp.clip((count - 1.0 * begin) / jnp.maximum(steps - begin, 1), 0.0, 1.0)
        if schedule == "exponential":
            return final**done
        if schedule == "restarts":
            lengths = jnp.power(jnp.asarray(growth, float), jnp.arange(cycles))
            lengths = lengths * (steps - begin) / jnp.sum(lengths)
            ends = jnp.cumsum(lengths)
            # An end that should be a whole number of updates may lie a rounding error above it.
            cycle = jnp.sum(count - begin >= ends[:-1] - 1e-3)
            since = count - begin - (ends[cycle] - lengths[cycle])
            done = jnp.clip(since / lengths[cycle], 0.0, 1.0)
        falls = {"linear": 1 - done, "polynomial": (1 - done) ** power, "wsd": (1 - done) ** power}
        return final + (1 - final) * falls.get(schedule, (1 + jnp.cos(jnp.pi * done)) / 2)

    def rate(count: jax.Array) -> jax.Array:
        # Update 0 already moves: (count + 1) / warmup reaches the peak at count = warmup - 1.
        rise = jnp.minimum(1.0, (count + 1.0) / jnp.maximum(warmup, 1))
        if schedule == "one_cycle":
            rise = jnp.minimum(1.0, 1.0 * count / jnp.maximum(warmup, 1))
            rise = start + (1 - start) * (1 - jnp.cos(jnp.pi * rise)) / 2
        return peak * rise * shape(count)

    def init(params: optax.Params) -> LearningRateState:
        return LearningRateState(jnp.zeros((), jnp.int32), jnp.zeros(()))

    def update(updates: optax.Updates, state: LearningRateState, params: object = None) -> tuple:
        value = jnp.asarray(rate(state.count), state.learning_rate.dtype)
        scaled = jax.tree.map(lambda u: (-value * u).astype(u.dtype), updates)
        return scaled, LearningRateState(state.count + 1, value)

    return optax.GradientTransformation(init, update)


def _refuse(given: dict) -> None:
    schedule, steps, warmup = given["schedule"], given["steps"], given["warmup"]
    where = f"config.optim.lr.schedule={schedule!r}"
    if steps is None and schedule not in ("constant", "step", "inverse_sqrt"):
        raise InputError(f"{where} needs steps, the update at which it ends")
    if isinstance(warmup, int) and isinstance(steps, int) and warmup >= steps > 0:
        raise InputError(
            f"config.optim.lr.warmup={warmup} does not fit into {steps} steps; make it smaller"
        )
    defaults = dict(zip(_OPTIONAL, make.__defaults__, strict=True))
    for name, users in USED_BY.items():
        value = given[name]
        differs = not isinstance(value, jax.Array) and value != defaults[name]
        if schedule not in users and differs:
            raise InputError(f"config.optim.lr.{name} is used by {', '.join(users)}, not {where}")
    if schedule == "step":
        steps_of = given["boundaries"]
        if not steps_of or any(not isinstance(b, int) or b < 1 for b in steps_of):
            raise InputError(f"{where} needs boundaries, updates like (30000, 60000): {steps_of!r}")
    if schedule == "exponential" and isinstance(given["final"], float) and given["final"] <= 0:
        raise InputError(f"{where} needs final above 0, the part of the peak that it ends at")
    cooldown = given["cooldown"]
    are_plain = all(isinstance(number, int) for number in (warmup, cooldown, steps))
    if are_plain and cooldown + warmup > steps:
        raise InputError(
            f"config.optim.lr: warmup={warmup} and cooldown={cooldown} do not fit "
            f"into {steps} steps; make one smaller"
        )


_OPTIONAL = make.__code__.co_varnames[: make.__code__.co_argcount]
