"""What is encoded comes back, and the end of a document cannot be forged."""

import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.arguments import InputError
from research.data import sentences, text
from research.data import tokenizer as tokenizers

TEXTS = ["def f(x):\n    return x + 1\n", "naïve café — ☃\n" * 3, "", "the cat sat on the mat " * 9]
ALL = {kind: tokenizers.train(kind, TEXTS) for kind in ("bytes", "characters", "bpe", "unigram")}
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
    for one, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert tokenizer.decode(ids) == one
        assert tokenizer.decode([tokenizer.end, *ids, tokenizer.end]) == one
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
    assert len({tokenizer.fingerprint for tokenizer in ALL.values()}) == len(ALL)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_pieces_are_learned_the_same_twice_and_stay_within_their_size(kind):
    again = tokenizers.train(kind, iter(TEXTS), 300)
    assert again == tokenizers.train(kind, TEXTS, 300)
    assert (20 if kind == "wordpiece" else 257) < again.vocab_size <= 300
    assert len(again.encode(["the cat sat"])[0]) < len("the cat sat")


def test_wordpiece_cuts_words_as_bert_does():
    tokenizer = tokenizers.train("wordpiece", ["unable unable able un ☃ nuble"], 40)
    assert tokenizer.decode(tokenizer.encode(["unable\n  able"])[0]) == "unable able"
    names = np.array(tokenizer.pieces())
    # Longest match first, and what goes on in a word is another piece than what begins one.
    for one in ("unable", "ununable", "uble"):
        pieces, rest = [], one
        while rest:
            mark = "##" if pieces else ""
            length = max(n for n in range(1, len(rest) + 1) if mark + rest[:n] in names)
            pieces, rest = [*pieces, mark + rest[:length]], rest[length:]
        assert names[tokenizer.encode([one])[0]].tolist() == pieces
    assert names[tokenizer.encode(["ß"])[0]].tolist() == ["[UNK]"]
    assert not tokenizer.lossless and ALL["unigram"].lossless


def test_special_ids_of_our_own_lie_behind_the_vocabulary():
    for tokenizer in ALL.values():
        size = tokenizer.vocab_size
        assert (tokenizer.mask, tokenizer.first, tokenizer.start) == (size, size + 1, size - 1)
        assert tokenizer.sentinels(3).tolist() == [size, size + 1, size + 2]
        assert tokenizer.size_with() == size
        assert tokenizer.size_with(tokenizer.mask, tokenizer.first) == size + 2
        for spelled in ("[MASK]", "<extra_id_0>") if tokenizer.kind != "characters" else ():
            assert max(tokenizer.encode([spelled])[0]) < size - 1  # a text cannot name them


def test_prompts_name_special_ids_and_answers_spell_sentinels():
    tokenizer = ALL["bytes"]
    assert tokenizer.encode_prompt("a <extra_id_1>b", sentinels=2).tolist() == [97, 32, 258, 98]
    assert tokenizer.encode_prompt("a[MASK]", mask=True).tolist() == [97, 257]
    for spelled in ("<extra_id_2>", "[MASK]"):  # of another objective, or more than there are
        ids = tokenizer.encode_prompt(spelled, sentinels=2)
        assert bytes(ids.tolist()).decode() == spelled
    assert tokenizer.decode([257, 97, 98, 258, 99, 256], sentinels=True) == (
        "<extra_id_0> ab <extra_id_1> c"
    )
    assert tokenizer.decode([257, 97]) == "a"


@pytest.fixture
def bert_like(tmp_path):
    """A folder with BERT's special tokens, in its template."""
    import tokenizers as package

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = package.Tokenizer(package.models.WordPiece(unk_token="[UNK]"))
    made.normalizer = package.normalizers.BertNormalizer()
    made.pre_tokenizer = package.pre_tokenizers.BertPreTokenizer()
    made.decoder = package.decoders.WordPiece()
    trainer = package.trainers.WordPieceTrainer(vocab_size=26, special_tokens=special)
    made.train_from_iterator(["the cat sat on the mat", "a cart on a mart"] * 9, trainer)
    made.post_processor = package.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')  # as published
    return tmp_path


