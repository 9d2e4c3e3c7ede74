"""Answers found in windows: the search, the choice, the numbers, and what SQuAD says of them."""

import json
import re
import string
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research import build, config, evaluate
from research.data.questions import Gold
from research.tasks import span
from research.tasks.answers import score, words


def published(answer, gold, language):
    """Exact match and F1 by the papers' words, with none of the code under test."""

    def normal(text):
        text = text.lower()
        if language == "en":
            for mark in string.punctuation:
                text = text.replace(mark, "")
            text = re.sub(r"\b(a|an|the)\b", " ", text)
            return " ".join(text.split())
        result = []
        for one in text:
            if one in string.punctuation or unicodedata.category(one)[0] == "P":
                continue
            result += [" ", one, " "] if 0x4E00 <= ord(one) <= 0x9FA5 else [one]
        return " ".join("".join(result).split())

    def f1(one, other):
        one, other = normal(one).split(), normal(other).split()
        if not one or not other:
            return float(one == other)
        left, same = list(other), 0
        for word in one:
            if word in left:
                left.remove(word)
                same += 1
        if not same:
            return 0.0
        precision, recall = same / len(one), same / len(other)
        return 2 * precision * recall / (precision + recall)

    gold = [one for one in gold if normal(one)] or [""]
    return max(float(normal(answer) == normal(g)) for g in gold), max(f1(answer, g) for g in gold)


PIECES = st.sampled_from(
    ["The ", "a", "an ", " the", "Panthers", "308", "½", "£5", "“", "”", "-", "'s", ".", "，", "黑",
     "豹", "队", "分", "\u3000", " ", "\t", "É", "İ", "_", "$", "^", "、", "ㄅ", "\u9fa6", "x"]
)  # fmt: skip
ANSWERS = st.lists(PIECES, max_size=6).map("".join) | st.text(max_size=5)


@settings(max_examples=400, deadline=None)
@given(ANSWERS, st.lists(ANSWERS, max_size=3), st.sampled_from(["en", "zh"]))
def test_scores_are_those_of_the_published_definitions(answer, gold, language):
    np.testing.assert_allclose(
        score(answer, gold, language), published(answer, gold, language), rtol=1e-12
    )


def test_what_counts_as_a_word():
    assert words("The Panthers' (308) an-d £5", "en") == ["panthers", "308", "and", "£5"]
    assert words("黑豹队，丢了 308 分。", "zh") == ["黑", "豹", "队", "丢", "了", "308", "分"]
    assert words("黑豹队，丢了", "en") == ["黑豹队，丢了"]
    assert score("308 points", ["308", "the 308 points!"], "en") == (1, 1)
    assert score("308 points", ["308"], "en") == (0, pytest.approx(2 / 3))
    assert score("", [], "en") == (1, 1) and score("x", [], "en") == (0, 0)
    assert score("", ["x"], "en") == (0, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 14), st.integers(1, 9), st.integers(0, 9))
def test_the_search_finds_what_trying_all_pairs_finds(seed, longest, question, passage):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(1, 24, 2)).astype(np.float32)
    types = np.zeros((1, 24), np.int32)
    begin = question + 2
    types[0, begin : begin + passage + 1] = 1
    best, start, end, none = np.asarray(span.search(jnp.array(logits), types, longest))[0]
    assert none == pytest.approx(logits[0, 0].sum(), rel=1e-5)
    pairs = {
        (s, e): logits[0, s, 0] + logits[0, e, 1]
        for s in range(begin, begin + passage)
        for e in range(s, min(s + longest, begin + passage))
    }
    if pairs:
        assert (int(start), int(end)) == max(pairs, key=pairs.get)
        assert best == pytest.approx(max(pairs.values()), rel=1e-5)
    else:
        assert best <= span.NEVER


class Fixed:
    """A model that gives the logits in its batch."""

    def apply(self, variables, tokens, *_, **__):
        return jnp.take(variables["logits"], tokens[:, 0], axis=0), {}


