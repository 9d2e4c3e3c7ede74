"""Checksums of arrays, computed where the arrays lie, that do not depend on how they are sharded.

    sums = checksums(state)     # {"params/embed": "9f2c41d07be3a516", ...}

The bits of each element, as unsigned integers, are added up mod 2^32 twice: plainly, and times an
odd weight made of the element's place in the whole array. Addition commutes, so every sharding
gives the same value; an odd weight times a change of one word is never 0, so such a change is
always seen. Each device sums what it holds itself, so the same program shows when two devices that
should hold the same numbers do not: silent data corruption.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research import tree
from research.arguments import RunError

ODD = 2654435761  # Knuth's multiplicative hash: 2^32 over the golden ratio, made odd


class ReplicaError(RunError):
    """Devices that should hold the same numbers do not: one of them, or a link, is faulty."""


class Sums(dict):
    """{path: checksum}, and in `nonfinite` the paths of float arrays that hold NaN or infinity."""

    nonfinite: tuple[str, ...] = ()


def checksums(state: Any) -> Sums:
    """Returns 16 hexadecimal digits for each leaf of a pytree of arrays on devices.

    Every process calls this and gets the same. Raises ReplicaError naming the array and the devices
    when copies of one shard differ.
    """
    leaves = {path: _on_device(leaf) for path, leaf in tree.flatten(state).items()}
    by_mesh: dict[Mesh, list[str]] = {}
    for path, leaf in leaves.items():
        by_mesh.setdefault(leaf.sharding.mesh, []).append(path)
    found, nonfinite = {}, []
    for mesh, paths in by_mesh.items():
        specs = tuple(tuple(leaves[path].sharding.spec) for path in paths)
        sums = np.asarray(_program(mesh, specs)([leaves[path] for path in paths]))
        for path, spec, of_leaf in zip(paths, specs, sums.swapaxes(0, 1), strict=True):
            shard = _shard_of_device(mesh, spec)
            first = np.unique(shard, return_index=True)[1]
            _refuse_different_copies(path, mesh, shard, of_leaf[:, :2])
            weighted, plain = of_leaf[first, :2].sum(axis=0, dtype=np.uint64) % (1 << 32)
            found[path] = f"{weighted:08x}{plain:08x}"
            if not of_leaf[:, 2].all():
                nonfinite.append(path)
    result = Sums({path: found[path] for path in leaves})
    result.nonfinite = tuple(path for path in leaves if path in nonfinite)
    return result


def _on_device(leaf: Any) -> jax.Array:
    """The leaf with a NamedSharding, which says along which axes of a mesh it is split."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    leaf = jnp.asarray(leaf)
    if isinstance(leaf.sharding, NamedSharding):
        return leaf
    (device,) = leaf.sharding.device_set
    return jax.device_put(leaf, NamedSharding(Mesh(np.array([device]), ("one",)), P()))


@functools.lru_cache(maxsize=16)
def _program(mesh: Mesh, specs: tuple) -> Any:
    """Compiled: arrays -> (devices, arrays, 3) sums of what each device holds, the same on all."""

    def on_each_device(leaves: list[jax.Array]) -> jax.Array:
        rows = [_sums(leaf, spec, mesh) for leaf, spec in zip(leaves, specs, strict=True)]
        return jnp.stack(rows)[None]

    everywhere = jax.shard_map(
        on_each_device,
        mesh=mesh,
        in_specs=([P(*spec) for spec in specs],),
        out_specs=P(mesh.axis_names),
        check_vma=False,  # copies are looked at one by one, as if they could differ
    )
    return jax.jit(everywhere, out_shardings=NamedSharding(mesh, P()))


def _sums(x: jax.Array, spec: tuple, mesh: Mesh) -> jax.Array:
    """(weighted sum, plain sum, 1 if all is finite) of one device's part of an array."""
    is_float = jnp.issubdtype(x.dtype, jnp.inexact)
    finite = jnp.isfinite(x).all() if is_float else jnp.bool_(True)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x, spec = jnp.stack([x.real, x.imag], axis=-1), _full(spec, x.ndim) + (None,)
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    bits = {0: jnp.uint4, 1: jnp.uint8, 2: jnp.uint16}.get(_bytes(x.dtype), jnp.uint32)
    words = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)  # 8 bytes: one axis more
    place, stride = jnp.zeros(words.shape, jnp.uint32), 1
    axes_of = _full(spec, words.ndim)
    for axis in reversed(range(words.ndim)):
        size, offset = words.shape[axis], jnp.uint32(0)
        if axes_of[axis] is not None:
            offset = jax.lax.axis_index(axes_of[axis]).astype(jnp.uint32) * jnp.uint32(size)
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) + offset
        place += index * jnp.uint32(stride % (1 << 32))
        names = axes_of[axis] or ()
        names = names if isinstance(names, tuple) else (names,)
        stride *= size * math.prod(mesh.shape[name] for name in names)
    weights = place * jnp.uint32(ODD) | jnp.uint32(1)
    both = [(words * weights).sum(dtype=jnp.uint32), words.sum(dtype=jnp.uint32)]
    return jnp.stack([*both, finite.astype(jnp.uint32)])


def _bytes(dtype: jnp.dtype) -> int:
    """Whole bytes of an element; 0 for those of four bits."""
    return 0 if dtype.name in ("int4", "uint4", "float4_e2m1fn") else dtype.itemsize


def _full(spec: tuple, ndim: int) -> tuple:
    return tuple(spec) + (None,) * (ndim - len(spec))


@functools.lru_cache(maxsize=1024)
def _shard_of_device(mesh: Mesh, spec: tuple) -> np.ndarray:
    """For each device in the order of the mesh, the number of the shard that it holds."""
    names = [n for axes in spec if axes for n in (axes if isinstance(axes, tuple) else (axes,))]
    shard = np.zeros(mesh.size, np.int64)
    coordinates = dict(zip(mesh.axis_names, np.indices(mesh.devices.shape), strict=True))
    for name in names:
        shard = shard * mesh.shape[name] + coordinates[name].reshape(-1)
    return shard


def _refuse_different_copies(path: str, mesh: Mesh, shard: np.ndarray, sums: np.ndarray) -> None:
    """The minority is named; of two that differ, both."""
    values = sums[:, 0].astype(np.uint64) << np.uint64(32) | sums[:, 1].astype(np.uint64)
    devices = mesh.devices.reshape(-1)
    for number in np.unique(shard):
        holders = np.flatnonzero(shard == number)
        different, counts = np.unique(values[holders], return_counts=True)
        if len(different) == 1:
            continue
        agreed = different[counts.argmax()] if 2 * counts.max() > len(holders) else None
        faulty = [str(devices[h]) for h in holders if values[h] != agreed]
        raise ReplicaError(
            f"silent data corruption: {path} differs on {', '.join(faulty)} from its copies on "
            f"{len(holders)} devices; take that hardware out and go on from the last checkpoint"
        )
