"""Tags of words: what counts, entities by conlleval's rules, a whole split however it is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research import config, evaluate, generate, train
from research.data import tags
from research.tasks import tag

CLASSES = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]


def conlleval(wanted, given_):
    """Precision, recall and F1 as the published program counts them: one pass over the words of
    all sentences, with the ends of chunks found by its own tables."""

    def parts(name):
        return name.split("-", 1) if "-" in name else (name, "")

    def ends(before, kind_before, now, kind):
        if (before, now) in {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O")}:
            return True
        return before != "O" and kind_before != kind

    def starts(before, kind_before, now, kind):
        if (before, now) in {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I")}:
            return True
        return now != "O" and kind_before != kind

    correct = found_correct = found_guessed = 0
    inside = False
    last_c = last_g = ("O", "")
    words = []
    for truths, guesses in zip(wanted, given_, strict=True):
        words += [*zip(truths, guesses, strict=True), ("O", "O")]
    for truth, guess in words:
        c, g = parts(truth), parts(guess)
        if inside:
            end_c, end_g = ends(*last_c, *c), ends(*last_g, *g)
            if end_c and end_g and last_g[1] == last_c[1]:
                inside, correct = False, correct + 1
            elif end_c != end_g or g[1] != c[1]:
                inside = False
        start_c, start_g = starts(*last_c, *c), starts(*last_g, *g)
        if start_c and start_g and g[1] == c[1]:
            inside = True
        found_correct, found_guessed = found_correct + start_c, found_guessed + start_g
        last_c, last_g = c, g
    correct += inside
    precision = correct / found_guessed if found_guessed else 0.0
    recall = correct / found_correct if found_correct else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return dict(precision=precision, recall=recall, f1=f1)


class Fixed:
    """A model that guesses the tag that a token's place in `guess` says."""

    def apply(self, variables, tokens, *_, **__):
        return variables["logits"], {}


def measure(classes, sentences, guesses, context, batch):
    """The numbers of a split through data, loss and report, with the tags in `guesses`."""
    codec = tags.Tokenizer("bytes")
    parts, _ = tags.divide([words for words, _ in sentences], context, codec)
    ids = [np.array([classes.index(t) for t in truth]) for _, truth in sentences]
    line = [tags.conll.Sentence(words, truth, "", 0) for words, truth in sentences]
    gold, count, totals = tags._gold(line, parts), -(-len(parts) // batch), {}
    task = tag.make(labels=len(classes))
    for begin in range(0, count * batch, batch):
        rows, logits = [], np.zeros((batch, context, len(classes)), np.float32)
        for j, index in enumerate(range(begin, begin + batch)):
            if index >= len(parts):
                rows.append({name: np.zeros_like(value) for name, value in rows[0].items()})
                continue
            rows.append(tags._row(parts, ids, context, batch, count, index, 0, None))
            part = parts[index]
            mine = guesses[part.sentence][part.first :][: len(part.places)]
            logits[j, part.places, [classes.index(name) for name in mine]] = 5.0
        stacked = {name: jnp.array(np.stack([row[name] for row in rows])) for name in rows[0]}
        pair, aux = task.loss(Fixed(), {"logits": jnp.array(logits)}, stacked, None, False)
        for name, (total, weight) in (aux.metrics | {"loss": pair}).items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = before[0] + np.asarray(total, float), before[1] + float(weight)
    means = {n: x / w for n, (x, w) in totals.items() if not n.startswith("_")}
    return means | task.report(totals, {"classes": classes, "gold": gold})


TAGGED = st.lists(
    st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES)), min_size=1),
    min_size=1,
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(TAGGED)
def test_entities_are_counted_as_conlleval_counts_them(pairs):
    wanted = [[truth for truth, _ in one] for one in pairs]
    guesses = [[guess for _, guess in one] for one in pairs]
    longest = max(map(len, pairs))
    found = np.zeros((len(pairs), 1, longest))
    for row, one in zip(found, guesses, strict=True):
        row[0, : len(one)] = [CLASSES.index(name) for name in one]
    rows = [range(i, i + 1) for i in range(len(pairs))]
    gold = tags.Gold(rows, [np.arange(len(one)) for one in pairs], wanted)
    report = tag.report({"_tags": (found, 1)}, {"classes": CLASSES, "gold": gold})
    assert report == pytest.approx(conlleval(wanted, guesses), abs=1e-12)


