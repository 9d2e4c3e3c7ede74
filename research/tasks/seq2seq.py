"""From text to text (T5, arXiv:1910.10683): predict each next token of the target.

A batch holds inputs, input_segments (b, s) and tokens, targets, segments, weight (b, t), as
data/corrupt.py's `pair` makes them: span corruption, translation, answers.
"""

import functools
from typing import Any

import jax

from research.arguments import Count, Fraction, InputError, NonNegative
from research.tasks import Aux, Task, predict_next
from research.tasks.bleu import Words, judge
from research.tasks.causal_lm import report


def make(
    vocab_size: Count | None = None,
    chunk: Count | None = None,
    label_smoothing: Fraction = 0.0,
    balance_loss: NonNegative = 0.01,
    router_z_loss: NonNegative = 0.0,
    bleu: Words = "13a",
) -> Task:
    """Returns the task; its arguments are those of causal_lm, and `bleu`, how BLEU finds the words
    of a text."""
    if vocab_size is None:
        raise InputError("seq2seq needs vocab_size, or data that decides it")

    def loss(
        model: Any, variables: dict, batch: dict, key: jax.Array | None, train: bool
    ) -> tuple[tuple[jax.Array, jax.Array], Aux]:
        names = ("inputs", "tokens", "input_segments", "segments")
        (hidden, head), model_state = model.apply(
            variables, *(batch[name] for name in names), method="hidden", key=key, train=train
        )
        return predict_next(
            *(hidden, head, model_state, batch, train),
            vocab_size=vocab_size,
            chunk=chunk,
            label_smoothing=label_smoothing,
            balance_loss=balance_loss,
            router_z_loss=router_z_loss,
        )

    return Task(loss, report, functools.partial(judge, words=bleu))
