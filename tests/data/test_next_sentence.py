"""Pairs of segments: what follows, what does not, and masks; fresh each epoch, equal on resume."""

import numpy as np
import pytest

from research.arguments import InputError
from research.data import next_sentence, text

FIRST, MASK, END = 258, 257, 256
CONTEXT = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Documents whose sentences say where they are from: document, sentence, some letters."""
    root = tmp_path_factory.mktemp("documents")
    random = np.random.default_rng(0)
    for number in range(80):
        lines = [
            f"{number:02}:{line:02} {'x' * random.integers(1, 9)}"
            for line in range(random.integers(2, 30))
        ]
        (root / f"{number}.txt").write_text("\n".join(lines) + "\n")
    (root / "alone.txt").write_text("99:00 a single one")
    return root


def make(path, split="train", **options):
    options = dict(context=CONTEXT, batch=16, tokenizer="bytes") | options
    return next_sentence.make("files", str(path), **options, split=split, seed=5)


def take(made, count, start=0):
    batches = made.batches(start)
    found = [next(batches) for _ in range(count)]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def segments(row_tokens, types, real):
    """The text of A and of B, without what is around them."""
    ids = row_tokens[real > 0]
    kinds = types[real > 0]
    assert ids[0] == FIRST and ids[-1] == END
    a, b = ids[1:][kinds[1:] == 0], ids[kinds == 1]
    assert a[-1] == b[-1] == END
    return bytes(a[:-1].tolist()).decode(), bytes(b[:-1].tolist()).decode()


def pairs(found):
    names = ("targets", "types", "segments")
    for row in zip(*(found[name] for name in names), found["labels"], strict=True):
        yield *segments(*row[:3]), int(row[3])


def test_what_follows_follows_and_what_does_not_is_of_another_document(folder):
    whole = {int(f.stem): f.read_text() for f in folder.glob("[0-9]*.txt")}
    found = take(make(folder), 100)
    others, lengths = set(), {0: [], 1: []}
    for a, b, label in pairs(found):
        document = int(a[:2])
        assert a in whole[document] and a.endswith("\n")
        if label == 0:
            assert a + b in whole[document]
        else:
            other = int(b[:2])
            assert other != document
            assert other == 99 or b in whole[other]
            others.add(other)
        lengths[label].append(len(a) + len(b))
    assert len(others) > 70  # all of them serve
    assert max(max(one) for one in lengths.values()) <= CONTEXT - 3


def test_labels_are_balanced_and_the_length_of_a_row_does_not_give_them_away(folder):
    found = take(make(folder), 400)
    labels, length = found["labels"], found["segments"].sum(1)
    assert abs(labels.mean() - 0.5) < 4 * 0.5 / len(labels) ** 0.5
    # The best guess from the length alone, with the counts as they are: near chance.
    counts = np.zeros((CONTEXT + 1, 2))
    np.add.at(counts, (length, labels), 1)
    assert counts.max(1).sum() / counts.sum() < 0.6


def test_the_plan_has_every_sentence_and_two_or_more_in_each_chunk():
    random = np.random.default_rng(1)
    for _ in range(300):
        room = int(random.integers(5, 60))
        sizes = random.integers(1, room // 2 + 1, random.integers(0, 20))
        found = next_sentence._chunks([np.zeros(size) for size in sizes], room)
        if len(sizes) < 2:
            assert not found
            continue
        assert set().union(*(range(*one) for one in found)) == set(range(len(sizes)))
        for first, last in found:
            assert last - first >= 2 and sizes[first:last].sum() <= room
        starts = [first for first, _ in found]
        assert starts == sorted(starts)


def test_sentences_end_with_lines_or_marks_and_long_ones_are_cut():
    found = next_sentence.SENTENCE.findall("One. Two!\nThree 3.5 is\n\n\nit?  So")
    assert found == ["One. ", "Two!\n", "Three 3.5 is\n\n\n", "it?  ", "So"]
    parts = next_sentence._cut(np.arange(25), 10)
    assert [len(part) for part in parts] == [9, 8, 8]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(25))


@pytest.mark.parametrize("whole_words", [False, True])
def test_masks_spare_what_is_around_segments(folder, whole_words):
    made = make(folder, whole_words=whole_words)
    found = take(made, 60)
    chosen, tokens, targets = found["weight"] > 0, found["tokens"], found["targets"]
    special = (targets == FIRST) | (targets == END) | (found["segments"] == 0)
    assert not chosen[special].any()
    assert (tokens[~chosen] == targets[~chosen]).all()
    real = ~special
    wanted = np.maximum(1, np.round(real.sum(1) * 0.15))
    assert (chosen.sum(1) <= wanted).all() and chosen.sum(1).max() <= made.info["predictions"]
    if not whole_words:
        assert (chosen.sum(1) == wanted).all()
    share = (tokens == MASK).sum() / chosen.sum()
    assert abs(share - 0.8) < 4 * (0.16 / chosen.sum()) ** 0.5
    assert (tokens != MASK)[~chosen].all()


def test_pairs_and_masks_are_fresh_each_epoch_and_equal_after_a_resume(folder):
    made = make(folder, batch=1)
    count = made.info["pairs"]
    found = take(made, 2 * count)
    later = take(made, 5, start=count + 3)
    for name in found:
        np.testing.assert_array_equal(found[name][count + 3 : count + 8], later[name])
    epochs = [{}, {}]
    for step in range(2 * count):
        epochs[step // count][made.rows(step)[0]] = step
    changed = {"labels": 0, "tokens": 0, "targets": 0}
    for index in range(count):
        one, two = (epoch[index] for epoch in epochs)
        for name in changed:
            changed[name] += bool((found[name][one] != found[name][two]).any())
    assert changed["tokens"] > 0.9 * count  # the masks
    assert changed["targets"] > 0.6 * count  # the pair: another cut, another document
    assert abs(changed["labels"] / count - 0.5) < 4 * 0.5 / count**0.5


def test_an_evaluation_has_the_same_pairs_every_time_and_is_one_pass(folder):
    one, other = (list(make(folder, "validation").batches()) for _ in range(2))
    assert len(one) == make(folder, "validation").num_batches
    for a, b in zip(one, other, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    real = one[-1]["segments"][:, 0] > 0
    assert (one[-1]["weight"].sum(1) > 0).tolist() == real.tolist()


def test_text_without_two_documents_is_refused(tmp_path):
    (tmp_path / "one.txt").write_text("A line.\nAnother line.\n" * 9)
    with pytest.raises(InputError, match="split train has 1 documents with text, 0 of them of a"):
        make(tmp_path / "one.txt")
    with pytest.raises(InputError, match="context=7 has no room for two segments"):
        make(tmp_path / "one.txt", context=7)


def test_tokenizers_and_fingerprints_are_those_of_text(folder):
    ours = make(folder, tokenizer="bpe", vocab_size=300)
    theirs = text.make("files", str(folder), tokenizer="bpe", vocab_size=300, context=16,
                       split="train", seed=0, batch=4)  # fmt: skip
    assert ours.info["tokenizer_fingerprint"] == theirs.info["tokenizer_fingerprint"]
    again = [make(folder, mask_rate=rate).info["fingerprint"] for rate in (0.15, 0.15, 0.2)]
    assert again[0] == again[1] != again[2]
