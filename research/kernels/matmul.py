"""The one matrix product through which the layers of every model contract, chosen by precision.

    y_bthk = einsum("btd,dhk->bthk", x_btd, w_dhk, "bf16")

bf16 keeps the parameters in float32 and casts both operands where they meet (arXiv:1905.12322),
and so does fp16; bf16_params keeps them in bfloat16. int8 and fp8 are in quantized.py. fp64 proves
a formula: it needs JAX_ENABLE_X64=1 and parameters in float64.
"""

import jax
import jax.numpy as jnp

from research.arguments import Precision
from research.kernels import mesh
from research.kernels.quantized import fp8_einsum, int8_einsum


def compute_dtype(precision: Precision) -> jnp.dtype:
    """Returns the dtype of activations."""
    kinds = {"fp32": jnp.float32, "fp16": jnp.float16, "fp64": jnp.float64}
    return jnp.dtype(kinds.get(precision, jnp.bfloat16))


def exactness(dtype: jnp.dtype) -> jax.lax.Precision:
    """Returns what keeps a float32 product one: else TPUs round to bfloat16 and GPUs to TF32."""
    exact = dtype in (jnp.float32, jnp.float64)
    return jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT


def wide(x: jax.Array) -> jax.Array:
    """Returns `x` in float32, in which norms, softmax and sums run, or in float64 if it is that."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def einsum(spec: str, x: jax.Array, w: jax.Array, precision: Precision) -> jax.Array:
    """Returns jnp.einsum(spec, x, w) in `compute_dtype(precision)`, accumulated in float32.

    No preferred_element_type: accelerators accumulate a bfloat16 product in float32 and round it
    once (CPUs too, but for some small ones from jax 0.12 on), while asking for a float32 result
    would make both products of the backward pass float32.
    fp8 is scaled by what its operands hold; a layer that keeps a history calls fp8_einsum itself.
    """
    if precision == "int8":
        return int8_einsum(spec, x, w)
    if precision == "fp8":
        return fp8_einsum(spec, x, w)[0]
    dtype = compute_dtype(precision)
    return jnp.einsum(spec, x.astype(dtype), w.astype(dtype), precision=exactness(dtype))


def wide_einsum(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns jnp.einsum(spec, x, y) as its float32 sums: scores, logits and their gradients."""
    if mesh.platform() == "cpu":  # it has no such product of bfloat16 in every layout
        x, y = wide(x), wide(y)
    exact, sums = exactness(x.dtype), jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(spec, x, y, precision=exact, preferred_element_type=sums)
