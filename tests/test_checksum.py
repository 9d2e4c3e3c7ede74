"""Checksums: equal under every sharding, different after any change, and replicas compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.checksum import ReplicaError, checksums

DTYPES = ("float32", "bfloat16", "float16", "int8", "uint32", "bool", "complex64", "int4")
DTYPES += ("float8_e4m3fn",)


def mesh(**axes):
    count = int(np.prod(list(axes.values())))
    return Mesh(np.array(jax.devices()[:count]).reshape(tuple(axes.values())), tuple(axes))


def sample(dtype, shape=(24, 8), seed=0):
    values = np.random.default_rng(seed).standard_normal(shape) * 4
    return jnp.asarray(values).astype(dtype)


def of(x):
    return checksums({"x": x})["x"]


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_sharding_has_the_same_checksum(dtype):
    x, two = sample(dtype), mesh(a=2, b=4)
    expected = of(x)
    for where in (mesh(a=8), two, mesh(a=3)):
        for spec in (P(), P("a"), P(None, "a"), P("a", "b"), P(("b", "a")), P(("a", "b"))):
            names = {n for axes in spec if axes for n in np.atleast_1d(axes)}
            if names <= set(where.axis_names) and not (where.size == 3 and spec == P(None, "a")):
                assert of(jax.device_put(x, NamedSharding(where, spec))) == expected, (where, spec)


def test_the_checksum_is_the_sum_of_the_bits_as_numpy_adds_them():
    """A second source: mod 2^32 arithmetic in numpy, on the values in their order."""
    x = np.random.default_rng(1).standard_normal((5, 7, 3)).astype(np.float32)
    words = x.view(np.uint32).reshape(-1).astype(object)
    weights = [(place * 2654435761 % 2**32) | 1 for place in range(x.size)]
    weighted = sum(w * v for w, v in zip(weights, words, strict=True)) % 2**32
    assert of(jnp.asarray(x)) == f"{weighted:08x}{sum(words) % 2**32:08x}"


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_flipped_bit_a_swap_and_a_zeroed_page_are_always_seen(dtype):
    x = np.asarray(sample(dtype, (4096,)))
    expected, rng = of(jnp.asarray(x)), np.random.default_rng(2)
    for _ in range(60):
        flipped = bytearray(x.tobytes())
        flipped[rng.integers(len(flipped))] ^= 1 << int(rng.integers(8))
        assert of(jnp.asarray(np.frombuffer(bytes(flipped), x.dtype))) != expected
        swapped, (i, j) = x.copy(), rng.integers(len(x), size=2)
        swapped[[i, j]] = swapped[[j, i]]
        assert swapped.tobytes() == x.tobytes() or of(jnp.asarray(swapped)) != expected
        zeroed, i = x.copy(), rng.integers(len(x) - 256)
        zeroed[i : i + 256] = 0
        assert of(jnp.asarray(zeroed)) != expected


def with_a_flipped_replica(x, where, spec, device):
    """An array one device of which holds another bit than its copies."""
    x = jax.device_put(x, NamedSharding(where, spec))
    parts = []
    for shard in x.addressable_shards:
        part = np.array(shard.data)
        if shard.device == device:
            part.reshape(-1).view(np.uint32)[3] ^= 1 << 7
        parts.append(jax.device_put(part, shard.device))
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)


@pytest.mark.core
@pytest.mark.fault("silent data corruption")
@pytest.mark.parametrize("spec", [P(), P("a")], ids=str)
def test_a_flipped_bit_in_one_replica_names_array_and_device(spec, record_property):
    where, device = mesh(a=2, b=4), jax.devices()[5]
    bad = with_a_flipped_replica(sample("float32"), where, spec, device)
    with pytest.raises(ReplicaError, match=r"params/w differs on \S*5 from") as error:
        checksums({"params": {"v": sample("float32"), "w": bad}})
    record_property("observed", f"exit 1: {error.value}")


def test_two_replicas_that_differ_are_both_named():
    where = mesh(a=2)
    bad = with_a_flipped_replica(sample("float32"), where, P(), jax.devices()[1])
    with pytest.raises(ReplicaError, match=r"\S*0, \S*1 from"):
        checksums({"w": bad})


def test_arrays_that_are_not_finite_are_named():
    state = {"a": jnp.ones(3), "b": jnp.array([1.0, jnp.nan]), "c": jnp.array([jnp.inf])}
    assert checksums(state | {"n": jnp.arange(3)}).nonfinite == ("b", "c")
