"""Every token is predicted once, from its own past, whatever the packing."""

import itertools
import json

import numpy as np
import pytest

from research.arguments import InputError, complete
from research.data import text
from research.data import tokenizer as tokenizers
from research.data.packing import best_fit
from research.data.readers import files
from research.data.source import RecordError

WORDS = "the cat sat on a mat and ate naïve ☃ snow 12 times".split()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANNEAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """200 documents of 0 to 60 words; with an empty one, and two that are equal."""
    random = np.random.default_rng(0)
    (tmp_path / "texts").mkdir()
    for number in range(200):
        words = random.choice(WORDS, random.integers(60)) if number else []
        (tmp_path / "texts" / f"{number:03}.txt").write_text(" ".join(words))
    (tmp_path / "texts" / "001.txt").write_text((tmp_path / "texts" / "002.txt").read_text())
    return tmp_path / "texts"


def make(folder, split="train", **options):
    defaults = dict(
        reader="files", path=str(folder), tokenizer="bytes", context=32, seed=0, batch=4
    )
    return text.make(**(defaults | options), split=split)


def first_document(folder, split):
    return files.make(str(folder), split, "text").name(0)


def documents(folder, split, tokenizer):
    records = files.make(str(folder), split, "text")
    return [list(ids) for ids in tokenizer.encode([records.read(i) for i in range(records.count)])]


def joined(batches):
    """Returns batches as one, along rows."""
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def pairs(batch):
    """Returns the predictions (token, target) with weight, in order."""
    kept = batch["weight"] > 0
    return list(zip(batch["tokens"][kept].tolist(), batch["targets"][kept].tolist(), strict=True))


@pytest.mark.core
@pytest.mark.parametrize("tokenizer", ["bytes", "characters", "bpe"])
def test_evaluation_predicts_every_token_of_the_stream_once_in_order(folder, tokenizer):
    source = make(
        folder, "validation", tokenizer=tokenizer, vocab_size=280 if tokenizer == "bpe" else None
    )
    end = source.tokenizer.end
    stream = [end]
    for ids in documents(folder, "validation", source.tokenizer):
        stream += [*ids, end]
    found = pairs(joined(source.batches()))
    assert found == list(itertools.pairwise(stream))
    assert len(found) == source.info["num_tokens"]
    text_of_split = source.tokenizer.decode([target for _, target in found])
    assert len(text_of_split.encode()) == source.info["num_bytes"]


@pytest.mark.core
def test_training_predicts_every_token_once_an_epoch_with_new_cuts(folder):
    source = make(folder, context=24)
    expected = sorted(itertools.pairwise(stream_of(folder, source)))
    rows = -(-source.info["num_tokens"] // 24)
    batches = source.batches()
    taken = joined(itertools.islice(batches, rows))  # four epochs, as the batch is 4
    cuts = set()
    for number in range(4):
        one = {name: value[number * rows : (number + 1) * rows] for name, value in taken.items()}
        assert sorted(pairs(one)) == expected
        cuts.add(frozenset(map(tuple, one["tokens"].tolist())))
    assert len(cuts) == 4


def stream_of(folder, source):
    end = source.tokenizer.end
    stream = [end]
    for ids in documents(folder, "train", source.tokenizer):
        stream += [*ids, end]
    return stream


@pytest.mark.core
def test_one_pass_over_training_data_predicts_every_token_once(folder):
    for packing in ("stream", "documents"):
        source = make(folder, packing=packing)
        found = pairs(joined(source.batches(one_pass=True)))
        assert sorted(found) == sorted(itertools.pairwise(stream_of(folder, source)))


@pytest.mark.core
@pytest.mark.parametrize("split", ["train", "validation"])
def test_packing_predicts_every_token_once_and_crosses_no_document(tmp_path, split):
    # No character occurs twice, so a prediction tells where it is from.
    lengths = np.random.default_rng(0).integers(0, 90, 100)
    texts = [
        "".join(chr(0x4E00 + 90 * n + k) for k in range(size)) for n, size in enumerate(lengths)
    ]
    (tmp_path / "texts").mkdir()
    for number, content in enumerate(texts):
        (tmp_path / "texts" / f"{number}.txt").write_text(content)
    tokenizers.train("characters", texts).save(tmp_path / "tokenizer.json")
    source = make(
        tmp_path / "texts",
        split,
        packing="documents",
        context=40,
        tokenizer_path=str(tmp_path / "tokenizer.json"),
    )
    end = source.tokenizer.end
    expected = {}  # prediction -> (document, place)
    for number, ids in enumerate(documents(tmp_path / "texts", split, source.tokenizer)):
        for place, pair in enumerate(itertools.pairwise([end, *ids, end])):
            expected.setdefault(pair, []).append((number, place))
    batch = joined(source.batches(one_pass=True))
    assert sorted(pairs(batch)) == sorted(pair for pair in expected for _ in expected[pair])
    np.testing.assert_array_equal(batch["weight"] > 0, batch["segments"] > 0)
    assert batch["segments"].max() > 2
    for row in range(len(batch["tokens"])):
        one = {name: value[row] for name, value in batch.items()}
        for number in range(1, one["segments"].max() + 1):
            at = one["segments"] == number
            assert one["positions"][at].tolist() == list(range(at.sum()))
            found = [expected[pair] for pair in pairs({k: v[at] for k, v in one.items()})]
            if len(found) > 1:  # an empty document is the same prediction as another
                assert len({document for ((document, _),) in found}) == 1
                assert (np.diff([place for ((_, place),) in found]) == 1).all()


@pytest.mark.parametrize("skew", [1, 3])
def test_best_fit_packing_fills_rows(skew):
    random = np.random.default_rng(0)
    sizes = np.clip((random.random(3000) ** skew * 128).astype(int), 1, 128)
    rows = best_fit(sizes, 128)
    filled = np.bincount(rows, weights=sizes)
    assert filled.max() <= 128 and filled.min() > 0
    assert filled.mean() / 128 > 0.95
    assert len(filled) < 1.02 * np.ceil(sizes.sum() / 128) or skew == 1


def test_one_document_a_row_is_cut_and_padded(folder):
    source = make(folder, "validation", packing="none", context=40)
    batch = joined(source.batches())
    texts = documents(folder, "validation", source.tokenizer)
    end = source.tokenizer.end
    for row, ids in enumerate(texts):
        kept = ([*ids, end])[:40]
        assert batch["targets"][row].tolist() == kept + [0] * (40 - len(kept))
        assert batch["tokens"][row, : len(kept)].tolist() == ([end, *ids])[:40]
        assert batch["weight"][row].sum() == len(kept)
    assert source.info["num_tokens"] == batch["weight"].sum()
    assert source.info["num_bytes"] is None  # not all of the text is predicted
    assert make(folder, "validation", packing="none", context=500).info["num_bytes"] > 0


@pytest.mark.parametrize("packing", ["stream", "documents", "none"])
def test_batches_match_the_spec(folder, packing):
    source = make(folder, packing=packing)
    batch = next(source.batches())
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in source.spec.items()
    }
    assert json.loads(json.dumps(source.info)) == source.info
    assert batch["tokens"].max() < source.info["vocab_size"]


