"""CIFAR-10 and CIFAR-100, as their authors distribute them: the Python and the binary version.

    data = dict(name="images", reader="cifar", path="cifar-10-python.tar.gz", size=32)

`path` is the archive or the folder. Of CIFAR-100 the 100 fine classes are taken. The Python version
is pickles: they are read without running anything that is in them.
"""

import functools
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
PICKLED = {
    "CIFAR-10": (BATCHES, ["test_batch"], "batches.meta", "label_names", "labels"),
    "CIFAR-100": (["train"], ["test"], "meta", "fine_label_names", "fine_labels"),
}


def make(path: str | None, image: str, label: str) -> Splits:
    """Returns train (50,000) and test (10,000). Raises InputError where the files of neither
    version are all there, and for files that are something else."""
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
    for train, test, meta, names, labels in PICKLED.values():
        if files.keys() >= {*train, *test, meta}:
            held = _unpickle(files[meta](), f"{root}/{meta}")
            classes = [str(name) for name in held.get(names, [])]
            read = functools.partial(_pickled, root, files, labels)
            return _splits(read, classes, train, test)
    raise InputError(
        f"{root} lacks files of CIFAR-10 (data_batch_1 to 5, test_batch, batches.meta; or .bin) or "
        "CIFAR-100 (train, test, meta); get the whole archive"
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


def _pickled(root: Path, files: dict, key: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    where = f"{root}/{name}"
    held = _unpickle(files[name](), where)
    pixels = getattr(held.get("data"), "values", None)
    labels = np.array(held.get(key) or [-1])
    if pixels is None or pixels.shape != (len(labels), 3 * SIDE * SIDE) or labels.min() < 0:
        raise InputError(f"{where} holds no images and {key} of CIFAR; replace it")
    return labels, pixels


class _Array:
    """Stands for numpy's array in a pickle: takes bytes, and nothing else of numpy is reached."""

    values: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        if dtype.kind not in ("u1", b"u1") or is_fortran:
            raise ValueError("it has an array of other than bytes")
        data = data.encode("latin1") if isinstance(data, str) else data
        self.values = np.frombuffer(data, np.uint8).reshape(shape)


class _Kind:
    """Stands for numpy's dtype in a pickle."""

    def __init__(self, kind: Any = None, *_: Any) -> None:
        self.kind = kind

    def __setstate__(self, state: Any) -> None:
        """What else a dtype has does not matter for bytes."""


class _Unpickler(pickle.Unpickler):
    KNOWN = {
        ("numpy", "_reconstruct"): lambda *_: _Array(),
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Kind,
        ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # how Python 3 stores bytes
    }

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name; all but a few are refused."""
        known = self.KNOWN.get((module.split(".")[0], name))
        if known is None:
            raise ValueError(f"it would call {module}.{name}")
        return known


def _unpickle(data: bytes, where: str) -> dict:
    try:
        held = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        if not isinstance(held, dict):
            raise ValueError("it holds no dict")
        return held
    except Exception as error:  # whatever a torn or a foreign pickle leads to
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = "replace it, or take the binary version"
        raise InputError(f"{where} is not a file of CIFAR ({reason}); {advice}") from None
