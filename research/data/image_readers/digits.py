"""scikit-learn's digits: 1,797 real handwritten digits of 8 x 8 pixels that install with it.

    data = dict(name="images", reader="digits", size=8, channels=1)

The last 360 are the split validation. (E. Alpaydin, C. Kaynak, UCI "Optical recognition of
handwritten digits", 1998; these are its test set.)
"""

import functools

import numpy as np

from research.data.image_readers import Pictures, Splits, digest
from research.data.media import package


def make(path: str | None, image: str, label: str) -> Splits:
    """Returns train (1,437) and validation (360); there is no `path` to set."""
    return {split: functools.partial(read, split) for split in ("train", "validation")}


def read(split: str) -> Pictures:
    """Returns the digits of a split. Raises InputError without scikit-learn."""
    found = package("sklearn.datasets", "vision").load_digits()
    every = np.arange(len(found.target))
    chosen = every[-360:] if split == "validation" else every[:-360]
    pixels = np.round(found.images[chosen] * (255 / 16)).astype(np.uint8)[..., None]
    labels = found.target[chosen].astype(np.int32)
    classes = [str(digit) for digit in range(10)]
    names = [f"digit {index}" for index in chosen]
    return Pictures(names, pixels.__getitem__, labels, classes, digest(pixels.tobytes(), split))