def test_what_an_entity_is():
    found = tag.entities("O I-PER I-PER B-PER I-LOC O B-LOC I-LOC B-LOC".split())
    assert found == [(1, 3, "PER"), (3, 4, "PER"), (4, 5, "LOC"), (6, 8, "LOC"), (8, 9, "LOC")]
    assert tag.entities("B-X I-X E-X S-X I-X".split()) == [(0, 3, "X"), (3, 4, "X"), (4, 5, "X")]
    assert tag.mark_entities(["B-PER", "O"]) and not tag.mark_entities(["O"])
    assert not tag.mark_entities(["B-PER", "NN", "O"])


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_a_split_is_judged_whole_whatever_the_batch_and_the_rows(batch):
    random = np.random.default_rng(0)
    draw = lambda n: random.choice(CLASSES, n, p=[0.1, 0.1, 0.3, 0.2, 0.3]).tolist()  # noqa: E731
    lengths = random.integers(1, 12, 20)
    sentences = [(["ab"] * n, draw(n)) for n in lengths]
    guesses = [
        [t if random.random() < 0.7 else g for t, g in zip(truth, draw(len(truth)), strict=True)]
        for _, truth in sentences
    ]
    wanted = [truth for _, truth in sentences]
    expected = conlleval(wanted, guesses)
    assert 0.2 < expected["f1"] < 0.9
    right = [
        a == b for w, g in zip(wanted, guesses, strict=True) for a, b in zip(w, g, strict=True)
    ]
    for context in (12, 64):  # some sentences lie in several rows, or none
        found = measure(CLASSES, sentences, guesses, context, batch)
        assert {name: found[name] for name in expected} == pytest.approx(expected)
        assert found["accuracy"] == pytest.approx(np.mean(right))


def test_plain_tags_have_accuracy_and_macro_f1():
    classes = ["DT", "NN", "VB"]
    wanted, guesses = ["DT", "NN", "NN", "DT", "NN"], ["DT", "NN", "VB", "NN", "NN"]
    found = measure(classes, [(["w"] * 5, wanted)], [guesses], 24, 2)
    pairs = list(zip(wanted, guesses, strict=True))
    f1 = []
    for name in ("DT", "NN"):  # VB is never the truth
        hits = pairs.count((name, name))
        f1.append(2 * hits / (wanted.count(name) + guesses.count(name)))
    assert found["f1"] == pytest.approx(np.mean(f1)) and found["accuracy"] == pytest.approx(0.6)
    assert "precision" not in found


def test_only_the_first_token_of_each_word_has_a_gradient():
    parts, _ = tags.divide([["abc", "de"]], 16, tags.Tokenizer("bytes"))
    row = tags._row(parts, [np.array([2, 0])], 16, 1, 1, 0, 0, None)
    batch = {name: jnp.array(value)[None] for name, value in row.items()}
    task = tag.make(labels=3)
    logits = jax.random.normal(jax.random.key(0), (1, 16, 3))

    def loss(logits):
        return task.loss(Fixed(), {"logits": logits}, batch, None, True)[0][0]

    value, grad = jax.value_and_grad(loss)(logits)
    assert np.flatnonzero(np.abs(grad[0]).sum(-1)).tolist() == [1, 4]
    logs = jax.nn.log_softmax(logits[0])
    assert value == pytest.approx(-float(logs[1, 2] + logs[4, 0]), rel=1e-5)
    assert task.loss(Fixed(), {"logits": logits}, batch, None, True)[0][1] == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A workdir that has learned that what begins with a is a place, with b a person."""
    root = tmp_path_factory.mktemp("tags")
    random = np.random.default_rng(0)
    for split, count in (("train", 200), ("validation", 30)):
        lines = []
        for _ in range(count):
            for begin in random.choice(list("abcd"), random.integers(1, 9)):
                kind = {"a": "B-LOC", "b": "B-PER"}.get(begin, "O")
                lines.append(f"{begin}{''.join(random.choice(list('xyz'), 2))} {kind}\n")
            lines.append("\n")
        (root / f"{split}.txt").write_text("".join(lines))
    overrides = [f"config.data.path={root}", "config.data.context=20", "config.steps=160"]
    overrides += ["config.model.dropout=0.0", "config.optim.lr.peak=0.01", "config.eval.every=160"]
    overrides += ["config.checkpoint.every=160", "config.batch=16"]
    train.train(config.load("configs/nlp/tagging.py:tiny", overrides), str(root / "run"))
    return str(root / "run")


@pytest.mark.slow
def test_a_run_learns_and_reports_a_whole_split_on_any_mesh(folder):
    wide = evaluate.evaluate(folder)
    assert wide["f1"] > 0.95 and wide["accuracy"] > 0.95
    meshed = ["config.mesh.fsdp=4", "config.mesh.tensor=2", "config.eval.batch=8"]
    other = evaluate.evaluate(folder, overrides=meshed)
    for name in ("f1", "precision", "recall", "accuracy"):
        assert other[name] == pytest.approx(wide[name])
    trained = evaluate.evaluate(folder, split="train")
    assert trained["accuracy"] > 0.95 and "f1" not in trained


@pytest.mark.slow
def test_generate_tags_every_word_of_a_prompt_of_any_length(folder):
    words = ["axy", "cyx", "bzz", "cxx"] * 8
    first, second = generate.generate(folder, [" ".join(words), ""])
    assert first["words"] == words and second["words"] == second["tags"] == []
    assert first["tags"] == ["B-LOC", "O", "B-PER", "O"] * 8
    assert first["entities"][1] == dict(text="bzz", type="PER", words=[2, 3])
