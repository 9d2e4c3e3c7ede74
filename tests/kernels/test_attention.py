"""Attention against a float64 softmax written out, for every backend that a CPU can run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research.arguments import InputError
from research.kernels import attention as module
from research.kernels import mesh
from research.kernels.attention import attention, choose

BATCH, LENGTH, HEADS, KV_HEADS, DIM = 2, 12, 4, 2, 8
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 0, 0], [1] * 7 + [2] * 3 + [0] * 2])


def inputs(length=LENGTH, keys=None, batch=BATCH, dim=DIM, kv_heads=KV_HEADS, dtype=jnp.float32):
    keys = length if keys is None else keys
    shapes = [(batch, length, HEADS, dim)] + [(batch, keys, kv_heads, dim)] * 2
    draws = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    return [x.astype(dtype) for x in draws]


def sees(b, t, s, causal, window, segments_bt, kv_segments_bs, query_positions_bt):
    position = t if query_positions_bt is None else query_positions_bt[b, t]
    if causal and s > position:
        return False
    if window is not None and s <= position - window:
        return False
    if segments_bt is None:
        return True
    keys = segments_bt if kv_segments_bs is None else kv_segments_bs
    return segments_bt[b, t] == keys[b, s]


def reference(
    q,
    k,
    v,
    causal=True,
    window=None,
    segments_bt=None,
    kv_segments_bs=None,
    query_positions_bt=None,
):
    """One query at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    rule = (causal, window, segments_bt, kv_segments_bs, query_positions_bt)
    out = np.zeros_like(q)
    for b, t, h in np.ndindex(q.shape[:3]):
        group = h // (q.shape[2] // k.shape[2])
        slots = [s for s in range(k.shape[1]) if sees(b, t, s, *rule)]
        if slots:
            scores = k[b, slots, group] @ q[b, t, h] / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[b, t, h] = weights @ v[b, slots, group] / weights.sum()
    return out


CASES = {
    "causal": {},
    "everything": {"causal": False},
    "window": {"window": 4},
    "window of one": {"window": 1},
    "packed": {"segments_bt": SEGMENTS},
    "packed, window": {"segments_bt": SEGMENTS, "window": 3},
    "packed, both directions": {"segments_bt": SEGMENTS, "causal": False},
    "other keys": {
        "causal": False,
        "segments_bt": np.ones((BATCH, LENGTH), int),
        "kv_segments_bs": np.array([[1] * 9, [1] * 5 + [0] * 4]),
    },
}


@pytest.mark.core
@pytest.mark.parametrize("case", CASES)
def test_attention_equals_a_written_out_softmax(case):
    keys = 9 if case == "other keys" else LENGTH
    q, k, v = inputs(keys=keys)
    out = jax.jit(lambda *qkv: attention(*qkv, **CASES[case]))(q, k, v)
    np.testing.assert_allclose(out, reference(q, k, v, **CASES[case]), atol=2e-6)


@pytest.mark.core
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_one_key_value_head_or_one_for_each_query_head(kv_heads):
    q, k, v = inputs(kv_heads=kv_heads)
    np.testing.assert_allclose(jax.jit(attention)(q, k, v), reference(q, k, v), atol=2e-6)


@pytest.mark.parametrize("case", ["causal", "packed, window", "everything"])
def test_gradients_equal_those_of_a_plain_form(case):
    q, k, v = inputs()
    weight = jax.random.normal(jax.random.key(9), q.shape)
    rule = {"causal": True, "window": None, "segments_bt": None} | CASES[case]
    mask = np.array(
        [
            [
                [sees(b, t, s, *rule.values(), None, None) for s in range(LENGTH)]
                for t in range(LENGTH)
            ]
            for b in range(BATCH)
        ]
    )

    def plain(q, k, v):
        k, v = (jnp.repeat(x, HEADS // KV_HEADS, axis=2) for x in (k, v))
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(DIM)
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf))
        return (weight * jnp.einsum("bhts,bshd->bthd", weights, v)).sum()

    def ours(q, k, v):
        return (weight * attention(q, k, v, **CASES[case])).sum()

    ours, plain = (jax.jit(jax.grad(function, (0, 1, 2)))(q, k, v) for function in (ours, plain))
    for got, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.core
