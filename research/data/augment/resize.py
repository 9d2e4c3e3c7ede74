"""The whole image, squeezed into a square."""

import functools

import numpy as np

from research.arguments import Count
from research.data.augment import Change, inside, moved, resized


def make(size: Count | None = None) -> Change:
    """Returns a change to `size` x `size` pixels; nothing is drawn."""
    return functools.partial(_resize, size)


def _resize(
    size: int, image: np.ndarray, boxes: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    height, width = image.shape[:2]
    boxes = moved(boxes, (size / width, size / height))
    return resized(image, size, size), inside(boxes, size, size)
