"""Masked language modelling (BERT, arXiv:1810.04805): predict the tokens that were masked.

A batch holds tokens, targets, weight (1 where a token is to be predicted), segments and positions
(b, t), as data/text.py makes them with objective="masked". Logits are computed at these places
only: of 512 positions at 15 %, 77.
"""

from typing import Any

import jax
import jax.numpy as jnp

from research.arguments import Count, InputError
from research.kernels.cross_entropy import cross_entropy
from research.tasks import Aux, Task
from research.tasks.causal_lm import report


def make(vocab_size: Count | None = None, predictions: Count | None = None) -> Task:
    """Returns the task; at most `predictions` places of a row count. Both None: what the data
    says."""
    if vocab_size is None or predictions is None:
        raise InputError("masked_lm needs vocab_size and predictions, or data that decides them")

    def loss(
        model: Any, variables: dict, batch: dict, key: jax.Array | None, train: bool
    ) -> tuple[tuple[jax.Array, jax.Array], Aux]:
        names = ("tokens", "segments", "positions", "types")
        inputs = (batch.get(name) for name in names)
        hidden_btd, state = model.apply(variables, *inputs, method="encode", key=key, train=train)
        variables = variables | {"model_state": state}
        (total, correct, weight), state = fill(
            model, variables, hidden_btd, batch, train, vocab_size, predictions
        )
        return (total, weight), Aux(state, {"accuracy": (correct, weight)})

    return Task(loss, report)


def fill(
    model: Any,
    variables: dict,
    hidden_btd: jax.Array,
    batch: dict,
    train: bool,
    vocab_size: int,
    predictions: int,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Any]:
    """Returns the loss of the masked tokens, added, how many are right, and how many there are; and
    the model's state."""
    count = min(predictions, batch["weight"].shape[1])  # of a narrow bucket, all places
    weight_bp, place_bp = jax.lax.top_k(batch["weight"], count)
    chosen_bpd = jnp.take_along_axis(hidden_btd, place_bp[..., None], axis=1)
    targets_bp = jnp.take_along_axis(batch["targets"], place_bp, axis=1)
    (states, head), state = model.apply(variables, chosen_bpd, method="predict", train=train)
    total, correct = cross_entropy(states, head, targets_bp, weight_bp, vocab_size=vocab_size)
    return (total, correct, weight_bp.sum()), state
