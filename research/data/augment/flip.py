"""Left and right, or with `vertical` up and down, change places."""

import functools

import numpy as np

from research.arguments import Fraction
from research.data.augment import Change


def make(probability: Fraction = 0.5, vertical: bool = False) -> Change:
    """Returns a change of the `probability` given."""
    return functools.partial(_flip, probability, vertical)


def _flip(
    probability: float,
    vertical: bool,
    image: np.ndarray,
    boxes: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    if random.random() >= probability:
        return image, boxes
    at, axis = (1, 0) if vertical else (0, 1)  # y or x of a box, the axis of the image
    flipped = boxes.copy()
    flipped[:, at] = image.shape[axis] - boxes[:, at + 2]
    flipped[:, at + 2] = image.shape[axis] - boxes[:, at]
    return np.flip(image, axis), flipped
