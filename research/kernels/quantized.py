"""Matrix products of 8-bit operands: int8, and float8 with scales from the steps before.

    y_bthk = int8_einsum("btd,dhk->bthk", x_btd, w_dhk)
    y_bthk, history = fp8_einsum("btd,dhk->bthk", x_btd, w_dhk, history)

What is quantised are the products of the layers with their weights: the projections of attention
and of the feed-forward. Embeddings, the head and its logits, attention scores, norms and routers
stay in bfloat16 or float32: they are little work, and small errors there are large ones in the end.
Parameters stay in float32. Results are bfloat16. A spec may hold any letters that occur in two of
its three terms, as every product of two operands does whose gradients are products too.
"""

from functools import partial

import jax
import jax.numpy as jnp

Array = jax.Array
FORWARD, BACKWARD = jnp.float8_e4m3fn, jnp.float8_e5m2
HISTORY = 16  # steps that a scale looks back
# Room above the largest value of the history. It costs one of float8's 18 binades and no precision,
# and the next batch, or one micro-batch of an averaged history, may be that much larger.
MARGIN = 2.0


def int8_einsum(spec: str, x: Array, w: Array) -> Array:
    """Returns einsum(spec, x, w) of operands rounded to int8, summed in int32, in bfloat16.

    Activations have a scale for each token, weights one for each output channel: the largest
    magnitude over the contracted axes becomes 127 (as in arXiv:2105.03536). Sums are exact up to
    133,000 products. The backward pass runs in bfloat16, straight through the rounding
    (arXiv:1308.3432): gradients span more than 127 steps, and rounding them to nearest would lose
    the small ones always, so int8 there needs stochastic rounding on top.
    """
    return _int8(spec, x.astype(jnp.bfloat16), w)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _int8(spec: str, x: Array, w: Array) -> Array:
    a, b, out = _terms(spec)
    (x8, x_scale), (w8, w_scale) = _to_int8(x, a, out), _to_int8(w, b, out)
    sums = jnp.einsum(spec, x8, w8, preferred_element_type=jnp.int32)
    scales = _spread(x_scale, a, out) * _spread(w_scale, b, out)
    return (sums.astype(jnp.float32) * scales).astype(jnp.bfloat16)


def _int8_backward(spec: str, operands: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    product = lambda x, w: jnp.einsum(spec, x, w.astype(jnp.bfloat16))  # noqa: E731
    return jax.vjp(product, *operands)[1](g)


_int8.defvjp(lambda spec, x, w: (_int8(spec, x, w), (x, w)), _int8_backward)


def _to_int8(x: Array, letters: str, out: str) -> tuple[Array, Array]:
    """Returns x / scale in int8, and the scale, which shows what is not finite."""
    x = x.astype(jnp.float32)
    contracted = tuple(i for i, letter in enumerate(letters) if letter not in out)
    scale = _nonzero(jnp.max(jnp.abs(x), axis=contracted, keepdims=True)) / 127
    return jnp.round(x / scale).astype(jnp.int8), scale


def _spread(scale: Array, letters: str, out: str) -> Array:
    """Returns a scale (contracted axes of size 1) in the axes of the result."""
    kept = [letter for letter in out if letter in letters]
    scale = jnp.einsum(f"{letters}->{''.join(kept)}", scale)
    sizes = dict(zip(kept, scale.shape, strict=True))
    return scale.reshape([sizes.get(letter, 1) for letter in out])


def empty_history() -> Array:
    """Returns the history of a product that has not run: largest magnitudes of x and of w."""
    return jnp.zeros((2, HISTORY), jnp.float32)


def fp8_einsum(
    spec: str, x: Array, w: Array, history: Array | None = None
) -> tuple[Array, Array | None]:
    """Returns einsum(spec, x, w) of float8 operands, summed in float32, in bfloat16, and `history`
    with the largest magnitudes of this call in front.

    Operands are e4m3, the incoming gradient is e5m2 (arXiv:2209.05433), each with one scale a
    tensor, and all three products multiply float8. The scales of the operands are delayed: from the
    largest of `history`, as in NVIDIA's Transformer Engine. An operand that would not fit (the
    first step has no history, a batch may be an outlier) is scaled by what it holds, so nothing
    saturates. Without a history that is always so. The gradient's scale is always its own: a
    custom_vjp returns gradients and no state, and flax's way around it, a history that is passed
    off as a parameter with itself as the gradient, would reach clipping, norms and the optimizer.
    """
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    now = jnp.stack([jnp.max(jnp.abs(jax.lax.stop_gradient(v))) for v in (x, w)])
    now = now.astype(jnp.float32)
    largest = now
    if history is not None:
        stored = jnp.max(history, axis=-1)
        # Not finite in x: `now` is chosen for infinity and every result becomes NaN; a NaN stays
        # where it is. Either way the loss shows it, and the guard keeps the history it had.
        largest = jnp.where(now > MARGIN * stored, now, MARGIN * stored)
        history = jnp.concatenate([now[:, None], history[:, :-1]], axis=-1)
    scales = _scale(largest, FORWARD)
    return _fp8(spec, x, w, scales[0], scales[1]), history


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fp8(spec: str, x: Array, w: Array, x_scale: Array, w_scale: Array) -> Array:
    return _fp8_forward(spec, x, w, x_scale, w_scale)[0]


def _fp8_forward(
    spec: str, x: Array, w: Array, x_scale: Array, w_scale: Array
) -> tuple[Array, tuple]:
    x8, w8 = _to_fp8(x, x_scale, FORWARD), _to_fp8(w, w_scale, FORWARD)
    return _product(spec, x8, w8, x_scale, w_scale), (x8, w8, x_scale, w_scale)


def _fp8_backward(spec: str, kept: tuple, g: Array) -> tuple[Array, Array, None, None]:
    x8, w8, x_scale, w_scale = kept
    a, b, out = _terms(spec)
    g_scale = _scale(jnp.max(jnp.abs(g)).astype(jnp.float32), BACKWARD)
    g8 = _to_fp8(g, g_scale, BACKWARD)
    dx = _product(f"{out},{b}->{a}", g8, w8, g_scale, w_scale)
    dw = _product(f"{a},{out}->{b}", x8, g8, x_scale, g_scale)
    return dx, dw, None, None


_fp8.defvjp(_fp8_forward, _fp8_backward)


def _product(spec: str, x8: Array, y8: Array, x_scale: Array, y_scale: Array) -> Array:
    sums = jnp.einsum(spec, x8, y8, preferred_element_type=jnp.float32)
    return (sums * x_scale * y_scale).astype(jnp.bfloat16)


def _scale(largest: Array, dtype: jnp.dtype) -> Array:
    """Returns what to divide by so that `largest` becomes the largest number of `dtype`."""
    return _nonzero(largest) / float(jnp.finfo(dtype).max)


def _to_fp8(x: Array, scale: Array, dtype: jnp.dtype) -> Array:
    # Clipped, because rounding may step over the largest number, and the next one is NaN.
    limit = float(jnp.finfo(dtype).max)
    return jnp.clip(x.astype(jnp.float32) / scale, -limit, limit).astype(dtype)


def _nonzero(largest: Array) -> Array:
    """Returns 1 for what is so small that a scale made of it may be 0."""
    return jnp.where(largest < 1e-30, 1.0, largest)


def _terms(spec: str) -> tuple[str, str, str]:
    operands, out = spec.split("->")
    a, b = operands.split(",")
    return a, b, out
