"""Labels in doubt: what is counted as wrong, what corrections change, what is refused."""

import json

import numpy as np
import pytest

from research import __main__ as command
from research import config as config_lib
from research.arguments import InputError
from research.data import corrections, sentences
from research.review import doubt, review
from research.train import train

MOODS = {"0": ["dull", "bad", "grim", "weak"], "1": ["good", "fine", "warm", "deft"]}
FLIPPED, EXAMPLES = 20, 400


def by_the_words_of_the_paper(chances, given):
    """Equations 1 and 2 of arXiv:1911.00068, example by example."""
    classes = range(len(chances[0]))
    threshold = {}
    for j in classes:
        own = [row[j] for row, label in zip(chances, given, strict=True) if label == j]
        threshold[j] = sum(own) / len(own) if own else float("inf")
    wrong = []
    for row, label in zip(chances, given, strict=True):
        above = [k for k in classes if row[k] >= threshold[k]]
        wrong.append(bool(above) and max(above, key=lambda k: row[k]) != label)
    return wrong


@pytest.mark.parametrize("seed", range(20))
def test_what_is_counted_as_wrong_is_what_the_paper_counts(seed):
    random = np.random.default_rng(seed)
    classes = int(random.integers(3, 6))
    chances = random.dirichlet(np.ones(classes), 60)
    given = random.integers(classes, size=60)
    if seed % 2:  # a class without an example
        given[given == classes - 1] = 0
    scores, likely, wrong = doubt(chances, given)
    assert wrong.tolist() == by_the_words_of_the_paper(chances, given)
    assert 0 < wrong.sum() < 60 and (likely[wrong] != given[wrong]).all()
    own, _, _ = doubt(chances, given, "confidence")
    for row, label, margin, confidence in zip(chances, given, scores, own, strict=True):
        rest = max(p for k, p in enumerate(row) if k != label)
        assert confidence == row[label] and margin == pytest.approx(row[label] - rest)


def test_a_class_that_is_never_sure_is_not_taken_for_wrong():
    """All of class 1 are at 0.4, none at 0.5: by the largest probability all would be wrong."""
    chances = np.array([[0.9, 0.1]] * 5 + [[0.6, 0.4]] * 5 + [[0.95, 0.05]])
    given = np.array([0] * 5 + [1] * 6)
    _, likely, wrong = doubt(chances, given)
    assert np.flatnonzero(wrong).tolist() == [10] and likely[10] == 0


def write(folder, rows):
    folder.mkdir()
    (folder / "train.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in rows))
    (folder / "dev.tsv").write_text("a good one\t1\na bad one\t0\n")
    return folder


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory):
    """A folder of sentences whose mood is plain, 5 % with the other label; and which they are."""
    random = np.random.default_rng(0)
    truth, seen = [], set()
    while len(truth) < EXAMPLES:
        label = random.choice(list(MOODS))
        words = [
            *random.choice(["a", "the", "it", "was", "film"], 3),
            *random.choice(MOODS[label], 2),
        ]
        text = " ".join(random.permutation(words))
        if text not in seen:
            seen.add(text)
            truth.append((text, str(label)))
    flipped = set(random.choice(EXAMPLES, FLIPPED, replace=False).tolist())
    rows = [
        (t, str(1 - int(label)) if i in flipped else label) for i, (t, label) in enumerate(truth)
    ]
    return write(tmp_path_factory.mktemp("sentences") / "data", rows), truth, flipped


def load(folder, *more):
    given = [f"config.data.path={folder}", "config.data.columns=sentence,label", *more]
    given += ["config.data.tokenizer=bpe", "config.data.vocab_size=300", "config.steps=60"]
    given += ["config.model.name=text_cnn", "config.model.width=16", "config.optim.lr.peak=0.01"]
    given += ["config.optim.lr.warmup=5"]
    given += ["config.batch=32", "config.eval.every=60", "config.checkpoint.every=30"]
    return config_lib.load("configs/nlp/sentiment.py:cnn", given + ["config.log.tensorboard=False"])


@pytest.fixture(scope="module")
def run(mislabelled, tmp_path_factory):
    """A workdir that was trained on the wrong labels too."""
    folder = str(tmp_path_factory.mktemp("run") / "run")
    train(load(mislabelled[0]), folder)
    return folder


def names(made):
    return [made.info["classes"][label] for label in made.gold.labels]


def place(line):
    return int(line["where"].rpartition(":")[2]) - 1


@pytest.mark.parametrize("by", ["margin", "confidence"])
def test_the_top_of_the_queue_holds_the_wrong_labels(run, mislabelled, by):
    _, truth, flipped = mislabelled
    lines, count = review(run, top=FLIPPED, by=by)
    assert count == EXAMPLES and len(lines) == FLIPPED
    hits = sum(place(line) in flipped for line in lines)
    assert hits / FLIPPED > 0.8  # chance: 0.05
    assert [line["score"] for line in lines] == sorted(line["score"] for line in lines)
    for line in lines:
        text, label = truth[place(line)]
        assert line["text"] == text and line["correction"] is None
        if place(line) in flipped:
            assert line["suggested"] == label != line["label"]


def test_by_default_the_queue_is_what_is_counted_as_wrong(run, mislabelled):
    """Few here: the model has learned from the wrong labels too."""
    lines, _ = review(run)
    found = {place(line) for line in lines}
    assert found and len(found & mislabelled[2]) >= 0.9 * len(found)
    fresh, count = review(run, split="validation", top=5)
    assert count == len(fresh) == 2 and "dev.tsv:" in fresh[0]["where"]


