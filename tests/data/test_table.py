"""Tables, sentences with classes, pairs of texts: their forms, and what is refused."""

import gzip

import numpy as np
import pytest

from research.arguments import InputError
from research.data import pairs, sentences, table

ROWS = [("good film", "1"), ("bad film", "0"), ('a "great" one', "1"), ("dull", "0")]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in ROWS))
    (tmp_path / "dev.tsv").write_text("fine\t1\n")
    return tmp_path


def make(folder, split="train", **options):
    options = dict(columns=("sentence", "label"), tokenizer="bytes", context=16) | options
    return sentences.make(str(folder), **options, split=split, seed=0, batch=4)


def test_every_form_of_a_table_gives_the_same_rows(tmp_path):
    plain = "sentence\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in ROWS)
    quoted = "sentence,label\n" + "".join(
        '"{}",{}\n'.format(a.replace('"', '""'), b) for a, b in ROWS
    )
    lines = "".join(f'{{"sentence": {a!r}, "label": {b}}}\n'.replace("'", '"') for a, b in ROWS[:2])
    tables = []
    for name, text in (("a.tsv", plain), ("b.csv", quoted), ("c.jsonl", lines)):
        (place := tmp_path / name[0]).mkdir()
        (place / f"train{name[1:]}").write_text(text)
        tables.append(table.read(str(place), "train", None, ("sentence", "label")).rows)
    (place := tmp_path / "d").mkdir()
    for number, field in enumerate(("sentence", "label")):
        text = "".join(row[number] + "\n" for row in ROWS)
        (place / f"train.{field}.gz").write_bytes(gzip.compress(text.encode()))
    tables.append(table.read(str(place), "train", None, ("sentence", "label")).rows)
    assert tables[0] == tables[1] == tables[3] == [dict(sentence=a, label=b) for a, b in ROWS]
    assert tables[2] == tables[0][:2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("good film\n", "train.tsv:1 has 1 columns, expected sentence, label"),
        ("a\tb\tc\n", "train.tsv:1 has 3 columns"),
        ("\xff", "is not UTF-8"),
    ],
)
def test_rows_that_do_not_fit_are_named(folder, content, message):
    (folder / "train.tsv").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=message):
        make(folder)


def test_what_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(InputError, match="no test.tsv or test.csv"):
        make(folder, "test")
    with pytest.raises(InputError, match="has no column 'text'; it has sentence, label"):
        make(folder, text="text")
    with pytest.raises(InputError, match="is not a folder"):
        make(tmp_path / "nowhere")
    (folder / "dev.tsv").write_text("fine\t7\n")
    with pytest.raises(InputError, match="dev.tsv:1: label '7' is not among those of the train"):
        make(folder, "validation")


def test_parallel_files_of_different_lengths_are_refused(tmp_path):
    (tmp_path / "train.en").write_text("a\nb\n")
    (tmp_path / "train.de").write_text("a\n")
    with pytest.raises(InputError, match="different lengths, {'en': 2, 'de': 1} lines"):
        table.read(str(tmp_path), "train", None, ("en", "de"))


def test_a_sentence_is_first_text_end_and_padding(folder):
    made = make(folder, "validation")
    batch = next(made.batches())
    assert batch["tokens"][0].tolist() == [258, *b"fine", 256] + [0] * 10
    assert batch["segments"][0].tolist() == [1] * 6 + [0] * 10
    assert batch["labels"][0] == 1 and batch["weight"].tolist() == [1, 0, 0, 0]
    assert made.info["classes"] == ["0", "1"] and made.info["labels"] == 2


def test_of_a_pair_the_longer_sentence_gives_way():
    from research.data.tokenizer import train

    codec = train("bytes", [])
    row = sentences.encode(np.arange(100, 120), np.arange(50, 54), 16, codec)
    assert row["tokens"].tolist() == [258, *range(100, 109), 256, *range(50, 54), 256]
    assert row["types"].tolist() == [0] * 11 + [1] * 5
    row = sentences.encode(np.arange(3), np.arange(50, 90), 16, codec)
    assert row["tokens"].tolist() == [258, 0, 1, 2, 256, *range(50, 60), 256]


def test_pairs_are_shifted_and_cut_with_a_count(tmp_path):
    (tmp_path / "train.en").write_text("ab\nlonger than that\n")
    (tmp_path / "train.de").write_text("xyz\nx\n")
    made = pairs.make(
        str(tmp_path), source="en", target="de", tokenizer="bytes", context=6, split="train",
        seed=0, batch=2,
    )  # fmt: skip
    batch = next(made.batches(one_pass=True))
    assert batch["inputs"].tolist() == [[*b"ab", 256, 0, 0, 0], [*b"longer"]]
    assert batch["tokens"][0].tolist() == [256, *b"xyz", 0, 0]
    assert batch["targets"][0].tolist() == [*b"xyz", 256, 0, 0]
    assert batch["weight"].sum(1).tolist() == [4, 2] and made.info["cut"] == 1


@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_a_line_that_is_torn_is_named(suffix, tmp_path):
    (tmp_path / f"train.{suffix}").write_bytes(b"sentence,label\na,0\nb\rc,1\n".replace(
        b",", b"," if suffix == "csv" else b"\t"))  # fmt: skip
    with pytest.raises(InputError, match=rf"train\.{suffix}:\d: .*; mend the line"):
        table.read(str(tmp_path), "train", None, ("sentence", "label"))


def test_long_fields_are_read(tmp_path):
    (tmp_path / "train.csv").write_text("sentence,label\n" + "x " * 100_000 + ",0\n")
    assert (
        len(table.read(str(tmp_path), "train", None, ("sentence",)).rows[0]["sentence"]) > 131_072
    )
