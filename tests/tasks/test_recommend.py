"""Recommendations: the metrics by brute force, what is not seen, and from a file to an answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import build
from research import config as config_lib
from research.arguments import InputError
from research.evaluate import evaluate, evaluate_split
from research.generate import generate
from research.models import gpt
from research.models.functional import Model
from research.tasks import recommend
from research.train import train

ITEMS = 12


def fake(hidden, head):
    """A model whose states and head are given."""
    apply = lambda variables, *inputs, **how: ((hidden, head), {})  # noqa: E731
    return Model(None, None, apply)


def example(seed=0, rows=40, length=5):
    """Small whole numbers: many scores are equal."""
    random = np.random.default_rng(seed)
    hidden = random.integers(-2, 3, (rows, length, 2)).astype(np.float32)
    head = random.integers(-2, 3, (2, 128)).astype(np.float32)
    batch = {name: random.integers(ITEMS, size=(rows, length)) for name in ("tokens", "targets")}
    counts = random.integers(1, length + 1, rows)
    batch["segments"] = (np.arange(length) < counts[:, None]).astype(int)
    batch["positions"] = np.zeros((rows, length), int)
    batch["weight"] = (np.arange(length) == counts[:, None] - 1).astype(np.float32)
    batch["weight"][-3:] = 0  # the padding of the last batch
    return hidden, head, batch


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("top", [1, 4, 10])
def test_the_metrics_are_those_of_a_list_sorted_by_hand(top, exclude):
    hidden, head, batch = example()
    task = recommend.make(ITEMS, top, exclude)
    _, aux = task.loss(fake(hidden, head), {}, batch, None, False)
    hits, gains = [], []
    for row in range(len(hidden) - 3):
        place = int(batch["segments"][row].sum()) - 1
        scores = hidden[row, place] @ head[:, :ITEMS]
        target = batch["targets"][row, place]
        seen = set(batch["tokens"][row, : place + 1]) if exclude else set()
        # Of equal ones the target comes last, and what is not offered behind all that is.
        key = lambda i: (i in seen, -scores[i], i == target)  # noqa: B023, E731
        place = sorted(range(ITEMS), key=key).index(target)
        missed = target in seen or place >= top
        hits.append(0.0 if missed else 1.0)
        gains.append(0.0 if missed else 1 / np.log2(place + 2))
    for name, values in ((f"hr@{top}", hits), (f"ndcg@{top}", gains)):
        total, weight = aux.metrics[name]
        assert weight == len(values)
        np.testing.assert_allclose(total, np.sum(values), rtol=1e-6)
    assert 0 < np.mean(hits) < 1


def test_a_model_that_knows_nothing_or_is_broken_hits_nothing():
    """Equal scores, and such that are no numbers, would else put every target first."""
    hidden, head, batch = example()
    for value in (0.0, np.nan):
        _, aux = recommend.make(ITEMS).loss(fake(hidden * value, head), {}, batch, None, False)
        assert aux.metrics["hr@10"][0] == 0


def test_the_binary_loss_is_the_papers():
    hidden, head, batch = example()
    drawn = np.random.default_rng(1).integers(ITEMS, size=(*batch["targets"].shape, 3))
    batch["weight"][:] = batch["segments"]
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    total = 0.0
    for row, place in np.argwhere(batch["weight"] > 0):
        state, target = hidden[row, place].astype(float), batch["targets"][row, place]
        total -= np.log(sigmoid(state @ head[:, target]))
        for item in drawn[row, place]:
            if item != target:
                total -= np.log(1 - sigmoid(state @ head[:, item])) / 3
    found = recommend.binary(jnp.asarray(hidden), jnp.asarray(head), batch, drawn)
    np.testing.assert_allclose(found, total, rtol=1e-5)


def test_a_place_does_not_see_the_items_behind_it():
    model = gpt.make(vocab_size=ITEMS, context=6, num_layers=2, num_heads=1, width=10, mlp="relu")
    variables = model.init(jax.random.key(0))
    _, _, batch = example(rows=4, length=6)
    batch["segments"][:], batch["positions"][:] = 1, np.arange(6)
    batch["weight"][:] = np.arange(6) == 2
    later = batch | {name: batch[name].copy() for name in ("tokens", "targets")}
    for name in ("tokens", "targets"):
        later[name][:, 3:] = (later[name][:, 3:] + 5) % ITEMS
    task = recommend.make(ITEMS)
    numbers = jax.jit(lambda batch: task.loss(model, variables, batch, None, False))
    one, other = numbers(batch), numbers(later)
    assert one[0][0] == other[0][0] and one[1].metrics == other[1].metrics
    batch["tokens"][:, 2] = (batch["tokens"][:, 2] + 1) % ITEMS
    assert one[0][0] != numbers(batch)[0][0]


@pytest.mark.parametrize("negatives", ["None", "1"])
@pytest.mark.slow
def test_who_goes_in_circles_is_foreseen(negatives, tmp_path):
    """30 items, each followed by the next: after short training the held-out one is known."""
    walks = [(user, (user * 7 + time) % 30, time) for user in range(60) for time in range(12)]
    (tmp_path / "u.data").write_text("".join(f"{u}\t{i}\t{t}\n" for u, i, t in walks))
    given = [f"path={tmp_path / 'u.data'}", "columns=user,item,time", "context=12"]
    given = [f"config.data.{text}" for text in given] + [f"config.task.negatives={negatives}"]
    given += ["config.steps=150", "config.batch=32", "config.optim.lr.peak=1e-2"]
    config = config_lib.load("configs/nlp/recommend.py:tiny", given)
    run = build.build(config, jax.devices()[:1])
    source = build.make_source(run.config, "test")
    state, step = build.init(run), build.jit_train_step(run)
    eval_step = jax.jit(run.eval_step)
    with jax.set_mesh(run.mesh):
        before = evaluate_split(run, eval_step, build.weights(state, "raw"), source)
        batches = build.batches(run, run.source)
        for _ in range(config.steps):
            state, _ = step(state, next(batches))
        batches.close()
        after = evaluate_split(run, eval_step, build.weights(state, "raw"), source)
    assert before["hr@10"] < 0.7
    assert after["hr@10"] > 0.99 and after["ndcg@10"] > 0.95


@pytest.mark.slow
def test_a_run_answers_by_the_names_of_items_and_refuses_others(tmp_path):
    folder = str(tmp_path / "run")
    given = ["config.steps=4", "config.optim.lr.warmup=2", "config.log.tensorboard=False"]
    train(config_lib.load("configs/nlp/recommend.py:tiny", given), folder)
    numbers = evaluate(folder, split="test")
    assert 0 <= numbers["ndcg@10"] <= numbers["hr@10"] <= 1
    long = " ".join(["1", "2"] * 20)  # more than the context holds
    one, tabs, longer = generate(folder, ["4 29 24", "4\t29\t24", long])
    assert one["items"] == tabs["items"] and len(longer["items"]) == 10
    chances = list(one["items"].values())
    assert chances == sorted(chances, reverse=True) and 0 < sum(chances) < 1
    assert set(one["items"]) <= {str(i) for i in range(60)}
    fresh = next(generate(folder, ["4 29 24"], overrides=["config.task.exclude_history=True"]))
    assert not {"4", "29", "24"} & set(fresh["items"])
    for prompt, message in (
        ("4 soap", "the item 'soap' of the prompt '4 soap'"),
        (" ", "no items"),
    ):
        with pytest.raises(InputError, match=message):
            list(generate(folder, [prompt]))
    walks = [(user, f"x{(user + time) % 60}", time) for user in range(60) for time in range(8)]
    (tmp_path / "other").write_text("".join(f"{u}\t{i}\t{t}\n" for u, i, t in walks))
    other = [f"config.data.path={tmp_path / 'other'}", "config.data.columns=user,item,time"]
    with pytest.raises(InputError, match="the data has other items than the run was trained with"):
        evaluate(folder, split="test", overrides=other)
