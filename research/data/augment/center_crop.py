"""The middle of the image, resized: nothing is drawn. What classification is evaluated with."""

import functools
from typing import Annotated

import numpy as np

from research.arguments import Count, Range
from research.data.augment import Change, Visible, inside, moved, resized

Share = Annotated[float, Range(0, 1, above=True)]


def make(size: Count | None = None, share: Share = 1.0, visible: Visible = 0.2) -> Change:
    """Returns a change to `size` x `size` pixels, whose side is a `share` of the image's shorter
    one (ImageNet: 0.875). A box of which less than a share of `visible` stays is left out."""
    return functools.partial(_crop, size, share, visible)


def _crop(
    size: int,
    share: float,
    visible: float,
    image: np.ndarray,
    boxes: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    height, width = image.shape[:2]
    side = max(round(share * min(height, width)), 1)
    x, y = (width - side) // 2, (height - side) // 2
    boxes = moved(moved(boxes, by=(-x, -y)), (size / side, size / side))
    image = resized(image, size, size, (x, y, x + side, y + side))
    return image, inside(boxes, size, size, visible)
