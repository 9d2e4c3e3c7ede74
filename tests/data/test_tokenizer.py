"""What is encoded comes back, and the end of a document cannot be forged."""

import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.arguments import InputError
from research.data import tokenizer as tokenizers

TEXTS = ["def f(x):\n    return x + 1\n", "naïve café — ☃\n" * 3, "", "the cat sat on the mat " * 9]
ALL = {kind: tokenizers.train(kind, TEXTS) for kind in ("bytes", "characters", "bpe")}
KINDS = pytest.mark.parametrize("kind", list(ALL))


@pytest.mark.core
@KINDS
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_decoding_returns_what_was_encoded(kind, data):
    alphabet = (
        st.sampled_from(sorted(set("".join(TEXTS))))
        if kind == "characters"
        else st.characters(codec="utf-8")
    )
    texts = data.draw(st.lists(st.text(alphabet), max_size=3))
    tokenizer = ALL[kind]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([tokenizer.end, *ids, tokenizer.end]) == text
        assert all(0 <= i < tokenizer.end for i in ids)


@pytest.mark.parametrize("name", ["<|endoftext|>", "<s>", "[UNK]", "<|end|>"])
def test_no_text_encodes_to_the_end_of_a_document(name):
    for kind in ("bytes", "bpe"):
        tokenizer = ALL[kind]
        assert tokenizer.end not in tokenizer.encode([name])[0]
        assert tokenizer.end == tokenizer.vocab_size - 1


@KINDS
def test_a_saved_tokenizer_is_the_same_tokenizer(kind, tmp_path):
    path = tmp_path / "tokenizer.json"
    ALL[kind].save(path)
    for other in (tokenizers.load(path), pickle.loads(pickle.dumps(ALL[kind]))):
        assert other == ALL[kind] and other.fingerprint == ALL[kind].fingerprint
        np.testing.assert_array_equal(other.encode(TEXTS[:1])[0], ALL[kind].encode(TEXTS[:1])[0])
    assert len({tokenizer.fingerprint for tokenizer in ALL.values()}) == 3


def test_bpe_learns_the_same_twice_and_stays_within_its_size():
    again = tokenizers.train("bpe", iter(TEXTS), 300)
    assert again == tokenizers.train("bpe", TEXTS, 300)
    assert 257 < again.vocab_size <= 300
    assert len(again.encode(["the cat sat"])[0]) < len("the cat sat")


def test_bpe_equals_the_merges_learned_by_hand():
    # "aa" is the most frequent pair, then "aab": one merge each.
    tokenizer = tokenizers.train("bpe", ["aab", "aab", "aab", "aa"], 259)
    ids = tokenizer.encode(["aab", "aa", "b"])
    assert [len(i) for i in ids] == [1, 1, 1]
    assert tokenizer.decode(ids[0]) == "aab"
    smaller = tokenizers.train("bpe", ["aab", "aab", "aab", "aa"], 258)
    assert smaller.vocab_size == 258 and len(smaller.encode(["aab"])[0]) == 2


def test_broken_utf8_decodes_to_replacement_characters():
    ids = ALL["bytes"].encode(["é"])[0]
    assert ALL["bytes"].decode(ids[:1]) == "\ufffd"
    assert "\ufffd" in ALL["bpe"].decode(ALL["bpe"].encode(["☂"])[0][:1])


def test_an_unknown_character_is_named():
    with pytest.raises(InputError, match="'ß' is not among the .* of the training text"):
        ALL["characters"].encode(["caß"])


@KINDS
def test_what_is_not_unicode_is_refused(kind):
    with pytest.raises(InputError, match="the text is not Unicode"):
        ALL[kind].encode(["\ud800"])


@pytest.mark.parametrize(("kind", "size"), [("bpe", 256), ("bytes", 256), ("characters", 5)])
def test_a_vocabulary_that_is_too_small_is_refused(kind, size):
    with pytest.raises(InputError, match=f"vocab_size={size}"):
        tokenizers.train(kind, TEXTS, size)


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"pip install 'anneal\[nlp\]'"):
        tokenizers.train("bpe", TEXTS)


@pytest.mark.parametrize(
    "content", ["", "{}", '{"kind": "words"}', '{"kind": "bpe", "vocabulary": "{}"}', "[1]"]
)
def test_a_file_that_is_no_tokenizer_is_refused(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="is not a saved tokenizer"):
        tokenizers.load(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="is not a saved tokenizer"):
        tokenizers.load(tmp_path / "missing.json")
