"""Hugging Face datasets: a local folder, or a name on the hub.

    data = dict(name="text", reader="huggingface", path="roneneldan/TinyStories")

A dataset without a validation split holds out about 5 % of train by a hash of the index.
"""

from pathlib import Path
from typing import Any

from research.arguments import InputError
from research.data.readers import Records, in_split
from research.data.source import RecordError


def make(path: str | None, split: str, field: str) -> Records:
    """Returns the texts in column `field` of the dataset at `path`: a folder that save_to_disk
    wrote, a folder of parquet, JSON lines or text files, or else "owner/name[:config]".

    Raises InputError if it cannot be loaded or has no such split or column.
    """
    splits = load(path)
    hashed = "validation" not in splits and split in ("train", "validation")
    table = splits.get("train" if hashed else split)
    if table is None:
        raise InputError(f"{path} has no split {split!r}; it has {', '.join(splits)}")
    if field not in table.column_names:
        raise InputError(f"{path} has no column {field!r}; it has {', '.join(table.column_names)}")
    table = table.select_columns([field])
    indices = [i for i in range(len(table)) if not hashed or in_split(str(i), split)]
    if not indices:
        raise InputError(f"{path} has no records of split {split}; it has {len(table)} in all")

    def describe(index: int) -> str:
        return f"{path} record {indices[index]}"

    def read(index: int) -> str:
        text = table[indices[index]][field]
        if not isinstance(text, str):
            raise RecordError(f"{describe(index)} has no text in {field!r}, but {text!r:.40}")
        return text

    return Records(len(indices), describe, read, f"{table._fingerprint} {split}")


def load(path: str | None) -> dict[str, Any]:
    """Returns the tables of a dataset by their splits, of one without splits as train. Raises
    InputError if it cannot be loaded."""
    try:
        import datasets
    except ImportError:
        raise InputError("reader=huggingface needs datasets: pip install 'anneal[nlp]'") from None
    if not path:
        raise InputError("reader=huggingface needs data.path: a local folder or a hub name")
    local = Path(path).expanduser()
    name, _, config = path.partition(":")
    try:
        if (local / "dataset_dict.json").exists() or (local / "state.json").exists():
            splits = datasets.load_from_disk(str(local))
        elif local.is_dir():
            splits = datasets.load_dataset(str(local))
        else:
            splits = datasets.load_dataset(name, config or None)
    except Exception as error:  # every failure of the package is one of the given path
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"data.path={path!r} cannot be loaded: {reason}") from error
    return {"train": splits} if isinstance(splits, datasets.Dataset) else dict(splits)
