"""Rounding to few bits, held against exact expectations and the spacing of the numbers."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from research.checkpoint import Checkpoints
from research.checksum import checksums
from research.kernels.rounding import FP8, pack, stochastic_round, unpack

KINDS = pytest.mark.parametrize("dtype", [jnp.bfloat16, FP8], ids=["bf16", "fp8"])


def neighbours(dtype, x):
    """The numbers of `dtype` around |x|, from a table of all that are finite."""
    codes = np.arange(2 ** (8 * jnp.dtype(dtype).itemsize), dtype=f"u{jnp.dtype(dtype).itemsize}")
    with np.errstate(invalid="ignore"):
        table = codes.view(jnp.dtype(dtype)).astype(np.float64)
    table = np.unique(table[np.isfinite(table)])
    index = np.searchsorted(table, x, side="right") - 1
    return table[index], table[index + 1]


@pytest.mark.core
@KINDS
@pytest.mark.parametrize("x", [1.0123, -1.0123, 3e-3, -0.0051, 1.7e-3, 77.7, 5e-4])
def test_the_mean_of_many_roundings_is_the_number(dtype, x):
    """5e-4 and 1.7e-3 lie below float8's least number, 2^-9, and 0.0051 among its subnormals."""
    many, x = 20_000, float(np.float32(x))
    got = np.asarray(
        stochastic_round(jnp.full(many, x), dtype, jax.random.key(3)).astype(jnp.float32), float
    )
    low, high = neighbours(dtype, x)
    assert set(got) <= {low, high}
    share = (x - low) / (high - low)
    assert abs((got == high).mean() - share) < 4.5 * (share * (1 - share) / many) ** 0.5


@pytest.mark.core
@KINDS
def test_what_needs_no_rounding_stays(dtype):
    x = jax.random.normal(jax.random.key(0), (400_000,)).astype(dtype)
    x = jnp.concatenate([x, jnp.zeros(3, dtype), -x]).astype(jnp.float32)
    got = jax.jit(lambda x: stochastic_round(x, dtype, jax.random.key(1)))(x)
    np.testing.assert_array_equal(np.asarray(got, np.float32), x)


def test_float8_keeps_all_its_subnormals_and_its_largest_number():
    x = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    got = np.asarray(stochastic_round(jnp.asarray(x), FP8, jax.random.key(0)), np.float32)
    np.testing.assert_array_equal(got, x)


@pytest.mark.core
@KINDS
def test_zero_and_the_tiniest_numbers_never_become_nan(dtype):
    x = jnp.array([0.0, -0.0, 1e-45, 1e-38, -3e-38, 1e-36])
    got = stochastic_round(jnp.tile(x, 100), dtype, jax.random.key(0)).astype(jnp.float32)
    assert np.isfinite(got).all() and (np.abs(got) <= 1.1e-36).all()


@KINDS
def test_not_finite_is_what_a_cast_makes_of_it_and_the_key_decides_the_rest(dtype):
    odd = jnp.array([jnp.inf, -jnp.inf, jnp.nan])
    with np.errstate(invalid="ignore"):
        got = np.asarray(stochastic_round(odd, dtype, jax.random.key(0)), np.float32)
        np.testing.assert_array_equal(got, np.asarray(odd.astype(dtype), np.float32))
    x = jax.random.normal(jax.random.key(5), (1000,))
    round_ = lambda seed: np.asarray(stochastic_round(x, dtype, jax.random.key(seed)), np.float32)  # noqa: E731
    np.testing.assert_array_equal(round_(1), round_(1))
    assert (round_(1) != round_(2)).mean() > 0.2
    np.testing.assert_array_equal(
        np.asarray(stochastic_round(x, dtype, None), np.float32),
        np.asarray(x.astype(dtype), np.float32),
    )


@pytest.mark.core
def test_a_second_moment_falls_only_when_rounded_stochastically():
    """b2 = 0.999 takes 0.1 % off, less than half of bfloat16's spacing."""

    def after(stochastic):
        def step(nu, key):
            return stochastic_round(nu.astype(jnp.float32) * 0.999, jnp.bfloat16, key), None

        def nearest(nu, key):
            return (nu.astype(jnp.float32) * 0.999).astype(jnp.bfloat16), None

        keys = jax.random.split(jax.random.key(0), 1000)
        start = jnp.ones(2000, jnp.bfloat16)
        return jax.jit(lambda: jax.lax.scan(step if stochastic else nearest, start, keys)[0])()

    assert (after(False) == 1).all()
    np.testing.assert_allclose(after(True).astype(jnp.float32).mean(), 0.999**1000, rtol=0.01)


def statistics():
    """An Adam state of one matrix: signed and non-negative rows over eight decades."""
    size = jnp.logspace(-4, 4, 64)[:, None]
    mu = size * jax.random.normal(jax.random.key(0), (64, 128))
    mu = mu.at[3].set(0.0).at[4].set(3e-37).at[4, 0].set(0.0)
    nu = (size * jax.random.normal(jax.random.key(1), (64, 128))) ** 2 + 1e-30
    nu = nu.at[3].set(0.0)
    params = {"w": jnp.zeros((64, 128))}
    state = optax.ScaleByAdamState(jnp.int32(7), {"w": mu}, {"w": nu})
    return {"adam": state}, params


