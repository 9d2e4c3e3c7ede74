"""RandAugment (arXiv:1909.13719): `number` of 14 changes, drawn evenly, all of one `magnitude`.

Strengths at the full magnitude of 10 are those of AutoAugment (arXiv:1805.09501, table 6): shears
of 0.3, shifts of 150/331 of the image, turns of 30 degrees, 4 bits left, everything solarised,
factors of 0.1 or 1.9. Where a change has two directions, one is drawn.
"""

import functools
import math
from typing import Annotated

import numpy as np

from research.arguments import Count, Range
from research.data.augment import Byte, Change, Visible, from_pillow, inside, to_pillow
from research.data.media import package

ENHANCE = {"color": "Color", "contrast": "Contrast", "brightness": "Brightness"}
ENHANCE |= {"sharpness": "Sharpness"}
BENT = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
NAMES = ("identity", "autocontrast", "equalize", "solarize", "posterize", *ENHANCE, *BENT)


def make(
    number: Count = 2,
    magnitude: Annotated[float, Range(0, 10)] = 9.0,
    fill: Byte = 128,
    visible: Visible = 0.2,
) -> Change:
    """Returns a change that keeps the size; what was outside the image is `fill`. A box becomes the
    one around its corners; with less than a share of `visible` in the image it is left out."""
    return functools.partial(_augment, number, magnitude / 10, fill, visible)


def _augment(
    number: int,
    strength: float,
    fill: int,
    visible: float,
    image: np.ndarray,
    boxes: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    for at in random.integers(len(NAMES), size=number):
        name, signed = NAMES[at], strength * random.choice((-1, 1))
        if name in BENT:
            matrix = affine(name, signed, *image.shape[:2])
            image, boxes = bend(matrix, fill, visible, image, boxes)
        elif name != "identity":
            image = recolor(name, strength, signed, image)
    return image, boxes


def recolor(name: str, strength: float, signed: float, image: np.ndarray) -> np.ndarray:
    """Returns the image after a change of its values."""
    ops, picture = package("PIL.ImageOps", "vision"), to_pillow(image)
    if name in ENHANCE:
        enhance = getattr(package("PIL.ImageEnhance", "vision"), ENHANCE[name])
        picture = enhance(picture).enhance(1 + 0.9 * signed)
    elif name == "solarize":
        picture = ops.solarize(picture, round(256 * (1 - strength)))
    elif name == "posterize":
        picture = ops.posterize(picture, 8 - round(4 * strength))
    else:
        picture = getattr(ops, name)(picture)
    return from_pillow(picture)


def affine(name: str, signed: float, height: int, width: int) -> np.ndarray:
    """Returns the matrix (2, 3) that takes a point (x, y, 1) of the image to its new place. Turns
    and shears leave the middle where it is."""
    matrix, shift = np.eye(2), np.zeros(2)
    if name == "rotate":
        turn = math.radians(30 * signed)
        matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    elif name.startswith("shear"):
        matrix[(0, 1) if name == "shear_x" else (1, 0)] = 0.3 * signed
    else:
        along = 0 if name == "translate_x" else 1
        shift[along] = 150 / 331 * signed * (width, height)[along]
    middle = np.array([width, height]) / 2
    return np.column_stack([matrix, middle - matrix @ middle + shift])


def bend(
    matrix: np.ndarray, fill: int, visible: float, image: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns image and boxes after each point went where `matrix` (2, 3) takes it."""
    pillow, (height, width, channels) = package("PIL.Image", "vision"), image.shape
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]  # where each pixel comes from
    kind = (pillow.Transform.AFFINE, inverse.ravel().tolist(), pillow.Resampling.BILINEAR)
    color = fill if channels == 1 else (fill,) * channels
    bent = to_pillow(image).transform((width, height), *kind, fillcolor=color)
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] @ matrix[:, :2].T + matrix[:, 2]
    moved = np.concatenate([corners.min(axis=1), corners.max(axis=1), boxes[:, 4:]], axis=1)
    return from_pillow(bent), inside(moved.astype(np.float32), height, width, visible)
