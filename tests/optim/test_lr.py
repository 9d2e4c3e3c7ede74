"""Schedules against optax's, and what of them is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.arguments import InputError
from research.optim import lr, plateau

STEPS, WARMUP = 40, 5


def rates(count=STEPS, **config):
    tx = lr.make(**config)
    state, seen = tx.init({}), []
    for _ in range(count):
        _, state = tx.update({}, state)
        seen.append(float(state.learning_rate))
    return np.array(seen)


def after_warmup(schedule):
    return np.array([float(schedule(i)) for i in range(STEPS - WARMUP)])


LENGTH = STEPS - WARMUP
SECOND_SOURCE = {
    "constant": ({}, optax.constant_schedule(2.0)),
    "linear": (dict(final=0.1), optax.linear_schedule(2.0, 0.2, LENGTH)),
    "cosine": (dict(final=0.1), optax.cosine_decay_schedule(2.0, LENGTH, 0.1)),
    "polynomial": (
        dict(final=0.1, power=3.0),
        optax.polynomial_schedule(2.0, 0.2, 3.0, LENGTH),
    ),
    "exponential": (dict(final=0.1), optax.exponential_decay(2.0, LENGTH, 0.1)),
    "step": (
        dict(boundaries=(15, 25), factor=0.5),
        optax.piecewise_constant_schedule(2.0, {15 - WARMUP: 0.5, 25 - WARMUP: 0.5}),
    ),
    "wsd": (
        dict(final=0.1, cooldown=10),
        optax.join_schedules(
            [optax.constant_schedule(2.0), optax.linear_schedule(2.0, 0.2, 10)], [LENGTH - 10]
        ),
    ),
    "restarts": (
        dict(final=0.1, cycles=3, growth=2.0),  # 5 + 10 + 20 updates
        optax.join_schedules(
            [optax.cosine_decay_schedule(2.0, n, 0.1) for n in (5, 10, 20)], [5, 15]
        ),
    ),
}


@pytest.mark.parametrize("name", SECOND_SOURCE)
def test_a_schedule_equals_optax_after_a_linear_warmup(name):
    config, schedule = SECOND_SOURCE[name]
    seen = rates(peak=2.0, schedule=name, warmup=WARMUP, steps=STEPS, **config)
    np.testing.assert_allclose(seen[WARMUP:], after_warmup(schedule), rtol=2e-5)
    np.testing.assert_allclose(seen[:WARMUP], 2.0 * np.arange(1, 6) / 5, rtol=1e-6)


def test_one_cycle_equals_optax():
    expected = optax.cosine_onecycle_schedule(STEPS, 2.0, 0.25, 1 / 0.04, 1.0)
    seen = rates(peak=2.0, schedule="one_cycle", warmup=10, steps=STEPS, final=0.04)
    np.testing.assert_allclose(seen, [float(expected(i)) for i in range(STEPS)], rtol=1e-5)
    without = rates(peak=2.0, schedule="one_cycle", steps=STEPS)
    assert without.argmax() == int(0.3 * STEPS)


def test_inverse_sqrt_is_that_of_the_transformer():
    """arXiv:1706.03762, equation 3: min(step^-0.5, step x warmup^-1.5), up to the factor."""
    step = np.arange(1, STEPS + 1)
    expected = 2.0 * np.sqrt(WARMUP) * np.minimum(step**-0.5, step * WARMUP**-1.5)
    seen = rates(peak=2.0, schedule="inverse_sqrt", warmup=WARMUP)
    np.testing.assert_allclose(seen, expected, rtol=1e-6)


@pytest.mark.parametrize("name", [*SECOND_SOURCE, "one_cycle", "inverse_sqrt"])
def test_numbers_of_a_schedule_may_be_tracers(name):
    config = dict(SECOND_SOURCE.get(name, ({},))[0])
    fixed = {key: config.pop(key) for key in ("boundaries", "cycles", "cooldown") if key in config}
    config |= dict(peak=2.0, warmup=5, final=config.get("final", 0.1))

    def rate(numbers):
        tx = lr.make(schedule=name, steps=STEPS, **fixed, **numbers)
        state = lr.LearningRateState(jnp.int32(20), jnp.float32(0))
        return tx.update({}, state)[1].learning_rate

    numbers = {key: jnp.array([value, value * 1.5]) for key, value in config.items()}
    together = jax.jit(jax.vmap(rate))(numbers)
    alone = [rate({key: float(value[i]) for key, value in numbers.items()}) for i in (0, 1)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(warmup=40, steps=40), "does not fit into 40 steps"),
        (dict(schedule="linear"), "needs steps"),
        (dict(schedule="step", boundaries=()), "needs boundaries"),
        (dict(schedule="exponential", steps=9), "needs final above 0"),
        (dict(schedule="wsd", steps=9, warmup=5, cooldown=6), "do not fit into 9 steps"),
        (dict(schedule="cosine", steps=9, power=2.0), "power is used by polynomial, wsd"),
        (dict(schedule="linear", steps=9, cycles=2), "cycles is used by restarts"),
    ],
)
def test_a_schedule_that_contradicts_itself_is_refused_by_name(config, message):
    with pytest.raises(InputError, match=message):
        lr.make(**config)


def test_the_update_shrinks_when_the_loss_stays():
    tx = plateau.make(window=2, patience=2, factor=0.5, lowest=0.2)
    state, scales = tx.init({"w": jnp.ones(())}), []
    for loss in [3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, *[1.0] * 12]:
        updates, state = tx.update({"w": jnp.ones(())}, state, value=jnp.float32(loss))
        scales.append(float(updates["w"]))
    # Windows of two: 2.5, 1.0 (best), then two without improvement halve the scale, down to 0.2.
    assert scales[:7] == [1.0] * 7 and scales[7] == 0.5 and scales[11] == 0.25
    assert np.isclose(scales[-1], 0.2)