def test_hosts_workers_and_seeking_do_not_change_text_batches(folder):
    source, workers = (
        make(folder, packing="documents"),
        make(folder, packing="documents", workers=1),
    )
    expected = list(itertools.islice(source.batches(), 6))
    parts = [list(itertools.islice(source.batches(2, (host, 2)), 4)) for host in range(2)]
    other = list(itertools.islice(workers.batches(2), 4))
    for step in range(4):
        for name, value in expected[step + 2].items():
            np.testing.assert_array_equal(np.concatenate([p[step][name] for p in parts]), value)
            np.testing.assert_array_equal(other[step][name], value)


def break_documents(folder, count, split="train"):
    """Makes `count` documents of the split undecodable; returns their paths."""
    records = files.make(str(folder), split, "text")
    paths = [records.name(index) for index in range(5, 5 + count)]
    for path in paths:
        with open(path, "wb") as file:
            file.write(b"caf\xe9")
    return paths


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_a_corrupt_document_is_an_error_that_names_it(folder, tokenizer, cache):
    (path,) = break_documents(folder, 1)
    for split in ("train", "validation") if tokenizer == "bpe" else ("train",):
        with pytest.raises(RecordError, match=f"{path} is not UTF-8 text .byte 3.*skip_budget"):
            make(folder, split, tokenizer=tokenizer)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("packing", ["stream", "documents", "none"])
def test_a_corrupt_document_within_budget_is_left_out_and_listed(folder, packing, capsys):
    clean = documents(folder, "train", tokenizers.Tokenizer("bytes"))
    paths = break_documents(folder, 2)
    source = make(folder, packing=packing, skip_budget=2, context=64)
    assert len(source.info["skipped"]) == 2
    assert all(path in capsys.readouterr().err or path in str(source.info) for path in paths)
    batch = joined(source.batches(one_pass=True))
    kept = clean[:5] + clean[7:]
    if packing == "none":
        assert batch["weight"][5:7].sum() == 0
        firsts = [len(ids) + 1 for ids in clean[7:9]]
        assert batch["weight"][7:9].sum(1).tolist() == [min(64, size) for size in firsts]
    else:
        expected = sum(len(ids) + 1 for ids in kept)
        assert batch["weight"].sum() == source.info["num_tokens"] == expected
    for _ in range(2):  # also when the ids come from the cache
        with pytest.raises(InputError, match="more than skip_budget=1 corrupt records"):
            make(folder, packing=packing, skip_budget=1, context=64)
    with pytest.raises(RecordError, match="is not UTF-8 text"):
        make(folder, packing=packing, context=64)


