"""Every reader returns each document once, in one split, and names what it cannot read."""

import json
import sys

import pytest

from research.arguments import InputError
from research.data.readers import array_record, files, huggingface, stdlib, tfds
from research.data.source import RecordError

TEXTS = [f"document {number}: naïve\n" for number in range(200)]


def read_all(make, path, field="text"):
    """Returns {split: texts}."""
    splits = {split: make(path, split, field) for split in ("train", "validation")}
    assert splits["train"].fingerprint != splits["validation"].fingerprint
    return {
        split: [records.read(index) for index in range(records.count)]
        for split, records in splits.items()
    }


def assert_splits_hold_each_text_once(found):
    assert sorted(found["train"] + found["validation"]) == sorted(TEXTS)
    assert 0 < len(found["validation"]) < len(found["train"]) / 5


@pytest.fixture
def folder(tmp_path):
    for number, text in enumerate(TEXTS):
        path = tmp_path / "texts" / f"part{number % 3}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "texts" / "picture.png").write_bytes(b"\x89PNG")
    return tmp_path / "texts"


def test_the_standard_library_is_source_text_without_its_tests():
    train, heldout = (stdlib.make(None, split, "text") for split in ("train", "validation"))
    names = [records.name(i) for records in (train, heldout) for i in range(records.count)]
    assert len(set(names)) == len(names) > 400
    assert 0.02 < heldout.count / len(names) < 0.10
    assert all(name.endswith(".py") for name in names)
    inside = " ".join(name.split("/python3.")[-1] for name in names)
    assert not any(f"/{word}/" in inside for word in ("test", "tests", "idlelib", "site-packages"))
    assert "argparse.py" in inside and "asyncio/" in inside
    size = sum(len(train.read(i).encode()) for i in range(train.count))
    assert 8e6 < size < 15e6


def test_a_folder_without_library_source_is_refused(tmp_path):
    with pytest.raises(InputError, match="none of 0 text files .*reader=files"):
        stdlib.make(str(tmp_path), "train", "text")


def test_one_file_is_split_at_nine_tenths_of_its_characters(tmp_path):
    text = "é" * 90 + "x" * 11
    (tmp_path / "a.txt").write_text(text)
    found = read_all(files.make, str(tmp_path / "a.txt"))
    assert found == {"train": ["é" * 90], "validation": ["x" * 11]}


def test_a_folder_of_files_is_read_whole(folder):
    assert_splits_hold_each_text_once(read_all(files.make, str(folder)))


def test_the_split_of_a_file_does_not_depend_on_the_others(folder):
    before = read_all(files.make, str(folder))
    (folder / "new.md").write_text("one more")
    after = read_all(files.make, str(folder))
    assert set(before["train"]) <= set(after["train"])
    assert set(before["validation"]) <= set(after["validation"])


def test_the_fingerprint_follows_names_and_contents(folder):
    prints = [files.make(str(folder), "train", "text").fingerprint]
    path = next(
        file
        for file in folder.rglob("*.txt")
        if file.read_text() in read_all(files.make, folder)["train"]
    )
    path.write_text("other")
    prints.append(files.make(str(folder), "train", "text").fingerprint)
    path.rename(path.with_name("renamed-into-train.txt"))
    prints.append(files.make(str(folder), "train", "text").fingerprint)
    assert len(set(prints)) == 3


def test_what_is_no_text_is_named_with_its_byte(folder, tmp_path):
    (tmp_path / "binary").write_bytes(b"abc\x00def")
    with pytest.raises(RecordError, match=r"binary is not text \(NUL at byte 3\)"):
        files.make(str(tmp_path / "binary"), "train", "text")
    for file in folder.rglob("*.txt"):
        file.write_bytes(b"caf\xe9 au lait")
    records = files.make(str(folder), "train", "text")
    with pytest.raises(RecordError, match=r"\.txt is not UTF-8 text \(byte 3\)") as error:
        records.read(4)
    assert records.name(4) in str(error.value)


@pytest.mark.parametrize("path", [None, "missing.txt"])
def test_a_missing_path_is_refused(path):
    with pytest.raises(InputError, match="does not exist; give a text file or a folder"):
        files.make(path, "train", "text")


def test_an_empty_path_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match="no text for split train"):
        files.make(str(tmp_path / "empty.txt"), "train", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="none of 0 text files"):
        files.make(str(tmp_path / "folder"), "train", "text")


@pytest.mark.parametrize("make", [files.make, array_record.make])
def test_an_unknown_split_is_refused(make, folder):
    with pytest.raises(InputError, match="split='test' is not known"):
        make(str(folder), "test", "text")