def test_future_key_has_zero_gradient():
    q, k, v = inputs()

    gradients = jax.jit(jax.grad(lambda k, v: attention(q, k, v)[:, 5].sum(), (0, 1)))(k, v)
    for gradient in gradients:
        assert not np.any(gradient[:, 6:])
        assert np.all(np.any(gradient[:, :6], axis=(2, 3)))


@pytest.mark.core
def test_other_segment_has_zero_gradient():
    q, k, v = inputs()

    def of(segment):
        chosen = (SEGMENTS == segment)[:, :, None, None]

        def out(k, v):
            return (attention(q, k, v, segments_bt=SEGMENTS) * chosen).sum()

        return jax.jit(jax.grad(out, (0, 1)))(k, v)

    for segment in (0, 1, 2):
        for gradient in of(segment):
            assert not np.any(np.asarray(gradient)[SEGMENTS != segment])
            assert np.any(np.asarray(gradient)[SEGMENTS == segment])


@pytest.mark.core
def test_a_query_that_sees_no_key_returns_zero_and_moves_nothing():
    q, k, v = inputs()
    blind = {"causal": False, "kv_segments_bs": np.full((BATCH, LENGTH), 7)}

    def loss(q, k, v):
        return (attention(q, k, v, segments_bt=SEGMENTS, **blind) + 1).sum()

    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)
    assert value == q.size and not any(np.any(g) for g in grads)


@pytest.mark.core
@pytest.mark.parametrize("window", [None, 3])
def test_decoding_one_by_one_equals_the_whole_sequence(window):
    q, k, v = inputs()
    whole = jax.jit(lambda q, k, v: attention(q, k, v, window=window))(q, k, v)
    decode = jax.jit(lambda q, k, v, p: attention(q, k, v, window=window, query_positions_bt=p))
    for t in (0, 4, 11):
        # What lies behind the position in the cache must not matter.
        dirty = [np.where(np.arange(LENGTH)[:, None, None] > t, 1e9, x) for x in (k, v)]
        dirty = [x.astype(np.float32) for x in dirty]
        one = decode(q[:, t : t + 1], *dirty, np.full((BATCH, 1), t))
        np.testing.assert_allclose(one, whole[:, t : t + 1], atol=1e-6)


def test_rows_of_a_cache_have_their_own_positions():
    q, k, v = inputs(length=2, keys=LENGTH)
    rule = {"query_positions_bt": np.array([[3, 4], [9, 10]]), "window": 5}
    out = jax.jit(lambda *qkv: attention(*qkv, **rule))(q, k, v)
    np.testing.assert_allclose(out, reference(q, k, v, **rule), atol=2e-6)


def test_bfloat16_is_as_close_as_its_rounding():
    q, k, v = inputs(dtype=jnp.bfloat16)
    out = jax.jit(attention)(q, k, v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, float), reference(q, k, v), atol=0.02)


# The Pallas kernel works on blocks of 128.
PACKED = np.repeat([[1, 2, 2, 0], [1, 1, 2, 3]], 64, axis=1)
SPLASH = {
    "causal": {},
    "window": {"window": 70},
    "packed": {"segments_bt": PACKED},
    "packed, window": {"segments_bt": PACKED, "window": 70},
    "packed, both directions": {"segments_bt": PACKED, "causal": False},
}
SLOW = ("causal", "window", "packed")


def splash(q, k, v, causal=True, window=None, segments_bt=None):
    segments = () if segments_bt is None else (jnp.asarray(segments_bt),) * 2
    return module._splash(q, k, v, *segments, causal=causal, window=window, interpret=True)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in SPLASH]
)
def test_splash_equals_xla_with_its_gradients(case):
    q, k, v = inputs(length=256, dim=16)
    weight = jax.random.normal(jax.random.key(9), q.shape)

    def run(function):
        def loss(*qkv):
            return (weight * function(*qkv, **SPLASH[case])).sum()

        value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)
        return value, *grads

    for got, expected in zip(run(splash), run(attention), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-4, rtol=1e-5)


@pytest.fixture
def eight():
    axes = ("stage", "data", "fsdp", "seq", "tensor", "expert")
    return jax.make_mesh((1, 2, 2, 1, 2, 1), axes, axis_types=(AxisType.Auto,) * 6)


