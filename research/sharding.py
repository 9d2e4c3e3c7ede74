"""The mesh, the one table from logical axis names to mesh axes, and the shardings of a whole state.

Models name the axes of their parameters and activations ("embed", "heads", "batch"); only this file
knows which mesh axis each lies on.
"""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research import tree
from research.arguments import InputError

AXES = ("stage", "data", "fsdp", "seq", "tensor", "expert")
RULES: dict[str, Any] = {
    "batch": ("data", "fsdp", "expert"),
    "sequence": "seq",
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "expert": "expert",
    "layers": None,
    "head_dim": None,
    "groups": ("data", "fsdp"),
    "rank": None,
    "router": None,
    "hidden": None,
    "classes": None,
    "types": None,
    "positions": None,
    "norm": None,
    "taps": None,
    "filters": "tensor",
}
# A leaf of at most so many elements may be replicated where it does not divide.
SMALL = 16_384


def make_mesh(sizes: dict[str, int | None], devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the six-axis mesh; `data=None` takes all the devices that the other axes leave.

    Raises InputError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    for axis in set(AXES) - {"data", "fsdp", "tensor", "expert"}:
        if sizes.get(axis, 1) != 1:
            raise InputError(
                f"config.mesh.{axis}={sizes[axis]}: no model is split along {axis!r} yet; "
                "use data, fsdp, tensor and expert"
            )
    sizes = {axis: sizes.get(axis, 1) for axis in AXES}
    known = int(np.prod([size for size in sizes.values() if size is not None]))
    if sizes["data"] is None:
        sizes["data"] = max(1, len(devices) // known)
    if int(np.prod(list(sizes.values()))) != len(devices):
        given = ", ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
        raise InputError(
            f"config.mesh ({given or 'all axes 1'}) does not fit {len(devices)} devices; "
            "choose sizes whose product is that number"
        )
    # Auto, not Explicit (the default of newer jax): the compiler propagates shardings.
    shape = tuple(sizes.values())
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def spec(*names: str | None) -> P:
    """Returns the PartitionSpec of logical axis names; None is a replicated axis."""
    return P(*(RULES[name] if name else None for name in names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrains an activation to logical axes; does nothing outside a mesh (one device)."""
    if jax.sharding.get_abstract_mesh().size <= 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*names))


def batch_shards(mesh: Mesh | jax.sharding.AbstractMesh) -> int:
    """Returns the number of parts that a batch is split into."""
    return int(np.prod([mesh.shape.get(axis, 1) for axis in RULES["batch"]]))


def batch_sharding(mesh: Mesh, batch: int) -> NamedSharding:
    """Returns the sharding of a batch: its examples over data, fsdp and expert, evenly."""
    shards = batch_shards(mesh)
    if batch % shards:
        raise InputError(
            f"a batch of {batch} does not divide over data x fsdp x expert = {shards}; "
            f"use a multiple of {shards} or a smaller mesh"
        )
    return NamedSharding(mesh, spec("batch"))


def param_shardings(
    mesh: Mesh, axes: Any, shapes: Any, replicate: tuple[str, ...] = ()
) -> tuple[Any, list[str]]:
    """Returns the shardings of parameters and a line for every axis replicated against the rules.

    `axes` holds a tuple of logical names a leaf. A dimension that does not divide is replicated in
    a small leaf or when `replicate` names its axis, and is otherwise an InputError.
    """
    notes = []
    names_of = {
        tree.path_name(path): names
        for path, names in jax.tree_util.tree_leaves_with_path(
            axes, is_leaf=lambda node: isinstance(node, tuple)
        )
    }

    def place(path: str, leaf: Any) -> NamedSharding:
        names = names_of[path]
        entries = []
        for name, size in zip(names, leaf.shape, strict=True):
            rule = RULES[name]
            parts = int(np.prod([mesh.shape[axis] for axis in np.atleast_1d(rule)])) if rule else 1
            if size % parts:
                if leaf.size > SMALL and name not in replicate:
                    raise InputError(
                        f"parameter {path} {leaf.shape}: axis {name!r} of {size} does not divide "
                        f"over mesh axis {rule!r} of {parts}; change one of them, or set "
                        f"config.mesh.replicate={name}"
                    )
                notes.append(f"{path} {leaf.shape}: axis {name!r} does not divide by {parts}")
                rule = None
            entries.append(rule)
        return NamedSharding(mesh, P(*entries))

    return tree.map_named(place, shapes), notes


def state_shardings(mesh: Mesh, state: Any, params: Any) -> tuple[Any, list[str]]:
    """Returns shardings for a whole abstract state and a line for each large replicated leaf.

    A leaf whose path ends in a parameter's path takes that parameter's sharding if the shapes
    agree; a factored statistic keeps the axes that survive; the rows of a square one (n, n), where
    n is the size of neighbouring axes, lie as the first of those; all else is replicated.
    (jax.eval_shape of tx.init drops shardings, which would replicate the moments without a word.)
    """
    known = {path: (leaf.shape, leaf.sharding.spec) for path, leaf in tree.flatten(params).items()}
    notes = []

    def place(path: str, leaf: Any) -> NamedSharding:
        parts = path.split("/")
        suffixes = ("/".join(parts[start:]) for start in range(len(parts)))
        owner = next((suffix for suffix in suffixes if suffix in known), None)
        if owner is not None:
            shape, axes = known[owner]
            axes = tuple(axes) + (None,) * (len(shape) - len(axes))
            if leaf.shape == shape:
                return NamedSharding(mesh, P(*axes))
            kept = [d for d in range(len(shape)) if shape[:d] + shape[d + 1 :] == leaf.shape]
            if len(kept) == 1:  # one axis was summed away; two candidates would be a guess
                return NamedSharding(mesh, P(*axes[: kept[0]], *axes[kept[0] + 1 :]))
            begin = _square_side(shape, leaf.shape)
            if begin is not None:
                return NamedSharding(mesh, P(*axes[: leaf.ndim - 2], axes[begin], None))
        if leaf.size > SMALL:
            notes.append(f"{path} {leaf.shape}: no parameter of this path and shape")
        return NamedSharding(mesh, P())

    return tree.map_named(place, state), notes


def _square_side(shape: tuple[int, ...], square: tuple[int, ...]) -> int | None:
    """Returns the first of the neighbouring axes of `shape` that make a side of `square`."""
    before = len(square) - 2
    if before < 0 or square[-1] != square[-2] or square[:before] != shape[:before]:
        return None
    ranges = [(i, j) for i in range(before, len(shape)) for j in range(i + 1, len(shape) + 1)]
    return next((i for i, j in ranges if int(np.prod(shape[i:j])) == square[-1]), None)


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """Returns `abstract` with a sharding on each leaf: what checkpoints restore onto."""
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        abstract,
        shardings,
    )


def bytes_per_device(abstract: Any) -> int:
    """Returns the bytes that one device holds of an abstract state with shardings."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )


def describe(mesh: Mesh) -> str:
    """Returns the mesh in words: 'data 4 x tensor 2 on 8 cpu devices'."""
    sizes = [f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1]
    kind = re.sub(r"\s+", " ", mesh.devices.flat[0].device_kind)
    return f"{' x '.join(sizes) or 'one device'} on {mesh.size} {kind} device(s)"
