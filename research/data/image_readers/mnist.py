"""MNIST and what is stored as it is (Fashion-MNIST, KMNIST): four IDX files, each maybe a .gz.

    data = dict(name="images", reader="mnist", path="mnist/", size=28, channels=1)

train-images and train-labels are the split train, t10k-images and t10k-labels the split test.
"""

import functools
import math
import struct
from pathlib import Path

import numpy as np

from research.arguments import InputError
from research.data.image_readers import Pictures, Splits, digest, existing
from research.data.unpack import members

STEMS = {"train": "train", "test": "t10k"}


def make(path: str | None, image: str, label: str) -> Splits:
    """Returns the splits of a folder; raises InputError for one that has no IDX files."""
    root = existing(path, "a folder of IDX files, like train-images-idx3-ubyte.gz")
    found = {split: _files(root, stem) for split, stem in STEMS.items()}
    splits = {split: files for split, files in found.items() if files}
    if "train" not in splits:
        raise InputError(f"{root} lacks train-images-idx3-ubyte or train-labels-idx1-ubyte (.gz)")
    return {split: functools.partial(_open, split, *files) for split, files in splits.items()}


def _files(root: Path, stem: str) -> list[Path]:
    found = []
    for kind in ("images", "labels"):
        # Both dots and dashes are about: train-images.idx3-ubyte
        name = f"{stem}-{kind}?idx?-ubyte"
        found += [*root.glob(name), *root.glob(f"{name}.gz")][:1]
    return found if len(found) == 2 else []


def _open(split: str, images: Path, labels: Path) -> Pictures:
    pixels, numbers = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(numbers):
        raise InputError(f"{images} has {len(pixels)} images, {labels} {len(numbers)} labels")
    classes = [str(number) for number in range(max(10, int(numbers.max(initial=0)) + 1))]
    print_ = digest(pixels.tobytes(), numbers.tobytes())
    names = [f"{split} image {index}" for index in range(len(pixels))]
    read = pixels[..., None].__getitem__
    return Pictures(names, read, numbers.astype(np.int32), classes, print_)


def read_idx(file: Path, dimensions: int) -> np.ndarray:
    """Returns the uint8 array in an IDX file: two zeros, a type, the number of dimensions, each as
    a big-endian int32, and the values. Raises InputError for any other file."""
    data = dict(members(file)).popitem()[1] if file.suffix == ".gz" else file.read_bytes()
    begin = 4 + 4 * dimensions
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) < begin:
        raise InputError(f"{file} is no IDX file of bytes in {dimensions} dimensions; replace it")
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    if math.prod(shape) != len(data) - begin:
        raise InputError(
            f"{file} announces {shape} values and holds {len(data) - begin}; replace it"
        )
    return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)