@pytest.mark.core
def test_packed_statistics_are_near_and_a_positive_one_never_zero():
    state, params = statistics()
    pack_ = jax.jit(lambda s, k: pack(s, params, "fp8", k))
    packed = pack_(state, jax.random.key(0))
    assert packed["values"]["adam"].mu["w"].dtype == packed["values"]["adam"].nu["w"].dtype == FP8
    got, old = unpack(packed, params, "fp8")["adam"], state["adam"]
    assert got.count == 7
    largest = jnp.abs(old.mu["w"]).max(-1, keepdims=True)
    # An eighth of the number itself, or float8's least number beside the row's largest.
    bound = jnp.maximum(jnp.abs(old.mu["w"]) / 8, largest * 2**-9 / 448)
    assert (jnp.abs(got.mu["w"] - old.mu["w"]) <= bound * 1.001 + 1e-33).all()
    root, least = jnp.sqrt(old.nu["w"]), jnp.sqrt(old.nu["w"].max(-1, keepdims=True)) * 2**-9 / 448
    error = jnp.abs(jnp.sqrt(got.nu["w"]) - root)
    assert (error <= jnp.maximum(root / 8, least) * 1.001).all()
    assert ((got.nu["w"] > 0) == (old.nu["w"] > 0)).all()


@pytest.mark.core
def test_a_packed_row_never_steps_over_the_largest_number():
    """x / (largest / 448) may be 448.00003, and what follows 448 is NaN."""
    params = {"w": jnp.zeros((20_000, 2))}
    mu = jax.random.uniform(jax.random.key(0), (20_000, 2), minval=1e-3)
    state = optax.ScaleByAdamState(jnp.int32(0), {"w": mu}, {"w": mu})
    for seed in range(3):
        packed = pack(state, params, "fp8", jax.random.key(seed))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(unpack(packed, params, "fp8")))


def test_what_is_no_statistic_of_a_large_parameter_stays_float32():
    params = {"small": jnp.zeros((4, 4)), "w": jnp.zeros((64, 128)), "bias": jnp.zeros(8192)}
    state = optax.scale_by_adam().init(params)
    packed = pack(state, params, "bf16")
    dtypes = {name: str(leaf.dtype) for name, leaf in packed["values"].mu.items()}
    assert dtypes == {"small": "float32", "w": "bfloat16", "bias": "float32"}
    assert pack(state, params, "fp32") is state and unpack(state, params, "fp32") is state


@pytest.mark.core
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_adam_with_packed_statistics_ends_where_adam_ends(kind):
    """Least squares of a 64 x 64 matrix from noisy targets, 300 steps with a falling rate: the loss
    ends within 2 % of that of Adam in float32."""
    x = jax.random.normal(jax.random.key(0), (512, 64))
    y = x @ jax.random.normal(jax.random.key(1), (64, 64)) / 8
    y = y + 0.3 * jax.random.normal(jax.random.key(2), y.shape)
    params = {"w": jnp.zeros((64, 64))}
    adam = optax.scale_by_adam(b2=0.99)
    loss = lambda p, x, y: jnp.mean((x @ p["w"] - y) ** 2)  # noqa: E731

    def train(kind):
        def step(carry, i):
            params, packed = carry
            state = unpack(packed, params, kind)
            rows = jax.random.randint(jax.random.fold_in(jax.random.key(3), i), (64,), 0, 512)
            grads = jax.grad(loss)(params, x[rows], y[rows])
            updates, state = adam.update(grads, state)
            rate = 0.02 * (1 - i / 300)
            params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
            return (params, pack(state, params, kind, jax.random.key(i))), None

        start = (params, pack(adam.init(params), params, kind))
        return jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(300))[0][0])()

    np.testing.assert_allclose(loss(train(kind), x, y), loss(train("fp32"), x, y), rtol=0.02)


def test_float8_survives_a_checkpoint_and_every_flipped_bit_changes_its_checksum(tmp_path):
    state, params = statistics()
    state = {"opt_state": pack(state, params, "fp8", jax.random.key(0))}
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        checkpoints.check_arrays(1)
        restored = checkpoints.restore(1, abstract)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert old.dtype == new.dtype and np.asarray(old).tobytes() == np.asarray(new).tobytes()
    x = state["opt_state"]["values"]["adam"].mu["w"]
    bits = jax.lax.bitcast_convert_type(x, jnp.uint8)
    sums = {checksums({"x": x})["x"]}
    for bit in range(8):
        flipped = jax.lax.bitcast_convert_type(bits.at[5, 7].set(bits[5, 7] ^ (1 << bit)), FP8)
        sums.add(checksums({"x": flipped})["x"])
    assert len(sums) == 9
    assert checksums({"x": x.at[0, 0].set(jnp.nan)}).nonfinite == ("x",)
