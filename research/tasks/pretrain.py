"""BERT's pretraining (arXiv:1810.04805): masked tokens, and whether a second segment follows.

A batch holds tokens, targets, weight (1 where a token is to be predicted), segments, types (b, t)
and labels (b,), 0 where the segments follow each other, as data/next_sentence.py makes them. The
loss is the sum of two means: over masked tokens, and over pairs.
"""

from typing import Any

import jax
import jax.numpy as jnp

from research.arguments import Count, InputError
from research.tasks import Aux, Task, causal_lm
from research.tasks.masked_lm import fill


def make(vocab_size: Count | None = None, predictions: Count | None = None) -> Task:
    """Returns the task; at most `predictions` places of a row count. Both None: what the data says.

    The mean over pairs is that of the batch which it is computed on: accumulation adds those of its
    parts, weighted by their masked tokens. Reports mlm_loss, accuracy (of masked tokens), nsp_loss,
    nsp_accuracy, and of a whole split the loss exactly."""
    if vocab_size is None or predictions is None:
        raise InputError("pretrain needs vocab_size and predictions, or data that decides them")

    def loss(
        model: Any, variables: dict, batch: dict, key: jax.Array | None, train: bool
    ) -> tuple[tuple[jax.Array, jax.Array], Aux]:
        inputs = (batch.get(name) for name in ("tokens", "segments", "positions", "types"))
        hidden_btd, state = model.apply(variables, *inputs, method="encode", key=key, train=train)
        variables = variables | {"model_state": state}
        # Without a key: as published, no dropout in front of the two classes.
        logits_b2, state = model.apply(variables, hidden_btd, method="classify", train=train)
        variables = variables | {"model_state": state}
        (total, correct, weight), state = fill(
            model, variables, hidden_btd, batch, train, vocab_size, predictions
        )
        labels_b = batch["labels"]
        real_b = (batch["segments"][:, 0] > 0).astype(jnp.float32)  # not what fills a last batch
        pairs = real_b.sum()
        log_b2 = jax.nn.log_softmax(logits_b2)
        nsp = -jnp.take_along_axis(log_b2, labels_b[:, None], axis=1)[:, 0] @ real_b
        right = (logits_b2.argmax(-1) == labels_b) @ real_b
        metrics = {"mlm_loss": (total, weight), "accuracy": (correct, weight)}
        metrics |= {"nsp_loss": (nsp, pairs), "nsp_accuracy": (right, pairs)}
        both = total + weight * nsp / jnp.maximum(pairs, 1.0)
        return (both, weight), Aux(state, metrics)

    return Task(loss, report)


def report(totals: dict[str, tuple[float, float]], info: dict) -> dict[str, float]:
    """Returns the loss of a whole split, which is no mean over its batches, and the perplexity of
    masked tokens."""
    mlm, nsp = (totals[name][0] / totals[name][1] for name in ("mlm_loss", "nsp_loss"))
    masked = causal_lm.report({"loss": totals["mlm_loss"]}, {})
    return {"loss": float(mlm + nsp), "perplexity": masked["perplexity"]}
