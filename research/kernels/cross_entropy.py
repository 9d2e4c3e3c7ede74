"""Softmax cross-entropy that never holds the logits of all tokens at once.

    loss_sum, correct_sum = cross_entropy(hidden_btd, head_dv, targets_bt, weight_bt)

The sequence is worked off in chunks. The forward pass of a gradient also computes each chunk's
gradient while its logits exist: three matrix products in all, none twice (as Liger does,
arXiv:2410.10989). Shapes: b batch, t sequence, d width, v vocabulary, g the parts into which the
mesh splits the batch, c positions of one chunk.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from research.arguments import InputError
from research.kernels import mesh
from research.kernels.matmul import exactness

LOGITS_PER_DEVICE = 2**27  # 0.5 GiB of float32: enough tokens to keep a device busy


def cross_entropy(
    hidden_btd: jax.Array,
    head_dv: jax.Array,
    targets_bt: jax.Array,
    weight_bt: jax.Array,
    *,
    vocab_size: int | None = None,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns (loss_sum in nats, correct_sum), float32 scalars, weighted by `weight_bt`.

    The products run in the dtype of `hidden_btd` and accumulate in float32. Head columns from
    `vocab_size` on are padding: no probability, no gradient. `chunk` positions are held at a time;
    None: as many as make LOGITS_PER_DEVICE logits. correct_sum, the weight of the arg-max hits, has
    no gradient. Raises InputError for what does not fit.
    """
    (batch, length, width), (rows, columns) = hidden_btd.shape, head_dv.shape
    vocab_size = columns if vocab_size is None else vocab_size
    if rows != width:
        raise InputError(f"head {head_dv.shape} does not fit hidden states of width {width}")
    if not targets_bt.shape == weight_bt.shape == (batch, length):
        given = f"targets {targets_bt.shape} and weight {weight_bt.shape}"
        raise InputError(f"{given} do not fit hidden states of {(batch, length)} tokens")
    if not 1 <= vocab_size <= columns:
        raise InputError(f"vocab_size={vocab_size} does not fit a head of {columns} columns")
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk={chunk} is out of range; expected at least 1 position")
    groups, tensor, _ = mesh.shards()
    groups = 1 if batch % groups else groups
    tensor = 1 if columns % tensor else tensor
    chunk = chunk or max(1, LOGITS_PER_DEVICE * groups * tensor // (batch * columns))
    split = (vocab_size, -(-length // chunk), groups, tensor > 1)
    return _loss(split, hidden_btd, head_dv, targets_bt, weight_bt.astype(jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(split, hidden_btd, head_dv, targets_bt, weight_bt):
    return _run(split, hidden_btd, head_dv, targets_bt, weight_bt, gradient=False)[0]


def _forward(split, hidden_btd, head_dv, targets_bt, weight_bt):
    return _run(split, hidden_btd, head_dv, targets_bt, weight_bt, gradient=True)


def _backward(split, residuals, cotangents):
    d_hidden, d_head, nll_bt = residuals
    scale = cotangents[0]
    return (
        (scale * d_hidden).astype(d_hidden.dtype),
        scale * d_head,
        None,
        scale * nll_bt,
    )


_loss.defvjp(_forward, _backward)


def _run(split, hidden_btd, head_dv, targets_bt, weight_bt, gradient):
    """Returns (loss_sum, correct_sum) and, for a gradient, (d_hidden, d_head, nll_bt)."""
    vocab_size, chunks, groups, vocab_is_split = split
    (batch, length, width), columns = hidden_btd.shape, head_dv.shape[1]
    dtype, positions = hidden_btd.dtype, -(-length // chunks)
    exact = dict(precision=exactness(dtype))
    batch_axes = mesh.automatic(mesh.BATCH) if groups > 1 else ()
    vocab_axes = mesh.automatic(mesh.HEADS) if vocab_is_split else ()

    def constrain(x, *axes):
        return jax.lax.with_sharding_constraint(x, P(*axes)) if batch_axes or vocab_axes else x

    def divide(
        x,
    ):  # (b, t, ...) -> (chunks, g, b / g, c, ...), the tail padded with weight 0
        x = jnp.pad(x, [(0, 0), (0, positions * chunks - length)] + [(0, 0)] * (x.ndim - 2))
        # Chunk i holds the positions i, i + chunks, ...: thus a split of t over the mesh survives.
        x = x.reshape(groups, batch // groups, positions, chunks, *x.shape[2:])
        return jnp.moveaxis(x, 3, 0)

    def join(x):  # back to (b, t, ...)
        x = jnp.moveaxis(x, 0, 3)
        return x.reshape(batch, positions * chunks, *x.shape[4:])[:, :length]

    # Gathered over fsdp once and in the products' dtype, not in every chunk.
    head = constrain(head_dv.astype(dtype), None, vocab_axes)
    column_v = jnp.arange(columns)

    def step(carry, chunk):
        loss, correct, d_head_gdv = carry
        h_gbcd, target_gbc, weight_gbc = chunk
        logits = jnp.einsum(
            "gbcd,dv->gbcv", h_gbcd, head, preferred_element_type=jnp.float32, **exact
        )
        if vocab_size < columns:
            logits = jnp.where(column_v < vocab_size, logits, jnp.finfo(jnp.float32).min)
        top = logits.max(-1, keepdims=True)
        exponentials = jnp.exp(logits - top)
        total = exponentials.sum(-1, keepdims=True)
        is_target = column_v == target_gbc[..., None]
        nll = (jnp.log(total) + top)[..., 0] - jnp.where(is_target, logits, 0).sum(-1)
        loss += (weight_gbc * nll).sum()
        correct += (weight_gbc * (logits.argmax(-1) == target_gbc)).sum()
        if not gradient:
            return (loss, correct, d_head_gdv), None
        d_logits = ((exponentials / total - is_target) * weight_gbc[..., None]).astype(dtype)
        d_h = jnp.einsum("gbcv,dv->gbcd", d_logits, head, **exact)
        d_head_gdv += jnp.einsum(
            "gbcd,gbcv->gdv",
            h_gbcd,
            d_logits,
            preferred_element_type=jnp.float32,
            **exact,
        )
        return (loss, correct, constrain(d_head_gdv, batch_axes, None, vocab_axes)), (
            d_h,
            nll,
        )

    # One head gradient for each part of the batch: it is reduced over the devices once, at the
    # end. A single sum would be reduced in every chunk.
    d_head_gdv = jnp.zeros((groups, width, columns) if gradient else ())
    carry = (jnp.float32(0), jnp.float32(0), d_head_gdv)
    xs = tuple(map(divide, (hidden_btd, targets_bt, weight_bt)))
    if chunks == 1:
        carry, ys = step(carry, jax.tree.map(lambda x: x[0], xs))
        ys = jax.tree.map(lambda y: y[None], ys)
    else:
        carry, ys = jax.lax.scan(step, carry, xs)
    loss, correct, d_head_gdv = carry
    if not gradient:
        return (loss, correct), None
    d_hidden, nll_bt = map(join, ys)
    return (loss, correct), (d_hidden, d_head_gdv.sum(0).astype(head_dv.dtype), nll_bt)
