"""The image, shifted by up to `padding` pixels each way: what CIFAR is trained with
(arXiv:1512.03385, section 4.2)."""

import functools

import numpy as np

from research.arguments import Size
from research.data.augment import Byte, Change, Visible, inside, moved


def make(padding: Size = 4, fill: Byte = 0, visible: Visible = 0.2) -> Change:
    """Returns a change that keeps the size; what was outside the image is `fill`. A box of which
    less than a share of `visible` stays is left out."""
    return functools.partial(_shift, padding, fill, visible)


def _shift(
    padding: int,
    fill: int,
    visible: float,
    image: np.ndarray,
    boxes: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    height, width, channels = image.shape
    y, x = (int(n) for n in random.integers(2 * padding + 1, size=2))
    shape = (height + 2 * padding, width + 2 * padding, channels)
    padded = np.full(shape, fill, np.uint8)
    padded[padding : padding + height, padding : padding + width] = image
    boxes = moved(boxes, by=(padding - x, padding - y))
    return padded[y : y + height, x : x + width], inside(boxes, height, width, visible)