def test_a_bert_brings_its_own_mask_and_first_token(bert_like, tmp_path):
    tokenizer = tokenizers.load(bert_like / "tokenizer.json")
    assert (tokenizer.first, tokenizer.end, tokenizer.mask) == (2, 3, 4)
    ids = tokenizer.encode_prompt("the [MASK] sat", mask=True)
    assert ids.tolist().count(4) == 1 and 2 not in ids and 3 not in ids
    assert tokenizer.encode(["the cat"])[0][0] == 2
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nthe cat\t0\na mat sat\t1\n")
    options = dict(tokenizer_path=str(bert_like / "tokenizer.json"), cache=str(tmp_path / "cache"))
    order = dict(split="train", seed=0, batch=2)
    made = sentences.make(str(tmp_path), context=16, **options, **order)
    assert made.info["vocab_size"] == tokenizer.vocab_size  # nothing behind it
    batch = next(made.batches(0))
    for row, on in zip(batch["tokens"], batch["segments"], strict=True):
        row = row[on > 0].tolist()
        assert row[0] == 2 and row[-1] == 3 and row.count(2) == row.count(3) == 1
    (tmp_path / "input.txt").write_text("the catsat on the carts mat\n" * 60)
    masked = dict(objective="masked", whole_words=True, mask_rate=0.3, context=32)
    made = text.make("files", str(tmp_path / "input.txt"), **masked, **options, **order)
    assert made.info["vocab_size"] == tokenizer.vocab_size and made.info["num_bytes"] is None
    batch = next(made.batches(0))
    on = batch["weight"] > 0
    assert (batch["tokens"][on] == 4).any() and not np.isin(batch["targets"][on], (2, 3)).any()
    # A word is masked whole: what goes on with it is masked as what begins it is.
    goes_on = np.char.startswith(np.array(tokenizer.pieces()), "##")[batch["targets"]][:, 1:]
    assert goes_on.any() and (on[:, 1:] == on[:, :-1])[goes_on].all()


def test_a_t5_brings_its_own_sentinels_and_start(tmp_path):
    import tokenizers as package

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -1.0)]
    pieces += [(letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    made = package.Tokenizer(package.models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = package.pre_tokenizers.Metaspace()
    made.decoder = package.decoders.Metaspace()
    made.add_special_tokens([f"<extra_id_{i}>" for i in (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"eos_token_id": 1, "decoder_start_token_id": 0}')
    tokenizer = tokenizers.load(tmp_path / "tokenizer.json")
    assert tokenizer.sentinels(2).tolist() == [39, 38]  # theirs count down
    assert (tokenizer.start, tokenizer.end) == (0, 1)
    (tmp_path / "input.txt").write_text("the cat sat on the mat\n" * 60)
    options = dict(tokenizer_path=str(tmp_path / "tokenizer.json"), cache=str(tmp_path / "cache"))
    options |= dict(objective="spans", split="train", seed=0, batch=2)
    made = text.make("files", str(tmp_path / "input.txt"), context=64, **options)
    assert made.info["vocab_size"] == 40
    batch = next(made.batches(0))
    assert (batch["tokens"][:, 0] == 0).all() and (batch["targets"][:, 0] == 39).all()
    assert (batch["inputs"] == 39).any()
    ids = tokenizer.encode_prompt("the <extra_id_1> sat", sentinels=3)
    assert 38 in ids and "<extra_id_1>" in tokenizer.decode(ids, sentinels=True)
    with pytest.raises(InputError, match="10 sentinels like <extra_id_0>, and a row .* needs 13"):
        text.make("files", str(tmp_path / "input.txt"), context=256, **options)


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


@pytest.mark.parametrize(
    ("kind", "size"),
    [("bpe", 256), ("unigram", 256), ("wordpiece", 20), ("bytes", 256), ("characters", 5)],
)
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
