"""A piece of the image at random, resized: the crops of GoogLeNet (arXiv:1409.4842, section 6).

The piece covers between `min_area` of the image and all of it, and is up to `max_ratio` times as
wide as high or as high as wide.
"""

import functools
import math

import numpy as np

from research.arguments import Count, Fraction
from research.data.augment import AtLeastOne, Change, Visible, inside, moved, resized

TRIES = 10


def make(
    size: Count | None = None,
    min_area: Fraction = 0.08,
    max_ratio: AtLeastOne = 4 / 3,
    visible: Visible = 0.2,
) -> Change:
    """Returns a change to `size` x `size` pixels. A box of which less than a share of `visible` is
    in the piece is left out."""
    return functools.partial(_crop, size, min_area, max_ratio, visible)


def _crop(
    size: int,
    min_area: float,
    max_ratio: float,
    visible: float,
    image: np.ndarray,
    boxes: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    x, y, width, height = piece(*image.shape[:2], min_area, max_ratio, random)
    scale = (size / width, size / height)
    boxes = moved(moved(boxes, by=(-x, -y)), scale)
    image = resized(image, size, size, (x, y, x + width, y + height))
    return image, inside(boxes, size, size, visible)


def piece(
    height: int, width: int, min_area: float, max_ratio: float, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Returns x, y, width and height of a piece: the largest one in the middle, where of some that
    are drawn none fits into the image."""
    for _ in range(TRIES):
        area = random.uniform(min_area, 1) * height * width
        ratio = math.exp(random.uniform(-1, 1) * math.log(max_ratio))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            x, y = random.integers(width - wide + 1), random.integers(height - high + 1)
            return int(x), int(y), wide, high
    wide = max(min(width, round(height * max_ratio)), 1)
    high = max(min(height, round(width * max_ratio)), 1)
    return (width - wide) // 2, (height - high) // 2, wide, high
