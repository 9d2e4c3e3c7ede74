"""Causal language modelling: predict each next token.

A batch holds tokens, targets and weight (b, t), and for packed documents segments and positions.
"""

import math
from typing import Any

import jax

from research.arguments import Count, Fraction, InputError, NonNegative
from research.tasks import Aux, Task, predict_next


def make(
    vocab_size: Count | None = None,
    chunk: Count | None = None,
    label_smoothing: Fraction = 0.0,
    balance_loss: NonNegative = 0.01,
    router_z_loss: NonNegative = 0.0,
) -> Task:
    """Returns the task; `chunk` positions of each example have their logits in memory at a time
    (None: about 0.5 GiB a device). `vocab_size` None: what the data says. `label_smoothing` of each
    target is spread over the vocabulary in training; evaluations report the plain loss. The losses
    of a router are those of tasks.routing, in training; a model without experts has none."""
    if vocab_size is None:
        raise InputError("causal_lm needs vocab_size, or data that decides it")

    def loss(
        model: Any, variables: dict, batch: dict, key: jax.Array | None, train: bool
    ) -> tuple[tuple[jax.Array, jax.Array], Aux]:
        inputs = (batch["tokens"], batch.get("segments"), batch.get("positions"))
        (hidden, head), model_state = model.apply(
            variables, *inputs, method="encode", key=key, train=train
        )
        return predict_next(
            *(hidden, head, model_state, batch, train),
            vocab_size=vocab_size,
            chunk=chunk,
            label_smoothing=label_smoothing,
            balance_loss=balance_loss,
            router_z_loss=router_z_loss,
        )

    return Task(loss, report)


def report(totals: dict[str, tuple[float, float]], info: dict) -> dict[str, float]:
    """Returns perplexity, and bits per byte where the data says how many bytes of text it holds."""
    nats, tokens = totals["loss"]
    result = {"perplexity": math.exp(min(nats / tokens, 700.0))}
    if info.get("num_bytes"):
        result["bits_per_byte"] = nats / math.log(2) / info["num_bytes"]
    return result