def write_shard(path, records):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def test_array_records_of_text_and_json_are_held_out_by_hash(tmp_path):
    records = [text.encode() for text in TEXTS[:90]]
    records += [json.dumps({"id": 1, "body": text}).encode() for text in TEXTS[90:]]
    write_shard(tmp_path / "a-0.array_record", records[:50])
    write_shard(tmp_path / "a-1.array_record", records[50:])
    assert_splits_hold_each_text_once(read_all(array_record.make, str(tmp_path), "body"))
    pattern = read_all(array_record.make, str(tmp_path / "a-*"), "body")
    assert_splits_hold_each_text_once(pattern)


def test_array_record_shards_named_after_a_split_are_that_split(tmp_path):
    write_shard(tmp_path / "train-0.array_record", [b"a", b"b"])
    write_shard(tmp_path / "validation-0.array_record", [b"c"])
    found = read_all(array_record.make, str(tmp_path))
    assert found == {"train": ["a", "b"], "validation": ["c"]}


def test_a_corrupt_array_record_is_named_and_the_others_are_read(tmp_path):
    shard = tmp_path / "train-0.array_record"
    write_shard(shard, [text.encode() * 9 for text in TEXTS])
    data = bytearray(shard.read_bytes())
    data[data.index(b"document 17: ") + 20] ^= 0xFF
    shard.write_bytes(data)
    records = array_record.make(str(tmp_path), "train", "text")
    with pytest.raises(RecordError, match="train-0.array_record record 17 cannot be read: .*hash"):
        records.read(17)
    assert records.read(18) == TEXTS[18] * 9


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b'{"body": "x"}', r"record 0 has no text in field 'text'; it has \['body'\]"),
        (b'{"text": 3}', "record 0 has no text in field 'text'"),
        (b'{"text": "\\ud800"}', "record 0 is not UTF-8 text"),
        (b"caf\xe9", r"record 0 is not UTF-8 text \(byte 3\)"),
    ],
)
def test_an_array_record_without_text_is_named(tmp_path, record, message):
    write_shard(tmp_path / "train.array_record", [record])
    with pytest.raises(RecordError, match=message):
        array_record.make(str(tmp_path), "train", "text").read(0)


def test_a_file_that_is_no_array_record_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no ArrayRecord records of split train"):
        array_record.make(str(tmp_path), "train", "text")
    shard = tmp_path / "train.array_record"
    write_shard(shard, [b"text"])
    for content in (shard.read_bytes()[: 1 << 16], b"text", b""):
        shard.write_bytes(content)
        with pytest.raises(InputError, match="train.array_record is no ArrayRecord file, or its"):
            array_record.make(str(tmp_path), "train", "text")


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module.disable_progress_bars()
    return module


def test_a_saved_hugging_face_dataset_is_held_out_by_hash(datasets, tmp_path):
    table = datasets.Dataset.from_dict({"n": list(range(200)), "body": TEXTS})
    table.save_to_disk(str(tmp_path / "one"))
    assert_splits_hold_each_text_once(read_all(huggingface.make, str(tmp_path / "one"), "body"))
    prints = {huggingface.make(str(tmp_path / "one"), "train", "body").fingerprint for _ in "ab"}
    assert len(prints) == 1


def test_the_splits_of_a_hugging_face_dataset_are_used(datasets, tmp_path):
    parts = {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    splits = {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in parts.items()}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "many"))
    for name, texts in parts.items():
        records = huggingface.make(str(tmp_path / "many"), name, "text")
        assert [records.read(index) for index in range(records.count)] == texts
    with pytest.raises(InputError, match="has no split 'dev'; it has train, validation, test"):
        huggingface.make(str(tmp_path / "many"), "dev", "text")
    with pytest.raises(InputError, match="has no column 'body'; it has text"):
        huggingface.make(str(tmp_path / "many"), "train", "body")


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_a_folder_of_tables_is_read(datasets, tmp_path, kind):
    (tmp_path / "data").mkdir()
    table = datasets.Dataset.from_dict({"text": TEXTS})
    getattr(table, f"to_{kind}")(str(tmp_path / "data" / f"train.{kind}"))
    assert_splits_hold_each_text_once(read_all(huggingface.make, str(tmp_path / "data")))


def test_a_hugging_face_record_without_text_is_named(datasets, tmp_path):
    datasets.Dataset.from_dict({"text": ["a", None]}).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(RecordError, match="record 1 has no text in 'text', but None"):
        huggingface.make(str(tmp_path / "one"), "train", "text").read(1)


def test_an_empty_folder_is_no_hugging_face_dataset(datasets, tmp_path):
    with pytest.raises(InputError, match="cannot be loaded: "):
        huggingface.make(str(tmp_path), "train", "text")
    with pytest.raises(InputError, match="needs data.path"):
        huggingface.make(None, "train", "text")


@pytest.mark.parametrize(
    ("make", "package"), [(huggingface.make, "datasets"), (tfds.make, "tensorflow_datasets")]
)
def test_a_missing_package_says_what_to_install(make, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match="pip install"):
        make("name", "train", "text")
