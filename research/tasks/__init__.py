"""make(**config) -> Task(loss, report, judge, figures).

loss(model, variables, batch, key, train) -> (loss_sum, weight), Aux(model_state, metrics)
report(totals, info) -> numbers of a whole split, from summed metrics and what the data says of it,
    with the right answers as info["gold"] where the data has them as more than numbers
judge(gold) -> score(texts) -> numbers, of a task whose answers are texts: what the model makes of a
    whole split, decoded, beside the right ones (evaluate.py; config.eval.beams)
figures: functions of totals and info by name: each returns a picture of a whole split, which an
    evaluation while training leaves in the workdir

A loss and every metric is a (sum, weight) pair: pairs add exactly over micro-batches, devices,
hosts and evaluation batches.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research import tree
from research.kernels.cross_entropy import cross_entropy


class Aux(NamedTuple):
    """What a loss returns beside its (sum, weight)."""

    model_state: Any
    metrics: dict[str, tuple[Any, Any]]


class Task(NamedTuple):
    """Pure functions; see the module's docstring for their signatures."""

    loss: Callable
    report: Callable
    judge: Callable | None = None
    figures: Mapping[str, Callable] = MappingProxyType({})


def predict_next(
    hidden_btd: jax.Array,
    head_dv: jax.Array,
    model_state: Any,
    batch: dict,
    train: bool,
    *,
    vocab_size: int,
    chunk: int | None,
    label_smoothing: Any,
    balance_loss: Any,
    router_z_loss: Any,
) -> tuple[tuple[jax.Array, jax.Array], Aux]:
    """Returns the loss of a model's states on batch["targets"], by batch["weight"]: what causal
    language models and decoders share. Smoothing and the router's losses count in training only."""
    total, correct = cross_entropy(
        *(hidden_btd, head_dv, batch["targets"], batch["weight"]),
        vocab_size=vocab_size,
        chunk=chunk,
        label_smoothing=label_smoothing if train else 0.0,
    )
    weight = batch["weight"].sum()
    extra, health = routing(model_state, weight, balance_loss, router_z_loss)
    total = total + extra if train else total
    return (total, weight), Aux(model_state, {"accuracy": (correct, weight)} | health)


def name_class(
    logits: jax.Array, batch: dict, classes: int, label_smoothing: Any, train: bool
) -> tuple[tuple[jax.Array, jax.Array], dict[str, tuple[Any, Any]]]:
    """Returns the loss of `logits` (..., classes) on batch["labels"] (...), by batch["weight"], and
    its metrics: what naming a class of a text and of each word share. Smoothing counts in training
    only."""
    labels, weight = batch["labels"], batch["weight"]
    total = weight.sum()
    smoothing = label_smoothing if train else 0.0
    truth, guess = jax.nn.one_hot(labels, classes), jax.nn.one_hot(logits.argmax(-1), classes)
    aim = (1 - smoothing) * truth + smoothing / classes
    nll = -(aim * jax.nn.log_softmax(logits)).sum(-1)
    metrics = {"accuracy": (((guess * truth).sum(-1) * weight).sum(), total)}
    if not train:  # truth by guess
        confusion = jnp.einsum("...,...c,...d->cd", weight, truth, guess)
        metrics["_confusion"] = (confusion, total)
    return ((nll * weight).sum(), total), metrics


def routing(
    model_state: Any, weight: jax.Array, balance: Any, z: Any
) -> tuple[jax.Array | float, dict[str, tuple[Any, Any]]]:
    """Returns what a mixture of experts adds to a loss sum of `weight`, and the router's health.

    `balance` times e sum_i f_i P_i, the mean over layers of arXiv:2101.03961, equation 4, where f_i
    is the share of tokens that expert i serves and P_i its mean probability (top_k at balance);
    `z` times the mean square of log sum exp of the router's logits (arXiv:2202.08906). Both are
    means over the tokens of the batch they are computed on: accumulation adds those of its parts.
    """
    found: dict[str, list] = {}
    for path, leaf in tree.flatten(model_state).items():
        folder, _, name = path.rpartition("/")
        if folder.rpartition("/")[2] == "moe":
            leaf = leaf.reshape(-1, leaf.shape[-1]) if name in ("load", "importance") else leaf
            found.setdefault(name, []).append(jnp.atleast_1d(leaf))
    if not found:
        return 0.0, {}
    load, importance, z_loss, dropped = (
        jnp.concatenate(found[name]) for name in ("load", "importance", "z", "dropped")
    )
    experts, top_k = load.shape[-1], jnp.maximum(load.sum(-1, keepdims=True), 1e-9)
    losses = {
        "balance_loss": experts * (load * importance).sum(-1).mean(),
        "router_z_loss": z_loss.mean(),
    }
    share = load * experts / top_k  # 1 where all experts serve alike
    health = losses | {
        "busiest_expert": share.max(),
        "idle_experts": (share < 0.1).mean(),
        "dropped": dropped.mean(),
    }
    total = balance * losses["balance_loss"] + z * losses["router_z_loss"]
    return weight * total, {name: (weight * x, weight) for name, x in health.items()}
