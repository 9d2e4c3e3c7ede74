"""The convolution of every precision, beside loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.arguments import InputError
from research.kernels.convolution import convolve


def loops(x, w, stride):
    half, (b, h, width, _) = w.shape[0] // 2, x.shape
    x = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    y = np.zeros((b, -(-h // stride), -(-width // stride), w.shape[-1]))
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            at = slice(i * stride, i * stride + len(w)), slice(j * stride, j * stride + len(w))
            y[:, i, j] = np.einsum("bhwi,hwio->bo", x[:, *at], w)
    return y


@pytest.mark.core
@pytest.mark.parametrize("size,stride", [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_a_convolution_is_the_sum_over_its_window_with_zeros_alike_on_all_sides(size, stride):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 8, 5, 3)), rng.normal(size=(size, size, 3, 4))
    got = convolve(jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32), "fp32", stride)
    np.testing.assert_allclose(got, loops(x, w, stride), atol=1e-4)


@pytest.mark.core
@pytest.mark.parametrize("precision,dtype", [("bf16", jnp.bfloat16), ("fp16", jnp.float16)])
def test_a_narrow_convolution_rounds_its_operands_and_its_result(precision, dtype):
    x, w = jnp.ones((1, 4, 4, 2)), jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
    got = convolve(x, w, precision)
    assert got.dtype == dtype
    exact = loops(np.asarray(x), np.asarray(w.astype(dtype), float), 1)
    np.testing.assert_allclose(np.asarray(got, float), exact, rtol=float(jnp.finfo(dtype).eps) * 2)
    grads = jax.grad(lambda x, w: convolve(x, w, precision).sum().astype(float), (0, 1))(x, w)
    assert all(g.dtype == jnp.float32 for g in grads)


def test_fp32_is_float32_even_where_the_hardware_would_round():
    x, w = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 4))
    (equation,) = jax.make_jaxpr(lambda x, w: convolve(x, w, "fp32"))(x, w).jaxpr.eqns
    assert set(equation.params["precision"]) == {jax.lax.Precision.HIGHEST}


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_8_bits_are_refused(precision):
    with pytest.raises(InputError, match=f"precision={precision}.*use bf16"):
        convolve(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 4)), precision)
