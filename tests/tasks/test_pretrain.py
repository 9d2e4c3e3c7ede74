"""BERT's pretraining: the loss is the sum of two means, exactly so over a whole split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import bert
from research.tasks import masked_lm, pretrain

VOCAB, CONTEXT, ROWS = 37, 12, 7


@pytest.fixture(scope="module")
def case():
    """A model, its variables, and rows of which no two have as many masks."""
    shape = dict(num_layers=1, num_heads=2, width=16, dropout=0.0)
    model = bert.make(vocab_size=VOCAB, context=CONTEXT, head="pretrain", **shape)
    random = np.random.default_rng(0)
    variables = jax.jit(model.init)(jax.random.key(0))
    variables["params"] = jax.tree.map(lambda x: x * 5, variables["params"])
    batch = {name: random.integers(VOCAB, size=(ROWS, CONTEXT)) for name in ("tokens", "targets")}
    batch["segments"] = np.ones((ROWS, CONTEXT), np.int32)
    batch["types"] = np.broadcast_to(np.arange(CONTEXT) >= 6, (ROWS, CONTEXT)).astype(np.int32)
    weight = np.arange(CONTEXT) < np.arange(1, ROWS + 1)[:, None]
    batch["weight"] = random.permuted(weight, axis=1).astype(np.float32)
    batch["labels"] = random.integers(2, size=ROWS)
    return model, variables, batch


def measure(task, model, variables, batch, train):
    """What a loss returns, its metrics beside it."""
    loss = jax.jit(lambda batch: task.loss(model, variables, batch, None, train))
    (total, weight), aux = loss(batch)
    return total, weight, aux.metrics


def expected(model, variables, batch):
    """Both means, from all logits, by numpy in float64."""
    inputs = (batch["tokens"], batch["segments"], None, batch["types"])
    words, follows = jax.jit(lambda *inputs: model.apply(variables, *inputs)[0])(*inputs)
    log = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))  # noqa: E731
    words, follows = log(np.array(words[..., :VOCAB], float)), log(np.array(follows, float))
    at = np.argwhere(batch["weight"] > 0)
    mlm = -np.mean([words[b, t, batch["targets"][b, t]] for b, t in at])
    nsp = -np.mean([follows[b, batch["labels"][b]] for b in range(ROWS)])
    right = np.mean(follows.argmax(-1) == batch["labels"])
    return mlm, nsp, right


def test_the_loss_is_that_of_masked_tokens_and_that_of_pairs(case):
    model, variables, batch = case
    mlm, nsp, right = expected(model, variables, batch)
    task = pretrain.make(vocab_size=VOCAB, predictions=ROWS)
    total, weight, metrics = measure(task, model, variables, batch, True)
    assert weight == ROWS * (ROWS + 1) / 2
    assert total / weight == pytest.approx(mlm + nsp, rel=1e-5)
    means = {name: float(a / b) for name, (a, b) in metrics.items()}
    assert means["mlm_loss"] == pytest.approx(mlm, rel=1e-5)
    assert means["nsp_loss"] == pytest.approx(nsp, rel=1e-5)
    assert means["nsp_accuracy"] == pytest.approx(right)
    alone = masked_lm.make(vocab_size=VOCAB, predictions=ROWS)
    theirs, *_ = measure(alone, model, variables, batch, True)
    assert theirs / weight == pytest.approx(mlm, rel=1e-5)


def test_a_split_has_one_loss_however_it_is_cut_into_batches(case):
    model, variables, batch = case
    mlm, nsp, _ = expected(model, variables, batch)
    task, totals = pretrain.make(vocab_size=VOCAB, predictions=ROWS), {}
    for begin in range(0, ROWS, 3):  # the last one is filled up with zeros
        part = {}
        for name, value in batch.items():
            rows = value[begin : begin + 3]
            part[name] = np.concatenate(
                [rows, np.zeros((3 - len(rows), *rows.shape[1:]), rows.dtype)]
            )
        *pair, metrics = measure(task, model, variables, part, False)
        for name, (total, weight) in (metrics | {"loss": pair}).items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = before[0] + float(total), before[1] + float(weight)
    assert totals["nsp_loss"][1] == ROWS
    report = task.report(totals, {})
    assert report["loss"] == pytest.approx(mlm + nsp, rel=1e-5)
    assert report["perplexity"] == pytest.approx(np.exp(mlm), rel=1e-5)
    # The mean over batches is another number: this test would see it.
    assert abs(totals["loss"][0] / totals["loss"][1] - (mlm + nsp)) > 1e-3


def test_only_masked_tokens_reach_the_vocabulary_and_both_losses_the_encoder(case):
    model, variables, batch = case
    task = pretrain.make(vocab_size=VOCAB, predictions=ROWS)

    @jax.jit
    @jax.jacrev
    def grads(params):
        _, aux = task.loss(model, variables | {"params": params}, batch, None, True)
        return jnp.stack([aux.metrics[name][0] for name in ("mlm_loss", "nsp_loss")])

    found = grads(variables["params"])
    assert (jnp.abs(found["embed"]).max((1, 2)) > 1e-3).all()
    assert (jnp.abs(found["vocab_bias"]).max(1) > 0).tolist() == [True, False]
    assert (jnp.abs(found["classifier"]["kernel"]).max((1, 2)) > 0).tolist() == [False, True]
