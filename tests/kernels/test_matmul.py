"""The matrix product of every precision, beside numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.kernels.matmul import compute_dtype, einsum


def products(jaxpr):
    return [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]


@pytest.mark.core
def test_fp32_is_float32_even_where_the_hardware_would_round():
    x, w = jax.random.normal(jax.random.key(0), (2, 8, 512))
    y = einsum("bd,cd->bc", x.astype(jnp.bfloat16), w, "fp32")
    assert y.dtype == compute_dtype("fp32") == jnp.float32
    (product,) = products(
        jax.make_jaxpr(lambda x, w: einsum("bd,cd->bc", x, w, "fp32"))(x, w).jaxpr
    )
    assert set(product.params["precision"]) == {jax.lax.Precision.HIGHEST}


@pytest.mark.core
@pytest.mark.parametrize("length", [64, 4096])
def test_bf16_rounds_once_after_a_float32_sum(length):
    x = jax.random.normal(jax.random.key(0), (8, length))
    w = jax.random.normal(jax.random.key(1), (length, 3, 4))
    y = einsum("bd,dhk->bhk", x, w, "bf16")
    assert y.dtype == compute_dtype("bf16") == jnp.bfloat16
    exact = [np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (x, w)]
    rounded = jnp.asarray(np.einsum("bd,dhk->bhk", *exact), jnp.float32).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(y, float), np.asarray(rounded, float))


@pytest.mark.core
def test_bf16_backward_multiplies_in_bfloat16_and_returns_float32_gradients():
    x, w = jnp.ones((4, 8)), jnp.ones((8, 6))
    grad = jax.grad(lambda x, w: einsum("bd,df->bf", x, w, "bf16").sum().astype(float), (0, 1))
    assert all(g.dtype == jnp.float32 for g in grad(x, w))
    for product in products(jax.make_jaxpr(grad)(x, w).jaxpr):
        assert all(operand.aval.dtype == jnp.bfloat16 for operand in product.invars)
