"""Tagged words: the files' form, rows in which each word is asked for once, what is refused."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.arguments import InputError
from research.data import conll, tags
from research.data import tokenizer as tokenizers

CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
# NN B-NP O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
-DOCSTART- -X- O O

Brüssel NNP B-NP B-LOC
"""
WORDS = [["EU", "rejects", "#"], ["Peter", "Blackburn"], ["Brüssel"]]
NER = [["B-ORG", "O", "O"], ["B-PER", "I-PER"], ["B-LOC"]]
POS = [["NNP", "VBZ", "NN"], ["NNP", "NNP"], ["NNP"]]


def write(folder, train=CONLL, validation=CONLL, name="train.txt"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(train)
    (folder / "dev.txt").write_text(validation)
    return str(folder)


def make(path, split="train", **options):
    options = dict(tokenizer="bytes", context=32, batch=4) | options
    return tags.make(path, **options, split=split, seed=0)


def test_columns_are_words_and_tags_in_every_form_of_the_file(tmp_path):
    found = conll.read(write(tmp_path / "a"), "train")
    assert [one.words for one in found.sentences] == WORDS
    assert [one.tags for one in found.sentences] == NER
    assert [one.line for one in found.sentences] == [3, 7, 11]
    for one in found.sentences:  # the line is that of the word
        for line, word in enumerate(one.words, one.line):
            assert CONLL.split("\n")[line - 1].startswith(word)
    assert [one.tags for one in conll.read(write(tmp_path / "a"), "train", tag=1).sentences] == POS
    tabs = write(tmp_path / "b", CONLL.replace(" ", "\t"), name="train.conll")
    dos = write(tmp_path / "c", CONLL.replace("\n", "\r\n").removesuffix("\r\n"))
    aligned = write(tmp_path / "d", CONLL.replace(" ", "  "))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "train.txt.gz").write_bytes(gzip.compress(CONLL.encode()))
    for path in (tabs, dos, aligned, str(tmp_path / "e")):
        assert conll.read(path, "train").fingerprint == found.fingerprint, path


def test_a_word_may_hold_a_space_between_tabs_and_a_space_that_does_not_part(tmp_path):
    found = conll.read(write(tmp_path, "New York\tB-LOC\n10\u00a0000\tO\n"), "train")
    assert found.sentences[0].words == ["New York", "10\u00a0000"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a O\nb\n", {}, r"train.txt:2 has 1 columns, the lines before it 2"),
        ("a O\n\nb O x\n", {}, r"train.txt:3 has 3 columns, the lines before it 2"),
        ("a O\n", dict(tag=2), r"train.txt:1 has 2 columns, and data.tag=2 is none of them"),
        ("a O\n", dict(word=-3), r"data.word=-3 is none of them; expected -2 to 1"),
        ("a\tO\nb\t\n", {}, r"train.txt:2 has no tag in column -1"),
        ("\n\n", {}, "has no sentences for split train"),
        ("a O\n", dict(context=3), "context=3 has no room"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, text, options, message):
    with pytest.raises(InputError, match=message):
        make(write(tmp_path, text), **options)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        make(str(tmp_path / "none"))
    with pytest.raises(InputError, match="has no test.txt or test.conll .* for split test"):
        make(write(tmp_path), "test")
    write(tmp_path, validation="\n\na X O O\nb X O B-MISC\n")
    with pytest.raises(InputError, match="dev.txt:4: tag 'B-MISC' is not among those of the train"):
        make(str(tmp_path), "validation")


def test_a_row_is_first_words_end_and_the_first_token_of_each_is_asked_for(tmp_path):
    made = make(write(tmp_path), "validation", context=20)
    batch = next(made.batches())
    assert made.info["classes"] == ["B-LOC", "B-ORG", "B-PER", "I-PER", "O"]
    assert batch["tokens"][0].tolist() == [258, *b"EU rejects #", 256] + [0] * 6
    assert batch["segments"][0].tolist() == [1] * 14 + [0] * 6
    assert np.flatnonzero(batch["weight"][0]).tolist() == [1, 3, 11]
    assert batch["labels"][0][[1, 3, 11]].tolist() == [1, 4, 4]
    assert batch["weight"][3].sum() == 0  # there are three sentences
    assert batch["turn"].tolist() == [[1], [1], [1], [0]]
    assert made.info["divided"] == made.info["cut"] == 0


SENTENCES = st.lists(st.lists(st.text("abü", min_size=1, max_size=9), min_size=1), min_size=1)


@settings(max_examples=60, deadline=None)
@given(SENTENCES, st.integers(4, 24))
def test_every_word_is_in_one_row_however_long_its_sentence(sentences, context):
    codec = tokenizers.train("bytes", [])
    parts, info = tags.divide(sentences, context, codec)
    room, found = context - 2, [[] for _ in sentences]
    for part in parts:
        row = tags.fill(part, context)
        assert row["tokens"][0] == 258 and row["tokens"][len(part.tokens) - 1] == 256
        assert row["segments"].sum() == len(part.tokens) <= context
        assert part.first == len(found[part.sentence])
        ends = [*part.places[1:], len(part.tokens) - 1]
        for place, end in zip(part.places, ends, strict=True):
            found[part.sentence].append(bytes(part.tokens[place:end].tolist()))
    whole = [[f"{' ' * (i > 0)}{w}".encode() for i, w in enumerate(words)] for words in sentences]
    assert found == [[word[:room] for word in words] for words in whole]
    assert info["cut"] == sum(len(word) > room for words in whole for word in words)
    rows = [sum(part.sentence == i for part in parts) for i in range(len(sentences))]
    assert info["divided"] == sum(count > 1 for count in rows)


def test_a_word_of_which_the_tokenizer_leaves_nothing_is_a_mask():
    class Codec:
        end, mask, first = 9, 10, 11

        def encode(self, texts, bare):
            return [np.array([3] * (text.strip() != "\x7f"), np.int32) for text in texts]

    (part,), info = tags.divide([["a", "\x7f", "b"]], 8, Codec())
    assert part.tokens.tolist() == [11, 3, 10, 3, 9] and part.places.tolist() == [1, 2, 3]
    assert info["without_tokens"] == 1


def test_the_stdlib_has_entities_without_a_file():
    found = conll.read("stdlib", "validation")
    words = [pair for one in found.sentences for pair in zip(one.words, one.tags, strict=True)]
    kinds = {tag for _, tag in words}
    assert {"B-NAME", "B-NUMBER", "B-STRING", "I-STRING", "B-COMMENT", "O"} <= kinds
    assert ("def", "O") in words and ("self", "B-NAME") in words and ("(", "O") in words
    assert not any(" " in word or not word for word, _ in words)
