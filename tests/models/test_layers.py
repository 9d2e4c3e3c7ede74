"""Layers by their formulas: dropout and rotary positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.layers import dropout, rotary, rotate


@pytest.mark.core
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_zeroes_its_fraction_and_keeps_the_mean(rate):
    x = jnp.linspace(1.0, 2.0, 40_000)
    y = np.asarray(dropout(x, rate, jax.random.key(0)))
    # Four standard errors of a fraction; of a mean of values in 1 .. 2, rescaled, a little more.
    error = 4 * (rate * (1 - rate) / x.size) ** 0.5
    assert abs((y == 0).mean() - rate) < error
    assert abs(y.mean() - x.mean()) < 2 * error / (1 - rate)
    np.testing.assert_allclose(y[y != 0], x[y != 0] / (1 - rate), rtol=1e-6)


def test_dropout_does_nothing_without_a_key_or_rate_and_takes_a_traced_rate():
    x = jnp.ones((4, 8))
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(0)), x)
    traced = jax.jit(lambda rate: dropout(x, rate, jax.random.key(0)))(0.5)
    np.testing.assert_array_equal(traced, dropout(x, 0.5, jax.random.key(0)))


@pytest.mark.core
def test_rotation_multiplies_each_pair_by_a_complex_number_of_its_position():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [7, 0, 50, 3, 1]])
    ours = rotate(jnp.asarray(x), rotary(jnp.asarray(positions), 8, 100.0))
    angle = positions[..., None, None] / 100.0 ** (np.arange(4) / 4)
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)
    np.testing.assert_allclose(ours, np.concatenate([turned.real, turned.imag], -1), atol=2e-5)
