"""8-bit products beside numpy: integers to the bit, float8 to its rounding, gradients, scales."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.kernels.matmul import einsum
from research.kernels.quantized import (
    HISTORY,
    MARGIN,
    empty_history,
    fp8_einsum,
    int8_einsum,
)

# Every product of the models, and one whose operands share an axis of the result.
SPECS = {
    "btd,dhk->bthk": ((2, 5, 64), (64, 4, 8)),
    "bthk,hkd->btd": ((2, 5, 4, 8), (4, 8, 48)),
    "btd,df->btf": ((2, 5, 64), (64, 96)),
    "ebd,edf->ebf": ((3, 5, 64), (3, 64, 32)),
}
ALL = pytest.mark.parametrize("spec", SPECS)


def operands(spec):
    (x, w), (a, b) = jax.random.split(jax.random.key(0)), SPECS[spec]
    size = 10 ** jax.random.uniform(jax.random.key(9), a[:-1] + (1,), minval=-1.0)
    x = (size * jax.random.normal(x, a)).astype(jnp.bfloat16)
    return x, 0.02 * jax.random.normal(w, b)


def error(got, expected):
    """Relative, of root mean squares."""
    got, expected = (np.asarray(v, np.float64) for v in (got, expected))
    return np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean())


@pytest.mark.core
@ALL
def test_int8_is_the_product_of_integers_to_the_bit(spec):
    """Integers up to 127, times a power of two of each token or channel, need no rounding."""
    rng, out = np.random.default_rng(0), spec.split("->")[1]
    scaled, integers, powers = [], [], []
    for letters, shape in zip(spec.split("->")[0].split(","), SPECS[spec], strict=True):
        axes = tuple(i for i, letter in enumerate(letters) if letter not in out)
        v = rng.integers(-127, 128, shape)
        first = tuple(slice(0, 1) if i in axes else slice(None) for i in range(v.ndim))
        v[first] = 127
        power = 2.0 ** rng.integers(-9, 9, v[first].shape)
        scaled.append(jnp.asarray(v * power, jnp.float32))
        integers.append(v)
        powers.append(power)
    # Contracted axes of size 1: the product of both scales, in the axes of the result.
    sums, scale = np.einsum(spec, *integers), np.einsum(spec, *powers)
    expected = jnp.asarray(sums * scale, jnp.float32).astype(jnp.bfloat16)
    got = jax.jit(lambda *v: int8_einsum(spec, *v))(*scaled)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(got, float), np.asarray(expected, float))


@pytest.mark.core
@ALL
@pytest.mark.parametrize(
    "precision, forward, backward", [("int8", 0.012, None), ("fp8", 0.05, 0.08)]
)
def test_products_and_gradients_are_as_near_as_their_bits(spec, precision, forward, backward):
    """The gradients of int8 as those of bfloat16, however a device sums these."""
    x, w = operands(spec)
    g = jax.random.normal(jax.random.key(3), jnp.einsum(spec, x, w).shape)

    @partial(jax.jit, static_argnums=0)
    def run(precision, x, w):
        y, back = jax.vjp(lambda x, w: einsum(spec, x, w, precision), x, w)
        return y, back(g.astype(y.dtype))

    y, (dx, dw) = run(precision, x, w)
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    exact, back = jax.vjp(lambda x, w: einsum(spec, x, w, "fp32"), x.astype(float), w)
    assert 0.002 < error(y, exact) < forward
    for got, plain, expected in zip((dx, dw), run("bf16", x, w)[1], back(g), strict=True):
        limit = backward or 1.05 * error(plain, expected)
        assert 0.0005 < error(got, expected) < limit < 0.1


def operand_kinds(function, *args):
    text = jax.jit(function).lower(*args).as_text()
    kind = r"tensor<[\dx]*x(\w+)>"
    return re.findall(rf"stablehlo.dot_general .*\({kind}, {kind}\) -> {kind}", text)


@pytest.mark.core
def test_the_compiler_gets_products_of_8_bits():
    x, w = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((8, 6))

    def kinds(precision):
        loss = lambda x, w: einsum("bd,df->bf", x, w, precision).sum().astype(float)  # noqa: E731
        return sorted(operand_kinds(jax.value_and_grad(loss, (0, 1)), x, w))

    assert ("i8", "i8", "i32") in kinds("int8") and len(kinds("int8")) == 3
    assert kinds("fp8") == [
        ("f8E4M3FN", "f8E4M3FN", "f32"),
        ("f8E4M3FN", "f8E5M2", "f32"),
        ("f8E5M2", "f8E4M3FN", "f32"),
    ]


@pytest.mark.core
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_zeros_give_zeros_and_what_is_not_finite_shows(precision):
    x, w = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((8, 6))
    run = jax.jit(
        jax.value_and_grad(lambda x, w: einsum("bd,df->bf", x, w, precision).sum(), (0, 1))
    )
    value, grads = run(0 * x, 0 * w)
    assert value == 0 and all((g == 0).all() for g in grads)
    assert np.isfinite(run(1e-37 * x, 1e-37 * w)[0])
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        assert not np.isfinite(run(x.at[2, 3].set(bad), w)[0])
        assert not np.isfinite(run(x, w.at[3, 2].set(bad))[0])
    history = jnp.ones((2, HISTORY))
    for bad in (jnp.nan, jnp.inf):
        assert not np.isfinite(fp8_einsum("bd,df->bf", x.at[2, 3].set(bad), w, history)[0].sum())
    pull = jax.vjp(lambda x, w: einsum("bd,df->bf", x, w, precision), x, w)[1]
    for bad in (jnp.nan, jnp.inf):
        dx, dw = pull(jnp.ones((4, 6), jnp.bfloat16).at[1, 1].set(bad))
        assert not np.isfinite(dx).all() and not np.isfinite(dw).all()


@pytest.mark.core
def test_the_scale_of_fp8_is_the_largest_of_its_history():
    """Seen from outside: numbers of a grid come back as the grid of that scale rounds them."""
    x = jnp.full((1, 1), 0.33, jnp.bfloat16)
    w = jnp.ones((1, 1))
    history = jnp.zeros((2, HISTORY)).at[0, 3].set(0.7).at[0, 9].set(0.2).at[1].set(1.0)
    y, new = fp8_einsum("bd,df->bf", x, w, history)
    scale = np.float32(MARGIN) * np.float32(0.7) / np.float32(448)
    rounded = (x.astype(jnp.float32) / scale).astype(jnp.float8_e4m3fn).astype(jnp.float32) * scale
    assert y[0, 0] == rounded[0, 0].astype(jnp.bfloat16) != x[0, 0]
    np.testing.assert_array_equal(new[:, 0], [x[0, 0].astype(float), 1.0])
    np.testing.assert_array_equal(new[:, 1:], history[:, :-1])


@pytest.mark.core
def test_without_a_history_or_beyond_it_an_operand_is_scaled_by_what_it_holds():
    x, w = operands("btd,df->btf")
    now, _ = fp8_einsum("btd,df->btf", x, w)
    first, history = fp8_einsum("btd,df->btf", x, w, empty_history())
    np.testing.assert_array_equal(first, now)
    assert history[0, 0] == jnp.abs(x).max() and (history[:, 1:] == 0).all()
    outlier, _ = fp8_einsum("btd,df->btf", 1000 * x, 1000 * w, history)
    expected, _ = fp8_einsum("btd,df->btf", 1000 * x, 1000 * w)
    np.testing.assert_array_equal(outlier, expected)  # and nothing saturates


@pytest.mark.core
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_population_under_vmap_has_scales_of_its_own(precision):
    x, w = operands("btd,df->btf")
    xs, ws = jnp.stack([x, 100 * x]), jnp.stack([w, w / 7])
    run = jax.value_and_grad(
        lambda x, w: einsum("btd,df->btf", x, w, precision).astype(jnp.float32).sum(), (0, 1)
    )
    together = jax.jit(jax.vmap(run))(xs, ws)
    for i in range(2):
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(run(xs[i], ws[i])), strict=True):
            assert error(a[i], b) < 0.02  # with one scale for both, that of x would be about 1
