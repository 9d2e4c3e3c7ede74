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
) -> tuple[jax.Array, jax.Array]:
    """Returns (loss_sum in nats, correct_sum), float32 scalars weighted by `weight_bt`.

    Products run in the dtype of `hidden_btd` and accumulate in float32. Head columns from
    `vocab_size` on are padding: no probability, no gradient. `chunk` positions are held at a time;
    None: as many as make LOGITS_PER_DEVICE logits. correct_sum, the weight of the arg-max hits, has
    no gradient. Raises InputError for shapes that do not fit.
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
    return _loss(split, hidden_btd, head_dv, targets_bt, weight_bt.astype(jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(split, hidden_btd, head_dv, targets_bt, weight_bt):
    return _run(split, hidden_btd, head_dv, targets_bt, weight_bt, gradient=False)[0]


def _backward(split, residuals, cotangents):
    d_hidden, d_head, nll_bt = ((x * cotangents[0]).astype(x.dtype) for x in residuals)
    return d_hidden, d_head, None, nll_bt


_loss.defvjp(lambda *args: _run(*args, gradient=True), _backward)


def _run(split, hidden_btd, head_dv, targets_bt, weight_bt, gradient):
    """Returns (loss_sum, correct_sum) and, for a gradient, (d_hidden, d_head, nll_bt)."""
    vocab_size, chunks, groups, tensor = split
    (batch, length, width), columns = hidden_btd.shape, head_dv.shape[1]
    dtype, positions, column_v = hidden_btd.dtype, -(-length // chunks), jnp.arange(columns)
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
    head = constrain(head_dv.astype(dtype), None, vocab_axes)

    def step(sums, chunk):
        (loss, correct, d_head_gdv), (h_gbcd, targets_gbc, weight_gbc) = sums, chunk
        logits = wide_einsum("gbcd,dv->gbcv", h_gbcd, head)
        if vocab_size < columns:
            logits = jnp.where(column_v < vocab_size, logits, jnp.finfo(jnp.float32).min)
        top = logits.max(-1, keepdims=True)
        exponentials = jnp.exp(logits - top)
        total = exponentials.sum(-1, keepdims=True)
        is_target = column_v == targets_gbc[..., None]
        nll = (jnp.log(total) + top)[..., 0] - jnp.where(is_target, logits, 0).sum(-1)
        loss += (weight_gbc * nll).sum()
        correct += (weight_gbc * (logits.argmax(-1) == targets_gbc)).sum()
        if not gradient:
            return (loss, correct, d_head_gdv), ()
        d_logits = ((exponentials / total - is_target) * weight_gbc[..., None]).astype(dtype)
        d_h = jnp.einsum("gbcv,dv->gbcd", d_logits, head, precision=exactness(dtype))
        d_head_gdv += wide_einsum("gbcd,gbcv->gdv", h_gbcd, d_logits)
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
