"""What a kernel must know of the current mesh (jax.set_mesh): its platform and its free axes."""

import math

import jax
from jax.sharding import AxisType

BATCH = ("data", "fsdp", "expert")  # the axes that split a batch
HEADS = ("tensor",)  # the axis that splits heads, and the vocabulary
SEQUENCE = ("seq",)


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": the mesh's own, so that a laptop compiles what a pod runs."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name == "cuda" else name


def automatic(names: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Returns the mesh axes among `names` (None: all) that no enclosing shard_map has taken."""
    mesh = jax.sharding.get_abstract_mesh()
    free = (axis for axis, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Auto)
    return tuple(axis for axis in free if names is None or axis in names)


def extent(names: tuple[str, ...]) -> int:
    """Returns into how many parts the free axes among `names` split an array."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[axis] for axis in automatic(names))


def shards() -> tuple[int, int, int]:
    """Returns the parts into which the mesh splits batch, heads and sequence."""
    return extent(BATCH), extent(HEADS), extent(SEQUENCE)