def rows(logits, batch, number):
    """Batches of windows of 6: first, question, end, two tokens, end."""
    for begin in range(0, len(logits), batch):
        index = np.arange(begin, begin + batch)
        real = index < len(logits)
        turn = np.zeros((batch, number), np.float32)
        turn[real, begin // batch] = 1
        shape = (batch, 6)
        yield dict(
            tokens=np.broadcast_to(np.minimum(index, len(logits) - 1)[:, None], shape),
            segments=np.ones(shape, np.int32) * real[:, None],
            types=np.array([0, 0, 0, 1, 1, 1]) * real[:, None],
            starts=np.full(batch, 3),
            ends=np.full(batch, 4),
            weight=real.astype(np.float32),
            turn=turn,
        )


@pytest.mark.parametrize("batch", [1, 2, 4, 7])
def test_the_windows_of_a_question_are_judged_together_whatever_the_batch(batch):
    logits = np.zeros((5, 6, 2), np.float32)
    logits[0, 3], logits[1, 4] = 2.0, 3.0  # question 0: the second window is surer
    logits[2:, 0] = [[9, 9], [5, 5], [1, 1]]  # question 1: no answer by the first two windows
    logits[2:, 3] = [[2, 2], [2, 2], [3, 3]]
    texts = ["w0", "w1", "w2", "w3", "w4"]
    gold = Gold(
        [range(2), range(2, 5)], [["w1 4 4"], []], lambda r, s, e: (f"{texts[r]} {s} {e}", 0)
    )
    for options, exact in (({}, 0.5), (dict(unanswerable=True), 0.5), (
        dict(unanswerable=True, threshold=-5.0), 1.0)):  # fmt: skip
        task = span.make(**options)
        totals = {}
        for one in rows(logits, batch, -(-5 // batch)):
            pair, aux = task.loss(Fixed(), {"logits": logits}, one, None, False)
            for name, (total, weight) in (aux.metrics | {"loss": pair}).items():
                before = totals.get(name, (0.0, 0.0))
                totals[name] = before[0] + np.asarray(total, float), before[1] + float(weight)
        assert totals["loss"][1] == 5
        logs = jax.nn.log_softmax(logits, axis=1)
        assert totals["loss"][0] == pytest.approx(
            -float((logs[:, 3, 0] + logs[:, 4, 1]).sum()) / 2, rel=1e-5
        )
        report = task.report(totals, {"gold": gold})
        assert report["exact_match"] == exact, options
    assert task.report(totals, {"gold": None}) == {}


def test_a_run_learns_to_answer_and_reports_a_whole_split(tmp_path):
    passage = "red green blue gold pink grey. It went on and on, as texts do, to no end. One is %s."
    colours = "red green blue gold pink grey".split()
    for split in ("train", "validation"):
        paragraphs = [
            dict(
                context=passage % colour,
                qas=[dict(id=colour, question="?", answers=[
                    dict(text=colour, answer_start=(passage % colour).rindex(colour))])],
            )
            for colour in colours
        ]  # fmt: skip
        (tmp_path / f"{split}.json").write_text(
            json.dumps(dict(data=[dict(paragraphs=paragraphs)]))
        )
    overrides = [f"config.data.{o}" for o in (
        f"path={tmp_path}", "context=64", "stride=32", "max_question=8")]  # fmt: skip
    overrides += ["config.task.unanswerable=False", "config.steps=60", "config.eval.batch=4"]
    overrides += ["config.model.dropout=0.0", "config.optim.lr.peak=0.01"]
    run = build.build(config.load("configs/nlp/questions.py:tiny", overrides), jax.devices()[:1])
    source = build.make_source(run.config, "validation")
    assert source.info["windows"] == 12
    with jax.set_mesh(run.mesh):
        step, state = build.jit_train_step(run), build.init(run)
        measure = lambda: evaluate.evaluate_split(  # noqa: E731
            run, jax.jit(run.eval_step), build.weights(state, "raw"), source
        )
        first = measure()
        batches = build.batches(run, run.source)
        for _ in range(60):
            state, _ = step(state, next(batches))
        batches.close()
        last = measure()
    assert first["exact_match"] < 0.5 and last["exact_match"] == last["f1"] == 1.0
