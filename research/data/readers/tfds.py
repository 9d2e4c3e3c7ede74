"""TensorFlow Datasets without TensorFlow: what was prepared in the array_record format.

    data = dict(name="text", reader="tfds", path="lm1b")        # or "name/config:version"

A dataset without a validation split holds out about 5 % of train by a hash of the index.
"""

from pathlib import Path
from typing import Any

from research.arguments import InputError
from research.data.readers import Records, decode, in_split
from research.data.source import RecordError


def make(path: str | None, split: str, field: str) -> Records:
    """Returns the texts in feature `field` of the dataset `path`: a prepared folder (the one with
    dataset_info.json), or a name under $TFDS_DATA_DIR.

    Raises InputError if there is no such dataset, split or feature.
    """
    builder = load(path)
    splits = builder.info.splits
    try:
        hashed = "validation" not in splits and split in ("train", "validation")
        data = builder.as_data_source(split="train" if hashed else split)
    except Exception as error:  # every failure of the package is one of the given path
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"data.path={path!r}, split {split}: {reason}") from error
    if field not in builder.info.features:
        raise InputError(
            f"{path} has no feature {field!r}; it has {', '.join(builder.info.features)}"
        )
    indices = [i for i in range(len(data)) if not hashed or in_split(str(i), split)]

    def name(index: int) -> str:
        return f"{path} record {indices[index]}"

    def read(index: int) -> str:
        try:
            text = data[indices[index]][field]
        except Exception as error:
            raise RecordError(f"{name(index)} cannot be read: {error}") from None
        if not isinstance(text, bytes):
            raise RecordError(f"{name(index)} has no text in {field!r}, but {text!r:.40}")
        return decode(text, name(index))

    sizes = [(key, int(splits[key].num_bytes), splits[key].shard_lengths) for key in sorted(splits)]
    return Records(len(indices), name, read, f"{builder.info.full_name} {sizes} {split} {field}")


def load(path: str | None) -> Any:
    """Returns the builder of a prepared dataset. Raises InputError if there is none."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        advice = "pip install 'anneal[vision]'"
        raise InputError(f"reader=tfds needs tensorflow-datasets: {advice}") from None
    if not path:
        raise InputError("reader=tfds needs data.path: a prepared folder, or a name")
    try:
        local = Path(path).expanduser()
        return tfds.builder_from_directory(local) if local.is_dir() else tfds.builder(path)
    except Exception as error:  # every failure of the package is one of the given path
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"data.path={path!r} cannot be loaded: {reason}") from error
