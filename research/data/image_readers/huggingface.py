"""Hugging Face datasets with a column of images: a local folder, or a name on the hub.

    data = dict(name="images", reader="huggingface", path="cifar10", image="img")

What `path` may be is in readers/huggingface.py. Labels are a ClassLabel or whole numbers from 0.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from research.arguments import InputError
from research.data.image_readers import Pictures, Splits, digest
from research.data.readers.huggingface import load
from research.data.source import RecordError


def make(path: str | None, image: str, label: str) -> Splits:
    """Returns the splits of a dataset. Raises InputError if it cannot be loaded, or has no such
    columns."""
    return {
        split: functools.partial(_open, f"{path}, split {split}", table, image, label)
        for split, table in load(path).items()
    }


def _open(where: str, table: Any, image: str, label: str) -> Pictures:
    import datasets

    for name in (image, label):
        if name not in table.column_names:
            held = ", ".join(table.column_names)
            raise InputError(f"{where} has no column {name!r}; it has {held}")
    if not isinstance(table.features[image], datasets.Image):
        raise InputError(f"{where}: column {image!r} holds no images, but {table.features[image]}")
    labels = np.asarray(table[label][:])
    if labels.dtype.kind != "i" or labels.min(initial=0) < 0:
        raise InputError(f"{where}: column {label!r} holds no whole numbers from 0")
    names = getattr(table.features[label], "names", None)
    names = names or [str(number) for number in range(int(labels.max(initial=0)) + 1)]
    files = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    print_ = digest(table._fingerprint, image, label)
    records = range(len(labels))
    return Pictures(records, _Reader(files, image, where), labels.astype(np.int32), names, print_)


class _Reader(NamedTuple):
    """Reads the image file of a record."""

    table: Any
    column: str
    where: str

    def __call__(self, index: int) -> bytes:
        found = self.table[index][self.column] or {}
        if found.get("bytes") is None:  # a path would lead anywhere
            raise RecordError(f"{self.where}: record {index} holds no image, but {found!r:.80}")
        return found["bytes"]
