"""TensorFlow Datasets with an image feature, without TensorFlow: prepared as array_record.

    data = dict(name="images", reader="tfds", path="imagenette/full-size-v2")

What `path` may be is in readers/tfds.py. Images stay as their files until they are needed, but each
record is read once at the start, for its label.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from research.arguments import InputError
from research.data.image_readers import Pictures, Splits, digest
from research.data.readers.tfds import load
from research.data.source import RecordError


def make(path: str | None, image: str, label: str) -> Splits:
    """Returns the splits of a dataset. Raises InputError if there is none, or no such features."""
    builder = load(path)
    for name in (image, label):
        if name not in builder.info.features:
            held = ", ".join(builder.info.features)
            raise InputError(f"{path} has no feature {name!r}; it has {held}")
    if not hasattr(builder.info.features[label], "num_classes"):
        raise InputError(f"{path}: feature {label!r} is no class; set config.data.label")
    return {
        split: functools.partial(_open, builder, split, image, label)
        for split in builder.info.splits
    }


def _open(builder: Any, split: str, image: str, label: str) -> Pictures:
    from tensorflow_datasets import decode

    where = f"{builder.info.full_name}, split {split}"
    try:
        data = builder.as_data_source(split=split, decoders={image: decode.SkipDecoding()})
        labels = np.array([data[index][label] for index in range(len(data))], np.int32)
    except Exception as error:  # another format than array_record, a damaged file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{where}: {reason}") from error
    found = builder.info.splits[split]
    sizes = (int(found.num_bytes), found.shard_lengths)
    print_ = digest(builder.info.full_name, split, sizes, labels.tobytes())
    names = builder.info.features[label].names
    return Pictures(range(len(labels)), _Reader(data, image, where), labels, names, print_)


class _Reader(NamedTuple):
    """Reads the image file of a record."""

    data: Any
    feature: str
    where: str

    def __call__(self, index: int) -> bytes:
        try:
            return bytes(self.data[index][self.feature])
        except Exception as error:
            raise RecordError(f"{self.where}: record {index} cannot be read: {error}") from None
