"""What a kernel must know of the current mesh (jax.set_mesh): its platform and its free axes."""

import math

import jax
from jax.sharding import AxisType

BATCH, HEADS, SEQUENCE = ("data", "fsdp", "expert"), ("tensor",), ("seq",)  # what splits each


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": the mesh's own, so that a laptop compiles what a pod runs."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name == "cuda" else name


def free(names: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Returns the mesh axes among `names` (None: all) that no enclosing shard_map has taken."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(a for a, kind in axes if kind == AxisType.Auto and (names is None or a in names))


def shards() -> tuple[int, int, int]:
    """Returns into how many parts the mesh splits the batch, the heads and the sequence."""
    shape = jax.sharding.get_abstract_mesh().shape
    return tuple(math.prod(shape[a] for a in free(names)) for names in (BATCH, HEADS, SEQUENCE))
