"""A rectangle of the image gives way to noise (arXiv:1708.04896). Boxes stay: what is hidden in
part is still there."""

import functools
import math

import numpy as np

from research.arguments import Fraction, InputError
from research.data.augment import AtLeastOne, Change

TRIES = 100


def make(
    probability: Fraction = 0.5,
    min_area: Fraction = 0.02,
    max_area: Fraction = 0.4,
    max_ratio: AtLeastOne = 1 / 0.3,
) -> Change:
    """Returns a change of the `probability` given: the rectangle covers a share between `min_area`
    and `max_area` of the image, and is up to `max_ratio` times as high as wide or as wide as high.
    Raises InputError where the first area is above the second."""
    if min_area > max_area:
        raise InputError(f"random_erasing: {min_area=} is above {max_area=}; swap them")
    return functools.partial(_erase, probability, min_area, max_area, max_ratio)


def _erase(
    probability: float,
    min_area: float,
    max_area: float,
    max_ratio: float,
    image: np.ndarray,
    boxes: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    if random.random() >= probability:
        return image, boxes
    height, width, channels = image.shape
    for _ in range(TRIES):
        area = random.uniform(min_area, max_area) * height * width
        # The paper draws the ratio, not its logarithm: lying rectangles are rarer than standing.
        ratio = random.uniform(1 / max_ratio, max_ratio)
        high, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if high < height and wide < width:
            y, x = random.integers(height - high), random.integers(width - wide)
            image = image.copy()
            noise = random.integers(256, size=(high, wide, channels), dtype=np.uint8)
            image[y : y + high, x : x + wide] = noise
            break
    return image, boxes
