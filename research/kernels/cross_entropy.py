"""Softmax cross-entropy that never holds the logits of all tokens at once.

    loss_sum, correct_sum = cross_entropy(hidden_btd, head_dv, targets_bt, weight_bt)

The sequence is worked off in chunks, and the forward pass of a gradient also computes each chunk's
gradient while its logits exist: three matrix products, none twice (as Liger, arXiv:2410.10989).
Shapes: b batch, t sequence, d width, v vocabulary, g groups: the parts into which the mesh splits
the batch, c positions of one chunk.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from research.arguments import InputError
from research.kernels import mesh
from research.kernels.matmul import exactness, wide_einsum

LOGITS_PER_DEVICE = 2**27  # 0.5 GiB of float32, enough to keep a device busy


def cross_entropy(
    hidden_btd: jax.Array,
    head_dv: jax.Array,
    targets_bt: jax.Array,
    weight_bt: jax.Array,
    *,
    vocab_size: int | None = None,
    chunk: int | None = None,
    label_smoothing: float | jax.Array = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Returns (loss_sum in nats, correct_sum), float32 scalars weighted by `weight_bt`.

    Products run in the dtype of `hidden_btd` and accumulate in float32. Head columns from
    `vocab_size` on are padding: no probability, no gradient. `chunk` positions are held at a time;
    None: as many as make LOGITS_PER_DEVICE logits. correct_sum, the weight of the arg-max hits, has
    no gradient. `label_smoothing`, which may be a tracer, is the share of each target that goes to
    all columns up to `vocab_size` alike (arXiv:1512.00567); it has no gradient. Raises InputError
    for shapes that do not fit.
    """
    (batch, length, width), (rows, columns) = hidden_btd.shape, head_dv.shape
    if rows != width or not targets_bt.shape == weight_bt.shape == (batch, length):
        given = f"head {head_dv.shape}, targets {targets_bt.shape}, weight {weight_bt.shape}"
        raise InputError(f"cross-entropy: {given} do not fit hidden states {hidden_btd.shape}")
    vocab_size = columns if vocab_size is None else vocab_size
    if not 1 <= vocab_size <= columns:
        raise InputError(f"vocab_size={vocab_size} does not fit a head of {columns} columns")
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk={chunk} is out of range; expected at least 1 position")
    groups, tensor, _ = mesh.shards()
    groups, tensor = (1 if batch % groups else groups), (1 if columns % tensor else tensor)
    chunk = chunk or max(1, LOGITS_PER_DEVICE * groups * tensor // (batch * columns))
    split = (vocab_size, -(-length // chunk), groups, tensor)
    smoothing = None  # of the number 0: nothing to compute
    if not isinstance(label_smoothing, (int, float)) or label_smoothing != 0:
        smoothing = jax.lax.stop_gradient(jnp.asarray(label_smoothing, jnp.float32))
    weight_bt = weight_bt.astype(jnp.float32)
    return _loss(split, hidden_btd, head_dv, targets_bt, weight_bt, smoothing)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(split, *operands):
    return _run(split, *operands, gradient=False)[0]


def _backward(split, residuals, cotangents):
    d_hidden, d_head, nll_bt = ((x * cotangents[0]).astype(x.dtype) for x in residuals)
    return d_hidden, d_head, None, nll_bt, None


_loss.defvjp(lambda *args: _run(*args, gradient=True), _backward)


def _run(split, hidden_btd, head_dv, targets_bt, weight_bt, smoothing, gradient):
    """Returns (loss_sum, correct_sum) and, for a gradient, (d_hidden, d_head, nll_bt)."""
    vocab_size, chunks, groups, tensor = split
    (batch, length, width), columns = hidden_btd.shape, head_dv.shape[1]
    positions, column_v = -(-length // chunks), jnp.arange(columns)
    batch_axes = mesh.free(mesh.BATCH) if groups > 1 else ()
    vocab_axes = mesh.free(mesh.HEADS) if tensor > 1 else ()

    def constrain(x, *axes):
        return jax.lax.with_sharding_constraint(x, P(*axes)) if batch_axes or vocab_axes else x

    def divide(x):  # (b, t, ...) -> (chunks, g, b / g, c, ...), the tail padded with weight 0
        x = jnp.pad(x, [(0, 0), (0, positions * chunks - length)] + [(0, 0)] * (x.ndim - 2))
        # Chunk i holds positions i, i + chunks, ...: so a split of t over the mesh stays one.
        x = x.reshape(groups, batch // groups, positions, chunks, *x.shape[2:])
        return jnp.moveaxis(x, 3, 0)

    def join(x):  # back to (b, t, ...)
        x = jnp.moveaxis(x, 0, 3)
        return x.reshape(batch, positions * chunks, *x.shape[4:])[:, :length]

    # Gathered over fsdp once, in the dtype of the products, instead of in every chunk.
    head = constrain(head_dv.astype(hidden_btd.dtype), None, vocab_axes)

    def step(sums, chunk):
        (loss, correct, d_head_gdv), (h_gbcd, targets_gbc, weight_gbc) = sums, chunk
        logits = wide_einsum("gbcd,dv->gbcv", h_gbcd, head)
        if vocab_size < columns:
            logits = jnp.where(column_v < vocab_size, logits, jnp.finfo(jnp.float32).min)
        top = logits.max(-1, keepdims=True)
        exponentials = jnp.exp(logits - top)
        total = exponentials.sum(-1, keepdims=True)
        target = column_v == targets_gbc[..., None]
        if smoothing is not None:
            spread = jnp.where(column_v < vocab_size, smoothing / vocab_size, 0)
            target = (1 - smoothing) * target + spread
        aimed = jnp.where(target > 0, logits if smoothing is None else logits * target, 0).sum(-1)
        nll = (jnp.log(total) + top)[..., 0] - aimed
        loss += (weight_gbc * nll).sum()
        correct += (weight_gbc * (logits.argmax(-1) == targets_gbc)).sum()
        if not gradient:
            return (loss, correct, d_head_gdv), ()
        d_logits = (exponentials / total - target) * weight_gbc[..., None]
        d_h, d_head = _gradients(d_logits, h_gbcd, head)
        d_head_gdv += d_head
        return (loss, correct, constrain(d_head_gdv, batch_axes, None, vocab_axes)), (d_h, nll)

    # A head gradient for each group, so that devices add theirs up once, after the last chunk. With
    # a single sum the compiler has them do so in every chunk. (A split sequence still may.)
    sums = (jnp.float32(0), jnp.float32(0), jnp.zeros((groups, width, columns) if gradient else ()))
    xs = tuple(map(divide, (hidden_btd, targets_bt, weight_bt)))
    if chunks == 1:
        sums, ys = step(sums, [x[0] for x in xs])
        ys = [y[None] for y in ys]
    else:
        sums, ys = jax.lax.scan(step, sums, xs)
    loss, correct, d_head_gdv = sums
    if not gradient:
        return (loss, correct), ()
    d_hidden_btd, nll_bt = map(join, ys)
    return (loss, correct), (d_hidden_btd, d_head_gdv.sum(0).astype(head_dv.dtype), nll_bt)


def _gradients(d_logits_gbcv, h_gbcd, head_dv):
    """Returns the gradients of the hidden states and, in float32, of the head."""
    dtype, forms = h_gbcd.dtype, ("gbcv,dv->gbcd", "gbcd,gbcv->gdv")
    if dtype != jnp.float16:
        d_logits_gbcv = d_logits_gbcv.astype(dtype)
        d_h = jnp.einsum(forms[0], d_logits_gbcv, head_dv, precision=exactness(dtype))
        return d_h, wide_einsum(forms[1], h_gbcd, d_logits_gbcv)
    # A loss scale arrives in the backward pass, after this product, and float16 has few digits for
    # probabilities below 6e-5: hence a scale of their own. A token's weight may be up to 63.
    d_logits_gbcv = (d_logits_gbcv * 2**10).astype(dtype)
    d_h = (wide_einsum(forms[0], d_logits_gbcv, head_dv) * 2**-10).astype(dtype)
    return d_h, wide_einsum(forms[1], h_gbcd, d_logits_gbcv) * 2**-10
