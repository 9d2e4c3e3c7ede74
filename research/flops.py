"""Floating-point operations of a function, counted from its jaxpr, and the peaks they compare to.

    flops = count(loss, abstract_variables, abstract_batch)
    full, causal = training_flops(flops)              # model FLOPs of one training step

Only matrix products and convolutions count, as in published utilisation (MFU, arXiv:2204.02311).
XLA's own cost analysis counts the body of a loop once, and a Pallas kernel not at all.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

# Dense bfloat16 peak in FLOP/s of one jax device, by a part of its device_kind; the first that
# occurs holds. Sources: the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12 / 2,  # a jax device is half a chip
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


class Flops(NamedTuple):
    total: int
    attention: int  # those inside jax.named_scope("attention")

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.total + other.total, self.attention + other.attention)

    def times(self, repeats: int) -> "Flops":
        return Flops(self.total * repeats, self.attention * repeats)


def count(function: Callable, *abstract_args: Any) -> Flops:
    """Returns the FLOPs of one call over all devices; arguments may be jax.ShapeDtypeStructs.

    A scan counts its length times, a cond its dearest branch, a while loop its body once (its
    length is unknown), a Pallas kernel its body for each cell of its grid, a shard_map its body on
    each device.
    """
    return _of(jax.make_jaxpr(function)(*abstract_args).jaxpr, False)


def training_flops(forward: Flops) -> tuple[int, int]:
    """Returns (full, causal): three forward passes, counting all attention products or half.

    Published utilisation uses either, so print both; recomputation counts in neither.
    """
    return 3 * forward.total, 3 * forward.total - 3 * forward.attention // 2


def peak(device: jax.Device) -> float | None:
    """Returns the bfloat16 peak of a device in FLOP/s, or None if it is not in the table."""
    return next((v for name, v in PEAK_FLOPS.items() if name in device.device_kind), None)


def _of(jaxpr: Any, in_attention: bool) -> Flops:
    flops = Flops(0, 0)
    for eqn in jaxpr.eqns:
        # Inside a loop or a jit the stack starts anew, so the scope is handed down. It can read
        # "attention", "layer/attention" or "jvp(attention)".
        scopes = re.split(r"[/()]", str(eqn.source_info.name_stack))
        inside = in_attention or "attention" in scopes
        own = _own(eqn)
        parts = [_of(inner, inside) for inner in _inner(eqn)]
        if eqn.primitive.name == "cond":
            parts = [max(parts)]
        flops += Flops(own, own if inside else 0)
        flops += sum(parts, Flops(0, 0)).times(_repeats(eqn))
    return flops


def _own(eqn: Any) -> int:
    """Returns the FLOPs of an operation that contains no other."""
    name, shapes = (
        eqn.primitive.name,
        [getattr(x.aval, "shape", ()) for x in eqn.invars],
    )
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return (
            2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shapes[0][i] for i in contracted)
        )
    if name == "conv_general_dilated":
        _, inputs, *window = eqn.params["dimension_numbers"].rhs_spec
        taps = math.prod(shapes[1][i] for i in (inputs, *window))
        # A dilated input is mostly zeros: a transposed convolution costs what its forward does.
        zeros = math.prod(eqn.params["lhs_dilation"])
        return 2 * math.prod(eqn.outvars[0].aval.shape) * taps // zeros
    if name.startswith("dot_product_attention_fwd"):  # cuDNN: q (b, t, h, d), k (b, s, k, d)
        return 4 * math.prod(shapes[0]) * shapes[1][1]
    return 0


def _inner(eqn: Any) -> Iterator[Any]:
    """Yields the jaxprs among the parameters: of scan, jit, remat, custom_vjp, shard_map, ..."""
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def _repeats(eqn: Any) -> int:
    name = eqn.primitive.name
    if name == "scan":
        return eqn.params["length"]
    if name == "pallas_call":
        return math.prod(eqn.params["grid_mapping"].grid)
    if name == "shard_map":
        return math.prod(eqn.params["mesh"].shape[a] for a in eqn.params["newly_manual_axes"])
    return 1
