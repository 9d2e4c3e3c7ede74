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

from research import build, config, evaluate, generate, resume, train, workdir
from research.arguments import InputError
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


@settings(max_examples=25, deadline=None)
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


@pytest.mark.parametrize("batch", [2, 7])
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


PASSAGE = "red green blue gold pink grey. It went on and on, as texts do, to no end. One is %s."
COLOURS = "red green blue gold pink grey".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A workdir that has learned to find the last word, of which one window has none."""
    root = tmp_path_factory.mktemp("questions")
    for split in ("train", "validation"):
        paragraphs = []
        for colour in COLOURS:
            text = PASSAGE % colour
            answer = dict(text=colour, answer_start=text.rindex(colour))
            qas = [dict(id=colour, question="?", answers=[answer])]
            paragraphs.append(dict(context=text, qas=qas))
        (root / f"{split}.json").write_text(json.dumps(dict(data=[dict(paragraphs=paragraphs)])))
    data = (f"path={root}", "context=64", "stride=32", "max_question=8")
    overrides = [f"config.data.{value}" for value in data]
    overrides += ["config.task.unanswerable=False", "config.steps=45", "config.eval.batch=8"]
    overrides += ["config.model.dropout=0.0", "config.optim.lr.peak=0.01", "config.eval.every=45"]
    overrides += ["config.checkpoint.every=45"]
    given = config.load("configs/nlp/questions.py:tiny", overrides)
    train.train(given, str(root / "run"))
    return str(root / "run")


def test_a_run_learns_and_reports_a_whole_split_on_any_mesh(folder):
    wide = evaluate.evaluate(folder)
    assert wide["exact_match"] == wide["f1"] == 1.0
    other = evaluate.evaluate(folder, overrides=["config.mesh.fsdp=4", "config.mesh.tensor=2"])
    assert other["exact_match"] == 1.0
    assert other["loss"] == pytest.approx(wide["loss"], rel=1e-3)


def test_every_host_gets_the_places_of_all_windows(folder):
    given = config.override(workdir.existing_config(folder), ["config.eval.batch=16"])
    run = build.build(given, with_data=False)
    source = build.make_source(given, "validation")
    with jax.set_mesh(run.mesh):
        batch = next(build.batches(run, source, one_pass=True))
        assert len(batch["tokens"].sharding.device_set) == 8
        sums = jax.jit(run.eval_step)(build.weights(build.init(run), "raw"), batch)
    assert sums["_spans"][0].sharding.is_fully_replicated


@pytest.mark.parametrize(("name", "best"), [("questions", "f1"), ("sentiment", "matthews")])
def test_numbers_of_a_report_may_choose_the_best_checkpoint(name, best, tmp_path):
    overrides = [f"config.checkpoint.best={best}", "config.data.cache=" + str(tmp_path)]
    run = build.build(config.load(f"configs/nlp/{name}.py:tiny", overrides))
    validation = build.make_source(run.config, "validation")
    resume.refuse(run, validation, str(tmp_path), None, 0, None, ())
    run = run._replace(config=config.override(run.config, ["config.checkpoint.best=f2"]))
    with pytest.raises(InputError, match="'f2' is not measured; did you mean 'f1'"):
        resume.refuse(run, validation, str(tmp_path), None, 0, None, ())


def test_generate_answers_where_the_passage_says_so(folder):
    prompts = [f"?\t{PASSAGE % 'blue'}", f"?\t{PASSAGE % 'gold'}" + " It is said." * 40]
    first, second = generate.generate(folder, prompts)
    assert first["text"] == "blue" and first["start"] == (PASSAGE % "blue").rindex("blue")
    assert prompts[1].split("\t")[1][second["start"] :].startswith(second["text"])
    assert set(first) == {"prompt", "text", "start", "score"}
    never = ["config.task.unanswerable=True", "config.task.threshold=-1000.0"]
    assert next(generate.generate(folder, prompts[:1], overrides=never))["start"] is None
    with pytest.raises(InputError, match="'red' is not QUESTION, a tab and a PASSAGE"):
        list(generate.generate(folder, ["red"]))
