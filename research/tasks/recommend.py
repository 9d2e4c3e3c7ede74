"""What does a user take next? (SASRec, arXiv:1808.09781)

A batch holds tokens, targets, weight, segments and positions (b, t), as data/interactions.py makes
them. The loss is that of causal_lm, a softmax over all items; the paper's is binary, of the next
item and one that was drawn: `negatives`. Reports for the last item of each row whether it is among
the `top` first (HR) and how far in front (NDCG), ranked among all items: against a few drawn ones
another model may seem the better one (Krichene and Rendle, doi:10.1145/3394486.3403226).
"""

from typing import Any

import jax
import jax.numpy as jnp

from research.arguments import Count, InputError
from research.tasks import Aux, Task, predict_next
from research.tasks.causal_lm import report


def make(
    vocab_size: Count | None = None,
    top: Count = 10,
    exclude_history: bool = False,
    negatives: Count | None = None,
    chunk: Count | None = None,
) -> Task:
    """Returns the task; `vocab_size`, the number of items, None: what the data says. With
    `exclude_history`, items of the row are not offered again, and one that was taken again counts
    as missed. `negatives` items are drawn for each place in training (None: all items count);
    `chunk` as for causal_lm. Reports hr@TOP, ndcg@TOP and the perplexity of the softmax."""
    if vocab_size is None:
        raise InputError("recommend needs vocab_size, or data that decides it")

    def loss(
        model: Any, variables: dict, batch: dict, key: jax.Array | None, train: bool
    ) -> tuple[tuple[jax.Array, jax.Array], Aux]:
        inputs = (batch[name] for name in ("tokens", "segments", "positions"))
        keys = (None, None) if key is None else jax.random.split(key)
        (hidden, head), state = model.apply(
            variables, *inputs, method="encode", key=keys[0], train=train
        )
        result, aux = predict_next(
            *(hidden, head, state, batch, train),
            vocab_size=vocab_size,
            chunk=chunk,
            label_smoothing=0.0,
            balance_loss=0.0,
            router_z_loss=0.0,
        )
        if train:
            if negatives is None:
                return result, aux
            shape = (*batch["targets"].shape, negatives)
            drawn = jax.random.randint(keys[1], shape, 0, vocab_size)
            return (binary(hidden, head, batch, drawn), result[1]), aux
        last_b = last(batch["weight"] > 0)
        real_b = jnp.take_along_axis(batch["weight"], last_b[:, None], axis=1)[:, 0]
        target_b = jnp.take_along_axis(batch["targets"], last_b[:, None], axis=1)[:, 0]
        scores_bv = score(hidden, head, batch, last_b, vocab_size, exclude_history)
        rank_b = rank(scores_bv, target_b)
        hit_b = (rank_b <= top).astype(jnp.float32)
        gain_b = hit_b / jnp.log2(1.0 + rank_b)
        found = {f"hr@{top}": hit_b, f"ndcg@{top}": gain_b}
        metrics = {name: (value_b @ real_b, real_b.sum()) for name, value_b in found.items()}
        return result, Aux(aux.model_state, aux.metrics | metrics)

    return Task(loss, report)


def last(real_bt: jax.Array) -> jax.Array:
    """Returns the last place (b,) of each row that is real; 0 where none is."""
    return jnp.where(real_bt, jnp.arange(real_bt.shape[1]), 0).max(1)


def score(
    hidden_btd: jax.Array,
    head_dv: jax.Array,
    batch: dict,
    place_b: jax.Array,
    vocab_size: int,
    exclude_history: bool,
) -> jax.Array:
    """Returns float32 scores (b, v) of all items to follow the item at `place_b`; those of the
    vocabulary's padding, and with `exclude_history` of the row's items, are -inf."""
    hidden_bd = jnp.take_along_axis(hidden_btd, place_b[:, None, None], axis=1)[:, 0]
    wide = dict(preferred_element_type=jnp.float32)
    scores_bv = jnp.einsum("bd,dv->bv", hidden_bd, head_dv.astype(hidden_bd.dtype), **wide)
    refused_bv = jnp.arange(scores_bv.shape[1])[None] >= vocab_size
    if exclude_history:
        rows_b1 = jnp.arange(len(scores_bv))[:, None]
        seen_bt = batch["segments"] > 0
        counts_bv = jnp.zeros(scores_bv.shape).at[rows_b1, batch["tokens"]].add(seen_bt)
        refused_bv = refused_bv | (counts_bv > 0)
    return jnp.where(refused_bv, -jnp.inf, scores_bv)


def rank(scores_bv: jax.Array, target_b: jax.Array) -> jax.Array:
    """Returns the place of each target, from 1 on, behind every item that does not score below it:
    of equal items it is the last, and numbers that are none put it last of all."""
    own_b1 = jnp.take_along_axis(scores_bv, target_b[:, None], axis=1)
    return scores_bv.shape[1] - (scores_bv < own_b1).sum(1)


def binary(
    hidden_btd: jax.Array, head_dv: jax.Array, batch: dict, drawn_btn: jax.Array
) -> jax.Array:
    """Returns the paper's loss, its sum: -log sigmoid of the next item's score, and the mean over
    drawn items of -log(1 - sigmoid). Those that were drawn and are the next item do not count; the
    paper draws none of the user's other items either, here that may happen."""
    table_vd = head_dv.T.astype(hidden_btd.dtype)
    wide = dict(preferred_element_type=jnp.float32)
    right_bt = jnp.einsum("btd,btd->bt", hidden_btd, table_vd[batch["targets"]], **wide)
    wrong_btn = jnp.einsum("btd,btnd->btn", hidden_btd, table_vd[drawn_btn], **wide)
    other_btn = drawn_btn != batch["targets"][..., None]
    wrong_bt = (jax.nn.softplus(wrong_btn) * other_btn).mean(-1)
    return ((jax.nn.softplus(-right_bt) + wrong_bt) * batch["weight"]).sum()
