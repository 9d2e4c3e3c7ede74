"""Few bits, right on average: stochastic rounding, optimizer statistics in 16 or 8 bits.

    stochastic_round(x, jnp.bfloat16, key)

Rounding to nearest loses whatever is smaller than half the spacing of the numbers: bfloat16 has
steps of 0.4 to 0.8 %, so a parameter ignores an update of 0.1 %, and a second moment with
b2 = 0.999 never falls. Rounding up with the probability of the remainder keeps both on average
(arXiv:1502.02551; for training in bfloat16: arXiv:2010.06192).
"""

from typing import Any

import jax
import jax.numpy as jnp

from research import tree

# Statistics by the name of their field: what may have either sign, and what is never negative.
SIGNED = ("mu", "mu_slow", "m1", "m2", "trace")
NON_NEGATIVE = ("nu", "nu_max", "sum_of_squares", "e_g", "e_x")
SMALL = 4_096  # elements: below, a statistic costs nothing and stays in float32
FP8 = jnp.float8_e4m3fn
FP8_MAX = float(jnp.finfo(FP8).max)
NORMAL = float(jnp.finfo(jnp.float32).smallest_normal)


def stochastic_round(x: jax.Array, dtype: Any, key: jax.Array | None) -> jax.Array:
    """Returns float32 `x` in a narrower floating `dtype`, with x as its expectation.

    Without a key to the nearest. What is out of range or not finite becomes what a cast makes it.
    """
    if key is None:
        return x.astype(dtype)
    x, kind = x.astype(jnp.float32), jnp.finfo(dtype)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0x7F80_0000)
    power = jax.lax.bitcast_convert_type(bits, jnp.float32)  # of two, at most |x|
    # A normal number, or hardware that has no others divides by zero: bfloat16 is therefore rounded
    # to multiples of 1e-38 below 1e-36.
    least = max(float(kind.smallest_normal), NORMAL * 2.0**kind.nmant)
    spacing = jnp.maximum(power, least) * 2.0**-kind.nmant
    below = jnp.floor(x / spacing)
    # Compared, not added: the sum would itself be rounded, and up more often than down.
    up = jax.random.uniform(key, x.shape) < x / spacing - below
    return jnp.where(jnp.isfinite(x), (below + up) * spacing, x).astype(dtype)


def pack(state: Any, params: Any, dtype: str, key: jax.Array | None = None) -> Any:
    """Returns an optimizer state whose statistics of a parameter's shape are stored in `dtype`.

    "bf16" rounds stochastically. "fp8" also divides each row (the last axis) by its largest value,
    as the 8-bit optimizers do by blocks (arXiv:2110.02861), and stores the root of what is never
    negative, floored, so that no step divides by a second moment that was rounded to nothing.
    "fp32" returns `state` as it is.
    """
    if dtype == "fp32":
        return state
    kinds = _kinds(state, params)

    def scale(path: str, x: jax.Array) -> jax.Array:
        largest = jnp.max(jnp.abs(x), axis=-1)
        largest = jnp.sqrt(largest) if kinds[path] == "non-negative" else largest
        # Rows of nothing, or of momenta that have all but died out: no division by a scale of 0.
        return jnp.where(largest < 1e-30, 1.0, largest) / FP8_MAX

    scales = {
        path: scale(path, x)
        for path, x in tree.flatten(state).items()
        if dtype == "fp8" and kinds[path] is not None
    }

    def narrow(path: str, x: jax.Array) -> jax.Array:
        if kinds[path] is None:
            return x
        own = tree.key_of(key, path)
        if dtype == "bf16":
            return stochastic_round(x, jnp.bfloat16, own)
        row = scales[path][..., None]
        if kinds[path] == "signed":
            # A quotient may exceed the largest number by its rounding, and the next one is NaN.
            return stochastic_round(jnp.clip(x / row, -FP8_MAX, FP8_MAX), FP8, own)
        root = jnp.minimum(jnp.sqrt(x) / row, FP8_MAX)
        floored = jnp.maximum(root, float(jnp.finfo(FP8).smallest_subnormal))
        return stochastic_round(jnp.where(x == 0, 0.0, floored), FP8, own)

    return {"values": tree.map_named(narrow, state), "scales": tree.nest(scales)}


def unpack(packed: Any, params: Any, dtype: str) -> Any:
    """Inverse of `pack` but for the rounding: float32 statistics."""
    if dtype == "fp32":
        return packed
    kinds, scales = _kinds(packed["values"], params), tree.flatten(packed["scales"])

    def wide(path: str, x: jax.Array) -> jax.Array:
        if kinds[path] is None:
            return x
        x = x.astype(jnp.float32)
        x = x * scales[path][..., None] if path in scales else x
        return x * x if path in scales and kinds[path] == "non-negative" else x

    return tree.map_named(wide, packed["values"])


def _kinds(state: Any, params: Any) -> dict[str, str | None]:
    """Which statistic of a parameter each leaf is: "signed", "non-negative", or None."""
    shapes = {path: leaf.shape for path, leaf in tree.flatten(params).items()}

    def kind(path: str, leaf: Any) -> str | None:
        parts = path.split("/")
        for index, name in enumerate(parts):
            if name in SIGNED + NON_NEGATIVE:
                same = shapes.get("/".join(parts[index + 1 :])) == leaf.shape
                large = leaf.size >= SMALL and len(leaf.shape) > 1
                found = "signed" if name in SIGNED else "non-negative"
                return found if same and large else None
        return None

    return {path: kind(path, leaf) for path, leaf in tree.flatten(state).items()}
