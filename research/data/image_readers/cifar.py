"""CIFAR-10 and CIFAR-100 in the binary version of their authors.

    data = dict(name="images", reader="cifar", path="cifar-10-binary.tar.gz", size=32)

`path` is the archive or the folder. Of CIFAR-100 the 100 fine classes are taken. The Python version
holds the same images as pickles, which may run programs when they are read: it is refused.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from research.arguments import InputError
from research.data.image_readers import Pictures, Splits, digest, existing
from research.data.unpack import members

SIDE, BATCHES = 32, [f"data_batch_{number}" for number in range(1, 6)]
# The files of each version: those of train and of test, that of the names, bytes of label in front.
BINARY = {
    "CIFAR-10": ([f"{name}.bin" for name in BATCHES], ["test_batch.bin"], "batches.meta.txt", 1),
    "CIFAR-100": (["train.bin"], ["test.bin"], "fine_label_names.txt", 2),
}
PICKLED = ({"batches.meta", "test_batch"}, {"meta", "train", "test"})


def make(path: str | None, image: str, label: str) -> Splits:
    """Returns train (50,000) and test (10,000). Raises InputError for the Python version, where
    files are missing, and for files that are something else."""
    root = existing(path, "the folder or the archive of CIFAR-10 or CIFAR-100")
    if root.is_dir():
        files = {file.name: file.read_bytes for file in sorted(root.rglob("*")) if file.is_file()}
    else:
        files = {name.split("/")[-1]: (lambda data=data: data) for name, data in members(root)}
    for train, test, meta, skip in BINARY.values():
        if files.keys() >= {*train, *test, meta}:
            classes = files[meta]().decode().split()
            read = functools.partial(_binary, root, files, skip)
            return _splits(read, classes, train, test)
    if any(files.keys() >= names for names in PICKLED):
        raise InputError(
            f"{root} is the Python version, whose pickles may run programs; take the binary one "
            "(cifar-10-binary.tar.gz, cifar-100-binary.tar.gz)"
        )
    raise InputError(
        f"{root} lacks files of CIFAR-10 (data_batch_1.bin to 5, test_batch.bin, batches.meta.txt) "
        "or CIFAR-100 (train.bin, test.bin, fine_label_names.txt); get the whole archive"
    )


def _splits(read: Callable, classes: list[str], train: list[str], test: list[str]) -> Splits:
    return {
        split: functools.partial(_open, read, classes, names)
        for split, names in (("train", train), ("test", test))
    }


def _open(read: Callable, classes: list[str], files: list[str]) -> Pictures:
    parts = [read(name) for name in files]
    labels = np.concatenate([numbers for numbers, _ in parts]).astype(np.int32)
    planes = np.concatenate([pixels for _, pixels in parts]).reshape(-1, 3, SIDE, SIDE)
    if labels.max(initial=0) >= len(classes):
        raise InputError(f"{files[0]}: label {labels.max()} of {len(classes)} classes; replace it")
    names = [f"{file} image {i}" for file, part in zip(files, parts, strict=True) for i in
             range(len(part[0]))]  # fmt: skip
    pixels = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    print_ = digest(pixels.tobytes(), labels.tobytes(), classes)
    return Pictures(names, pixels.__getitem__, labels, classes, print_)


def _binary(root: Path, files: dict, skip: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels and pixels of records: `skip` bytes, the last one the label, and planes."""
    data, size = files[name](), skip + 3 * SIDE * SIDE
    if not data or len(data) % size:
        raise InputError(f"{root}/{name} has {len(data)} bytes, no multiple of {size}; replace it")
    rows = np.frombuffer(data, np.uint8).reshape(-1, size)
    return rows[:, skip - 1], rows[:, skip:]