def test_splash_on_eight_devices_equals_xla_on_one(eight):
    q, k, v = inputs(length=128, batch=4, dim=16)
    segments = jnp.asarray(np.repeat([[1, 2]] * 4, 64, axis=1))
    expected = jax.jit(attention)(q, k, v, segments_bt=segments)
    with jax.set_mesh(eight):
        out = jax.jit(splash)(q, k, v, segments_bt=segments)
    assert len(out.sharding.device_set) == 8
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_batch_and_heads_are_split_without_communication(eight):
    spec = NamedSharding(eight, P(("data", "fsdp"), None, "tensor"))
    q, k, v = (jax.device_put(x, spec) for x in inputs(batch=4))
    step = jax.jit(jax.grad(lambda *qkv: attention(*qkv, window=5).sum(), (0, 1, 2)))
    with jax.set_mesh(eight):
        text = step.lower(q, k, v).compile().as_text()
    assert not [line for line in text.splitlines() if "all-" in line or "permute" in line]


@pytest.mark.core
def test_choice_names_the_backend_and_the_reason():
    q, k = (8, 1024, 12, 64), (8, 1024, 4, 64)
    assert choose("auto", "cpu", jnp.float32, q, k)[0] == "xla"
    assert choose("auto", "tpu", jnp.bfloat16, q, k)[0] == "splash"
    assert choose("auto", "gpu", jnp.bfloat16, q, k)[0] == "cudnn"
    for platform, change in {
        "128": ("tpu", {"q_shape": (8, 1000, 12, 64), "k_shape": (8, 1000, 4, 64)}),
        "float32": ("tpu", {"dtype": jnp.float32}),
        "float16": ("tpu", {"dtype": jnp.float16}),
        "seq=2": ("tpu", {"shards": (1, 1, 2)}),
        "tensor=8": ("tpu", {"shards": (1, 8, 1)}),
        "16 devices": ("gpu", {"shards": (16, 1, 1)}),
        "cache": ("gpu", {"cached": True}),
        "head size 160": ("gpu", {"q_shape": (8, 64, 2, 160), "k_shape": (8, 64, 2, 160)}),
        "odd": ("gpu", {"packed": True, "q_shape": (8, 63, 2, 64), "k_shape": (8, 63, 2, 64)}),
    }.items():
        hardware, given = change
        request = {"dtype": jnp.bfloat16, "q_shape": q, "k_shape": k} | given
        name, reason = choose("auto", hardware, **request)
        assert name == "xla" and platform in reason, (name, reason)


def test_a_mesh_of_another_platform_decides(eight):
    tpu = jax.sharding.AbstractDevice("TPU v5 lite", None, platform="tpu")
    with jax.sharding.use_abstract_mesh(eight.abstract_mesh.update(abstract_device=tpu)):
        assert mesh.platform() == "tpu"
    assert mesh.platform() == "cpu"


@pytest.mark.core
@pytest.mark.parametrize(
    "change, message",
    [
        ({"backend": "splash"}, "runs on tpu, and this is cpu"),
        ({"backend": "cudnn"}, "runs on gpu, and this is cpu"),
        ({"backend": "flash"}, "did you mean 'splash'"),
        ({"window": 0}, "at least 1"),
        ({"window": 3, "causal": False}, "and causal"),
        ({"kv_segments_bs": SEGMENTS}, "segments_bt with"),
        ({"query_positions_bt": SEGMENTS, "causal": False}, "query positions"),
    ],
)
def test_what_cannot_be_served_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        attention(*inputs(), **change)


@pytest.mark.core
@pytest.mark.parametrize(
    "shapes, message",
    [
        (((2, 4, 4, 8), (2, 4, 3, 8), (2, 4, 3, 8)), "multiple"),
        (((2, 4, 4, 8), (2, 4, 4, 8), (2, 4, 2, 8)), "one shape"),
        (((2, 4, 4, 8), (2, 4, 4, 16), (2, 4, 4, 16)), "head size"),
        (((2, 4, 4, 8), (2, 5, 4, 8), (2, 5, 4, 8)), "as many keys"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message):
    with pytest.raises(InputError, match=message):
        attention(*(jnp.zeros(shape) for shape in shapes))
