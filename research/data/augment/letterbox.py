"""The whole image in the middle of a square, as large as fits, its proportions kept: nothing is
drawn. What detection is evaluated with."""

import functools
from typing import NamedTuple

import numpy as np

from research.arguments import Count
from research.data.augment import Byte, Change, inside, moved, resized


class Place(NamedTuple):
    """Where an image lies in a square, and how much larger it is there."""

    x: int
    y: int
    width: int
    height: int
    scale: tuple[float, float]  # of x and of y: the sides are whole pixels


def make(size: Count | None = None, fill: Byte = 114) -> Change:
    """Returns a change to `size` x `size` pixels, those around the image being `fill`."""
    return functools.partial(_letterbox, size, fill)


def place(height: int, width: int, size: int) -> Place:
    """Returns where an image lies in a square of `size` x `size` pixels."""
    ratio = size / max(height, width)
    high, wide = max(round(height * ratio), 1), max(round(width * ratio), 1)
    scale = (wide / width, high / height)
    return Place((size - wide) // 2, (size - high) // 2, wide, high, scale)


def back(boxes: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    """Returns boxes (n, 4) of the square in coordinates of the image, cut at its edges."""
    at = place(height, width, size)
    boxes = (boxes - np.tile((at.x, at.y), 2)) / np.tile(at.scale, 2)
    return np.clip(boxes, 0, np.array([width, height] * 2)).astype(np.float32)


def _letterbox(
    size: int, fill: int, image: np.ndarray, boxes: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    at = place(*image.shape[:2], size)
    square = np.full((size, size, image.shape[2]), fill, np.uint8)
    square[at.y : at.y + at.height, at.x : at.x + at.width] = resized(image, at.height, at.width)
    return square, inside(moved(boxes, at.scale, (at.x, at.y)), size, size)
