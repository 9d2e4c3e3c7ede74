"""Runs whose answers are texts: searched for by generate, judged by evaluate."""

import json
import sys

import jax
import pytest
import sacrebleu

from research import config as config_lib
from research.__main__ import main
from research.arguments import InputError
from research.evaluate import evaluate
from research.generate import generate
from research.metrics import read
from research.train import train
from tests.faulty_runs import load as load_gpt

WORDS = dict(one="eins", two="zwei", three="drei", four="vier", five="acht")


def load(folder, *more):
    """A config that learns a few lines by heart."""
    given = [f"config.data.path={folder}", "config.data.context=16", "config.steps=150"]
    given += ["config.optim.lr.peak=1e-2", "config.eval.every=150", "config.checkpoint.every=150"]
    given += ["config.log.tensorboard=False", "config.log.every=50", "config.task.bleu=char"]
    return config_lib.load("configs/nlp/translation.py:tiny", [*given, *more])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A folder with pairs of words; those to be judged hold some that are not as learned."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [(f"{a} {b}", f"{WORDS[a]} {WORDS[b]}") for a in WORDS for b in WORDS][:19]
    judged = rows[:16] + [("one two three", "eins zwei drei")]
    for split, kept in (("train", rows), ("validation", judged)):
        lines = [json.dumps(dict(source=a, target=b)) for a, b in kept]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def learned(pairs, tmp_path_factory):
    """A workdir of such a run."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    train(load(pairs), str(folder))
    return folder


def judged(pairs, answers):
    rows = [json.loads(line) for line in (pairs / "validation.jsonl").read_text().splitlines()]
    gold = [row["target"] for row in rows]
    answers = [answer["text"] for answer in answers([row["source"] for row in rows])]
    equal = [answer == one for answer, one in zip(answers, gold, strict=True)]
    assert 0 < sum(equal) < len(equal)
    return {
        "bleu": sacrebleu.corpus_bleu(answers, [gold], tokenize="char").score,
        "chrf": sacrebleu.corpus_chrf(answers, [gold]).score,
        "exact_match": sum(equal) / len(equal),
    }


@pytest.mark.parametrize("beams", [None, pytest.param(3, marks=pytest.mark.slow)])
def test_a_split_is_judged_by_what_generate_answers(learned, pairs, beams, capsys):
    searched = dict(beams=beams, length_penalty=2.0) if beams else dict(temperature=0.0)
    answers = lambda prompts: generate(str(learned), prompts, **searched)  # noqa: E731
    given = [f"config.eval.beams={beams}", "config.eval.length_penalty=2.0"] if beams else []
    found = evaluate(str(learned), overrides=given)
    right = judged(pairs, answers)
    assert {name: found[name] for name in right} == pytest.approx(right)
    assert 0 < found["bleu"] < 100 and found["loss"] > 0
    # Buckets have an order of their own, in which the answers would not meet their texts.
    again = evaluate(str(learned), overrides=[*given, "config.data.buckets=(10,16)"])
    assert {name: again[name] for name in right} == pytest.approx(right)
    assert "bleu" not in evaluate(str(learned), overrides=["config.eval.beams=None"])


def test_the_signature_is_said_once(learned, capsys):
    from research.tasks import bleu

    bleu._say.cache_clear()
    for _ in range(2):
        bleu.judge(["eins zwei"], "13a")
    bleu.judge(["eins zwei"], "char")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(f"version:{sacrebleu.__version__}" in line for line in lines)
    assert "tok:13a" in lines[0] and "tok:char" in lines[1]


@pytest.mark.slow
def test_a_run_decodes_on_its_way_only_when_asked(learned, pairs, tmp_path):
    numbers = [line for line in read(learned / "metrics.jsonl") if line["split"] == "validation"]
    assert numbers and not any("bleu" in line for line in numbers)
    more = ["config.steps=10", "config.eval.every=5", "config.eval.beams=2"]
    more += ["config.checkpoint.best=chrf", "config.checkpoint.best_mode=max"]
    train(load(pairs, *more), str(tmp_path / "run"))
    numbers = read(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in numbers if "bleu" in line] == [5, 10]
    # Numbers by other beams are no numbers to find the best one by.
    with pytest.raises(InputError, match="eval.beams"):
        train(load(pairs, *more, "config.eval.beams=3"), str(tmp_path / "run"))


def test_who_stops_asking_is_not_left_with_the_mesh_of_the_run(learned):
    before = jax.sharding.get_mesh()
    answers = generate(str(learned), ["one two", "two one"], temperature=0.0)
    next(answers)
    assert jax.sharding.get_mesh() == before


def test_what_has_no_texts_is_not_judged(text, pairs, tmp_path, monkeypatch):
    config = config_lib.override(load_gpt(text), ["config.eval.beams=2"])
    with pytest.raises(InputError, match="task causal_lm over data .* has no texts to judge by"):
        train(config, str(tmp_path / "gpt"))
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)  # importing it raises ImportError
    with pytest.raises(InputError, match=r"pip install 'anneal\[nlp\]'"):
        train(load(pairs, "config.eval.beams=2"), str(tmp_path / "pairs"))
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.slow
def test_one_beam_answers_as_greedy_does(whole):
    prompts = ["the cat", "a mat and"]
    greedy = list(generate(str(whole), prompts, max_tokens=6, temperature=0.0))
    searched = list(generate(str(whole), prompts, max_tokens=6, beams=1))
    assert all(answer.pop("score") < 0 for answer in searched) and searched == greedy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beams=0"], "--beams=0 is out of range; expected at least 1"),
        (["--beams=2", "--temperature=0.5"], "--temperature=0.5 draws at random, --beams=2"),
        (["--beams=2", "--top-k=3"], "--top-k=3 draws at random"),
        (["--beams=2", "--top-p=0.5"], "--top-p=0.5 draws at random"),
        (["--beams=2", "--seed=3"], "--seed=3 draws at random"),
        (["--beams=2", "--length-penalty=-1"], "--length-penalty=-1.0 is out of range"),
        (["--length-penalty=1"], "--length-penalty=1.0 is of a beam search; add --beams=N"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_beams_beside_sampling_and_odd_numbers_are_refused(whole, arguments, message, capsys):
    assert main(["generate", f"--workdir={whole}", "--prompt=a", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
