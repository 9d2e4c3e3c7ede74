"""Optimizers against their formulas, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.arguments import InputError
from research.optim import adam, clip, decay, lr, momentum

PARAMS = {"layers": {"w": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}, "head": jnp.ones((2, 2))}


def test_adamw_equals_its_formula():
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(20, 5)).astype(np.float32)
    tx = optax.named_chain(
        ("adam", adam.make(b1=0.9, b2=0.95, eps=1e-8)),
        ("decay", decay.make(rate=0.1)),
        ("lr", lr.make(peak=0.01, schedule="constant")),
    )
    params = jnp.ones(5)
    state = tx.init(params)
    p, m, v = np.ones(5), np.zeros(5), np.zeros(5)
    for t, g in enumerate(gradients, 1):
        updates, state = tx.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        p = p - 0.01 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8) + 0.1 * p)
    np.testing.assert_allclose(params, p, rtol=2e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_equals_its_formula(nesterov):
    tx = optax.chain(
        momentum.make(decay=0.9, nesterov=nesterov), lr.make(peak=0.1, schedule="constant")
    )
    params, state = jnp.zeros(()), tx.init(jnp.zeros(()))
    p = m = 0.0
    for g in [1.0, -2.0, 0.5]:
        updates, state = tx.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
        m = 0.9 * m + g
        p -= 0.1 * (g + 0.9 * m if nesterov else m)
    np.testing.assert_allclose(params, p, rtol=1e-6)


def test_clipping_keeps_direction_and_bounds_the_norm():
    tx = clip.make(max_norm=1.0)
    big, _ = tx.update({"a": jnp.array([3.0, 4.0])}, tx.init({}))
    np.testing.assert_allclose(big["a"], [0.6, 0.8], rtol=1e-6)
    small, _ = tx.update({"a": jnp.array([0.3, 0.4])}, tx.init({}))
    np.testing.assert_allclose(small["a"], [0.3, 0.4], rtol=1e-6)


def test_decay_rules_address_each_scanned_layer():
    rules = ((r"bias$", 0.0), (r"layers/1/", 2.0), (r"^head", 0.5))
    tx = decay.make(rate=0.1, rules=rules)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["layers"]["w"][:, 0, 0], [0.1, 0.2, 0.1], rtol=1e-6)
    np.testing.assert_allclose(updates["layers"]["bias"], 0.0)
    np.testing.assert_allclose(updates["head"], 0.05, rtol=1e-6)


def rates(tx, count):
    state, seen = tx.init({}), []
    for _ in range(count):
        _, state = tx.update({}, state)
        seen.append(float(state.learning_rate))
    return seen


def test_cosine_rises_to_the_peak_and_falls_to_its_final_fraction():
    seen = rates(lr.make(peak=1.0, schedule="cosine", warmup=4, final=0.1, steps=20), 21)
    np.testing.assert_allclose(seen[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    done = (np.arange(4, 21) - 4) / 16
    np.testing.assert_allclose(seen[4:], 0.1 + 0.9 * (1 + np.cos(np.pi * done)) / 2, rtol=1e-5)


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(InputError, match="warmup=30 does not fit into 20 steps"):
        lr.make(warmup=30, steps=20)


def test_numbers_of_the_optimizer_may_be_tracers():
    """A population vmaps the step over learning rates and decays."""

    def one(peak, rate, max_norm):
        tx = optax.chain(
            clip.make(max_norm), adam.make(b1=0.9 + 0 * rate), decay.make(rate),
            lr.make(peak, warmup=2, steps=10),
        )  # fmt: skip
        grads = jax.tree.map(jnp.ones_like, PARAMS)
        updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
        return updates["head"]

    numbers = jnp.array([[1e-3, 0.1, 1.0], [1e-2, 0.0, 0.5]])
    together = jax.vmap(one)(*numbers.T)
    for row, alone in zip(numbers, together, strict=True):
        np.testing.assert_allclose(one(*map(float, row)), alone, rtol=1e-5)
