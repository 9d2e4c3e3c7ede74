"""Readers of pictures with boxes: make(path) -> {split: open}, open() -> Scenes.

One file is one kind of storage. Boxes are given as they stand in the files; detection.py drops and
counts those that are none.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Scenes(NamedTuple):
    """The pictures of one split, in a fixed order; what it is made of pickles."""

    names: list[str]  # where each lies below the data set
    read: Callable[[int], bytes | np.ndarray]  # an image file, or uint8 (h, w, c); RecordError
    sizes: list[tuple[int, int]]  # height and width of each, upright
    boxes: list[np.ndarray]  # float32 (n, 5) each: x1 y1 x2 y2 in pixels, and the class
    crowds: list[np.ndarray]  # bool (n,) each: a box around many, which is not learned
    areas: list[np.ndarray]  # float32 (n,) each: what small, medium and large are judged by
    classes: list[str]
    fingerprint: str  # changes when a box does