def test_a_queue_corrects_labels_and_other_corrections_are_drift(
    run, mislabelled, tmp_path, capsys
):
    folder, truth, flipped = mislabelled
    queue = tmp_path / "queue.jsonl"
    assert command.main(["review", f"--workdir={run}", f"--output={queue}", "--top=40"]) == 0
    assert "40 of 400 labels of split train are in doubt" in capsys.readouterr().out
    assert command.main(["review", f"--workdir={run}", f"--output={queue}"]) == 2
    assert "is there already" in capsys.readouterr().err
    lines = [json.loads(line) for line in queue.read_text().splitlines()]
    answered = 0
    for line in lines:
        if place(line) in flipped and answered < 15:  # the others stay null
            line["correction"], answered = truth[place(line)][1], answered + 1
    queue.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = load(folder, f"config.data.corrections={queue}")
    train(given, str(tmp_path / "better"), stop_after=2)
    options = dict(columns=("sentence", "label"), tokenizer="bytes", split="train", seed=0, batch=8)
    made = sentences.make(str(folder), **options, corrections=str(queue))
    assert made.info["corrected"] == answered == 15
    fixed = {place(line) for line in lines if line["correction"]}
    for index, (label, (_, right)) in enumerate(zip(names(made), truth, strict=True)):
        assert (label == right) == (index not in flipped or index in fixed)
    batch = next(made.batches(one_pass=True))
    assert batch["labels"].tolist() == made.gold.labels[:8].tolist()

    last = next(line for line in lines if line["correction"])
    last["correction"] = None
    queue.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="the data is not what .* was trained on"):
        train(given, str(tmp_path / "better"))


def line(text, label, correction):
    return dict(digest=corrections.digest([text]), label=label, correction=correction)


ROWS = [("a", "0"), ("b", "1"), ("b", "1"), ("b", "0"), ("c", "1")]


def corrected(tmp_path, lines, split="train"):
    folder = tmp_path / "data"
    folder = folder if folder.exists() else write(folder, ROWS)
    file = tmp_path / "queue.jsonl"
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    file.write_text("\n".join(texts) + "\n")
    options = dict(columns=("sentence", "label"), tokenizer="bytes", seed=0, batch=2)
    return sentences.make(str(folder), **options, split=split, corrections=str(file))


def test_a_correction_is_for_every_row_with_the_text_and_the_label(tmp_path):
    lines = [line("b", "1", "0"), line("a", "0", None), "", line("c", "1", 0)]
    made = corrected(tmp_path, lines)
    assert names(made) == ["0", "0", "0", "0", "0"] and made.info["corrected"] == 3
    assert made.info["classes"] == ["0", "1"]  # a class stays one, also without an example
    again = corrected(tmp_path, lines[::-1])
    assert again.info["fingerprint"] == made.info["fingerprint"]
    plain = corrected(tmp_path, [])
    assert plain.info["fingerprint"] != made.info["fingerprint"] and not plain.info["corrected"]


def test_corrections_of_another_split_are_left_to_it(tmp_path):
    lines = [line("a good one", "1", "0"), line("a", "0", "1")]
    assert names(corrected(tmp_path, lines)) == ["1", "1", "1", "0", "1"]
    assert names(corrected(tmp_path, lines, "validation")) == ["0", "0"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [line("a", "0", None), line("A", "0", "1")],
            "jsonl:2: no example has this text or picture",
        ),
        ([line("a", "1", "0")], "jsonl:1: no example has this text or picture and the label '1'"),
        ([line("a", "0", "2")], "jsonl:1: '2' is no label; expected 0, 1, or false to leave"),
        ([line("a", "0", True)], "jsonl:1: True is no label; expected 0, 1"),
        (["[" * 100_000], "jsonl:1 is not a line of `anneal review`"),
        ([line("a", "0", "1"), line("a", "0", "0")], "jsonl:2 says '0' of what .*jsonl:1 says '1'"),
        (["{"], "jsonl:1 is not a line of `anneal review`"),
        ([dict(label="0", correction="1")], "jsonl:1 is not a line of `anneal review`"),
        ([dict(digest=5, label="0", correction="1")], "jsonl:1 is not a line"),
    ],
)
def test_a_correction_that_does_not_fit_is_named(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        corrected(tmp_path, lines)


def test_what_has_no_labels_or_no_such_choice_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="--by='margn' is not an option; did you mean 'margin'"):
        review(run, by="margn")
    with pytest.raises(InputError, match="--top=0 is out of range"):
        review(run, top=0)
    with pytest.raises(InputError, match="corrections=none.jsonl cannot be read"):
        review(run, overrides=["config.data.corrections=none.jsonl"])
    names = write(tmp_path / "names", [("a good one", "pos"), ("a bad one", "neg")])
    (names / "dev.tsv").unlink()
    with pytest.raises(InputError, match="the split has other classes than the run"):
        review(run, overrides=[f"config.data.path={names}"])
    other = config_lib.load("configs/nlp/bert.py:tiny")
    (tmp_path / "config.json").write_text(config_lib.to_json(other))
    with pytest.raises(InputError, match="task masked_lm with data text has no labels to review"):
        review(str(tmp_path))
