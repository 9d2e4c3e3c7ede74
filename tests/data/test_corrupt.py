"""Masks and spans: their rates, what they leave alone, fresh each epoch, equal after a resume."""

import numpy as np
import pytest

from research.arguments import InputError
from research.data import corrupt, text
from research.data import tokenizer as tokenizers

MASK = 256 + 1  # behind the bytes and `end`


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "input.txt"
    rng = np.random.default_rng(0)
    file.write_text(" ".join(rng.choice(["the", "cat", "sat", "on", "quantum", "mats"], 8_000)))
    return str(file)


def source(path, split="train", batch=16, context=64, **options):
    options = dict(tokenizer="bytes", objective="masked") | options
    data = dict(reader="files", path=path, context=context, seed=3, batch=batch)
    return text.make(**data, **options, split=split)


def take(made, count, start=0):
    batches = made.batches(start)
    found = [next(batches) for _ in range(count)]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def test_masks_have_the_published_rates(words):
    made = take(source(words), 60)
    chosen, tokens, targets = made["weight"] > 0, made["tokens"], made["targets"]
    assert (chosen.sum(1) == round(64 * 0.15)).mean() > 0.99  # rows with an `end` have a token less
    count = chosen.sum()
    kept = (tokens == targets) & chosen
    masked = (tokens == MASK) & chosen
    # Four standard deviations of the binomials; a random byte is the right one once in 256.
    for share, found in ((0.8, masked), (0.1 + 0.1 / 256, kept)):
        assert abs(found.sum() / count - share) < 4 * (share * (1 - share) / count) ** 0.5
    assert (tokens[~chosen] == targets[~chosen]).all()
    assert not chosen[targets == 256].any()  # `end` is never asked for
    places = chosen.mean(0)
    assert abs(places - 0.15).max() < 5 * (0.15 * 0.85 / len(chosen)) ** 0.5  # no place is favoured


def test_masks_are_fresh_each_epoch_and_equal_after_a_resume(words):
    made = source(words)
    every, later = take(made, 60), take(made, 10, start=50)
    for name in every:
        np.testing.assert_array_equal(every[name][50 * 16 :], later[name])
    options = (None, made.tokenizer, 0.15, False)
    row = lambda index, epoch, random: {  # noqa: E731
        "tokens": np.arange(64, dtype=np.int32), "weight": np.ones(64, np.float32)
    }  # fmt: skip
    masks = [
        corrupt.mask(row, *options[1:], 5, epoch, np.random.default_rng((3, epoch, 6)))["weight"]
        for epoch in (0, 1, 1)
    ]
    assert (masks[0] != masks[1]).any() and (masks[1] == masks[2]).all()


def test_an_evaluation_has_the_same_masks_every_time(words):
    one, other = (list(source(words, "validation").batches()) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])


def test_whole_words_are_masked_whole(words):
    made = take(source(words, whole_words=True), 10)
    letters = (made["targets"] >= ord("a")) & (made["targets"] <= ord("z"))
    chosen = made["weight"] > 0
    partly = 0
    for row, on in zip(letters, chosen, strict=True):
        word = np.cumsum(~row)
        for number in np.unique(word[row]):
            mine = on[row & (word == number)]
            partly += 0 < mine.sum() < len(mine)
    assert partly == 0
    assert 0.1 < chosen.mean() <= 0.16


def test_spans_give_the_text_back(words):
    made = source(words, objective="spans")
    batch = take(made, 20)
    width, height, count = corrupt.span_shapes(64, 0.15, 3.0)
    assert batch["inputs"].shape[1] == width and batch["targets"].shape[1] == height
    plain = take(source(words, objective="next"), 20)
    # An `end` in the middle would end a target too early: spans leave it out.
    rows = zip(plain["tokens"], plain["weight"], strict=True)
    whole = [row[(on > 0) & (row != 256)] for row, on in rows]
    lengths = []
    for inputs, on, targets, real, text_ in zip(
        batch["inputs"], batch["input_segments"], batch["targets"], batch["weight"], whole,
        strict=True,
    ):  # fmt: skip
        inputs, targets = inputs[on > 0], targets[real > 0]
        assert inputs[-1] == targets[-1] == 256
        lost = np.split(targets[:-1], np.flatnonzero(targets[:-1] >= MASK))[1:]
        lengths += [len(part) - 1 for part in lost]
        parts = {part[0]: part[1:] for part in lost}
        restored = [parts[i] if i >= MASK else [i] for i in inputs[:-1]]
        np.testing.assert_array_equal(np.concatenate(restored), text_)
    assert min(lengths) >= 1 and abs(np.mean(lengths) - 10 / 3) < 0.05
    assert (batch["tokens"][:, 0] == 256).all()
    shifted = batch["weight"][:, 1:] > 0
    assert (batch["tokens"][:, 1:] == batch["targets"][:, :-1])[shifted].all()
    assert made.info["vocab_size"] == 257 + count


def test_spans_over_packed_documents_are_refused(words):
    with pytest.raises(InputError, match="spans are cut from one text a row"):
        source(words, objective="spans", packing="documents")


def test_a_row_of_a_single_token_is_left_whole():
    codec = tokenizers.train("bytes", [])
    row = lambda *_: {"tokens": np.array([7, 0]), "weight": np.array([1.0, 0])}  # noqa: E731
    made = corrupt.spans(row, codec, 16, 0.15, 3.0, 0, 0, np.random.default_rng(0))
    assert made["inputs"][:2].tolist() == [7, 256] and made["weight"].sum() == 1


def test_random_tokens_are_drawn_from_all_ids_but_the_end():
    """Of a package's tokenizer the `end` may be any id."""

    class Codec:
        vocab_size, end, first, mask = 10, 3, 11, 10

    row = lambda *_: {"tokens": np.full(4_000, 5), "weight": np.ones(4_000)}  # noqa: E731
    made = corrupt.mask(row, Codec, 0.5, False, 0, 0, np.random.default_rng(0))
    seen = set(made["tokens"][made["weight"] > 0].tolist())
    assert seen == {0, 1, 2, 4, 5, 6, 7, 8, 9, 10}


def test_a_vocabulary_with_hash_signs_is_not_taken_for_wordpiece():
    texts = ["### heading foo\n## heading bar\n#### understanding\n"] * 50
    codec = tokenizers.train("bpe", texts, 300)
    assert any(piece.startswith("##") for piece in codec.pieces())
    begins, ends = corrupt._alphanumeric(codec)
    ids = codec.encode(["abcd\nefgh ij"])[0]
    inside = begins[ids[1:]] & ends[ids[:-1]]
    text = [codec.decode([i]) for i in ids]
    for before, after, joined in zip(text, text[1:], inside, strict=False):
        assert joined == (before[-1].isalnum() and after[0].isalnum())
    # The same pieces by the names that a package has for them: "Ċ" is a new line, not a letter.
    package = codec._replace(kind="package", end_id=0)
    np.testing.assert_array_equal(corrupt._alphanumeric(package)[0][ids], begins[ids])
    np.testing.assert_array_equal(corrupt._alphanumeric(package)[1][ids], ends[ids])
