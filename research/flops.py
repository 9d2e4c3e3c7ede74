"""Floating-point operations of a function, counted from its jaxpr, and the peaks of devices.

    full, causal = training_flops(count(loss, abstract_variables, abstract_batch))

Only matrix products and convolutions count, as in published utilisation (MFU, arXiv:2204.02311).
XLA's own cost analysis counts the body of a loop once and a Pallas kernel not at all.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

# Dense bfloat16 peak in FLOP/s of one jax device (vendors' data sheets), by a part of its
# device_kind; the first name that occurs in it holds.
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
    """Floating-point operations, a multiplication and an addition counting two."""

    total: int
    attention: int  # those inside jax.named_scope("attention")


def count(function: Callable, *abstract_args: Any) -> Flops:
    """Returns the FLOPs of one call over all devices; arguments may be jax.ShapeDtypeStructs.

    A scan counts length times, a cond its dearest branch, a while loop its body once (its length is
    unknown), a shard_map on each device, a Pallas kernel for each cell of its grid.
    """
    return _total(jax.make_jaxpr(function)(*abstract_args).jaxpr, False, 1)


def training_flops(forward: Flops) -> tuple[int, int]:
    """Returns (full, causal): three forward passes, with all attention products or half of them.

    Published utilisation uses either, so print both, named. Recomputation counts in neither.
    """
    return 3 * forward.total, 3 * forward.total - 3 * forward.attention // 2


def peak(device: jax.Device) -> float | None:
    """Returns the bfloat16 peak of a device in FLOP/s, or None if the table does not know it."""
    return next((v for name, v in PEAK_FLOPS.items() if name in device.device_kind), None)


def _total(jaxpr: Any, in_attention: bool, experts: int) -> Flops:
    """`experts` = devices that share the experts, each of which sees the tokens of all."""
    total = attention = 0
    for eqn in jaxpr.eqns:
        # A loop or jit starts a new stack, so the scope is handed down. It may read "attention",
        # "layer/attention" or "jvp(attention)".
        scopes = re.split(r"[/()]", str(eqn.source_info.name_stack))
        inside = in_attention or "attention" in scopes
        if eqn.primitive.name == "shard_map" and "expert" in eqn.params["newly_manual_axes"]:
            shared = eqn.params["mesh"].shape["expert"]
        else:
            shared = experts
        parts = [_total(jaxpr, inside, shared) for jaxpr in _jaxprs(eqn)]
        if eqn.primitive.name == "cond":
            parts = [max(parts)]
        own = _own(eqn) // (experts if eqn.primitive.name.startswith("ragged_dot") else 1)
        total += own + _repeats(eqn) * sum(part.total for part in parts)
        attention += own * inside + _repeats(eqn) * sum(part.attention for part in parts)
    return Flops(total, attention)


def _own(eqn: Any) -> int:
    """Returns the FLOPs of an operation itself."""
    name, shapes = (
        eqn.primitive.name,
        [x.aval.shape for x in eqn.invars if hasattr(x.aval, "shape")],
    )
    outputs = math.prod(getattr(eqn.outvars[0].aval, "shape", ())) if eqn.outvars else 0
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * outputs * math.prod(shapes[0][axis] for axis in contracted)
    if name.startswith("ragged_dot"):  # each row meets the matrix of its group
        return 2 * outputs * shapes[0][-1]
    if name == "conv_general_dilated":
        taps = math.prod(shapes[1][i] for i in eqn.params["dimension_numbers"].rhs_spec[1:])
        # A dilated input is mostly zeros: a transposed convolution costs what its forward does.
        return 2 * outputs * taps // math.prod(eqn.params["lhs_dilation"])
    if name.startswith("dot_product_attention_fwd"):  # cuDNN: q (b, t, h, d), k (b, s, k, d)
        return 4 * math.prod(shapes[0]) * shapes[1][1]
    return 0


def _jaxprs(eqn: Any) -> Iterator[Any]:
    """Yields the bodies among the parameters of scan, jit, remat, custom_vjp, shard_map, ..."""
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def _repeats(eqn: Any) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return params["length"]
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1