@pytest.mark.core
def test_the_second_run_neither_trains_nor_tokenises(folder, monkeypatch):
    first = make(folder, tokenizer="bpe", vocab_size=280)

    def fail(*arguments):
        raise AssertionError("made again")

    monkeypatch.setattr(text, "_tokenise", fail)
    monkeypatch.setattr(tokenizers, "train", fail)
    second = make(folder, tokenizer="bpe", vocab_size=280)
    assert second.info == first.info and second.tokenizer == first.tokenizer
    for change in (dict(tokenizer="bytes"), dict(vocab_size=281), dict(split="validation")):
        with pytest.raises(AssertionError, match="made again"):
            make(folder, **(dict(tokenizer="bpe", vocab_size=280) | change))


def test_a_changed_file_is_tokenised_anew(folder):
    before = [make(folder, split).info["fingerprint"] for split in ("train", "validation")]
    with open(first_document(folder, "train"), "a") as file:
        file.write("!")
    sources = [make(folder, split) for split in ("train", "validation")]
    after = [source.info["fingerprint"] for source in sources]
    assert after[0] != before[0] and after[1] == before[1]
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert sum(source.info["num_bytes"] for source in sources) == size


def test_a_changed_text_gets_another_tokenizer_and_another_tokenizer_other_ids(folder):
    options = dict(tokenizer="bpe", vocab_size=270)
    before = make(folder, **options)
    with open(first_document(folder, "train"), "a") as file:
        file.write("zebra " * 500)
    after = make(folder, **options)
    assert len(after.tokenizer.encode(["zebra"])[0]) < len(before.tokenizer.encode(["zebra"])[0])
    for source in (after, make(folder, tokenizer="bpe", vocab_size=290), make(folder)):
        targets = joined(source.batches(one_pass=True))["targets"]
        assert "zebra zebra" in source.tokenizer.decode(targets.ravel())


def test_a_truncated_cache_is_refused(folder, cache):
    make(folder)
    (tokens,) = cache.glob("tokens-*/tokens.*")
    with open(tokens, "r+b") as file:
        file.truncate(100)
    text.open_array.cache_clear()
    with pytest.raises(InputError, match="tokens-.* is damaged; delete it"):
        make(folder)


def test_the_tokenizer_is_learned_from_the_training_split_alone(folder, tmp_path):
    validation = make(folder, "validation", tokenizer="bpe", vocab_size=300).tokenizer
    train = make(folder, tokenizer="bpe", vocab_size=300, cache=str(tmp_path / "other")).tokenizer
    assert validation == train
    with open(first_document(folder, "validation"), "a") as file:
        file.write("ß")
    with pytest.raises(InputError, match="'ß' is not among"):
        make(folder, "validation", tokenizer="characters")


def test_a_saved_tokenizer_is_used(folder, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizers.train("bpe", ["on on on on"], 259).save(path)
    source = make(folder, tokenizer_path=str(path))
    assert source.info["vocab_size"] == source.tokenizer.vocab_size == 259


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_too_little_text_for_a_row_is_refused(tmp_path, packing):
    (tmp_path / "short.txt").write_text("x" * 100)
    source = make(tmp_path / "short.txt", packing=packing, context=91)
    assert source.num_batches == 1 and next(source.batches())["weight"].sum() == 91 * 4
    with pytest.raises(InputError, match="split train has 91 tokens, a row needs 92"):
        make(tmp_path / "short.txt", packing=packing, context=92)
    with pytest.raises(InputError, match="split validation has 11 tokens, a row needs 91"):
        make(tmp_path / "short.txt", "validation", packing=packing, context=91)


def test_other_seeds_give_other_batches_and_the_same_seed_the_same(folder):
    first, same, other = (next(make(folder, seed=seed).batches())["tokens"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_what_a_config_may_say_is_checked_by_the_signature():
    supplied = ("split", "seed", "batch")
    assert complete(text.make, {}, "config.data", supplied)["context"] == 128
    with pytest.raises(InputError, match="config.data.packing='stram' is not an option; did you"):
        complete(text.make, {"packing": "stram"}, "config.data", supplied)
    with pytest.raises(
        InputError, match="'file' is not in research/data.readers; did you mean 'files'"
    ):
        make(".", reader="file")


def test_the_standard_library_is_ready_to_train_on(cache):
    train, heldout = (
        text.make(tokenizer="bytes", split=split, seed=0, batch=8)
        for split in ("train", "validation")
    )
    assert train.info["num_bytes"] > 8e6 and heldout.info["num_bytes"] > 3e5
    total = sum(batch["weight"].sum() for batch in heldout.batches())
    assert (
        total
        == heldout.info["num_tokens"]
        == heldout.info["num_bytes"] + heldout.info["num_documents"]
    )
