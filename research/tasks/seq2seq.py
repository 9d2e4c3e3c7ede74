"""From text to text (T5, arXiv:1910.10683): predict each next token of the target.

A batch holds inputs, input_segments (b, s) and tokens, targets, segments, weight (b, t), as
data/corrupt.py's `pair` makes them: span corruption, translation, answers.
"""

import math
from typing import Any

import jax

from research.arguments import Count, Fraction, InputError, NonNegative
from research.kernels.cross_entropy import cross_entropy
from research.tasks import Aux, Task, routing


def make(
    vocab_size: Count | None = None,
    chunk: Count | None = None,
    label_smoothing: Fraction = 0.0,
    balance_loss: NonNegative = 0.01,
    router_z_loss: NonNegative = 0.0,
) -> Task:
    """Returns the task; its arguments are those of causal_lm."""
    if vocab_size is None:
        raise InputError("seq2seq needs vocab_size, or data that decides it")

    def loss(
        model: Any, variables: dict, batch: dict, key: jax.Array | None, train: bool
    ) -> tuple[tuple[jax.Array, jax.Array], Aux]:
        names = ("inputs", "tokens", "input_segments", "segments")
        (hidden, head), model_state = model.apply(
            variables, *(batch[name] for name in names), method="hidden", key=key, train=train
        )
        total, correct = cross_entropy(
            *(hidden, head, batch["targets"], batch["weight"]),
            vocab_size=vocab_size,
            chunk=chunk,
            label_smoothing=label_smoothing if train else 0.0,
        )
        weight = batch["weight"].sum()
        extra, health = routing(model_state, weight, balance_loss, router_z_loss)
        total = total + extra if train else total
        return (total, weight), Aux(model_state, {"accuracy": (correct, weight)} | health)

    return Task(loss, report)


def report(totals: dict[str, tuple[float, float]], info: dict) -> dict[str, float]:
    """Returns the perplexity of the targets' tokens."""
    nats, tokens = totals["loss"]
    return {"perplexity": math.exp(min(nats / tokens, 700.0))}
