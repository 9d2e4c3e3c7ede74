"""Brightness, contrast, saturation and hue, changed by random factors in a random order.

A factor of brightness, contrast or saturation lies within 1 - x and 1 + x and blends the image with
black, with its mean grey, or with its own grey (arXiv:1312.5402);
`hue` is the largest turn of the colour circle, 0.5 being half of it.
"""

import functools
from typing import Annotated

import numpy as np

from research.arguments import Fraction, Range
from research.data.augment import Change, from_pillow, to_pillow
from research.data.media import package

HUE = 3  # its place behind the enhancers
ENHANCERS = ("Brightness", "Contrast", "Color")


def make(
    brightness: Fraction = 0.4,
    contrast: Fraction = 0.4,
    saturation: Fraction = 0.4,
    hue: Annotated[float, Range(0, 0.5)] = 0.0,
) -> Change:
    """Returns a change that leaves boxes as they are. Grey images have no saturation and no hue."""
    return functools.partial(_jitter, (brightness, contrast, saturation, hue))


def _jitter(
    strengths: tuple[float, ...],
    image: np.ndarray,
    boxes: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    enhance, picture = package("PIL.ImageEnhance", "vision"), to_pillow(image)
    for at in random.permutation(4):
        draw = strengths[at] * random.uniform(-1, 1)
        if strengths[at] == 0 or (at >= 2 and image.shape[-1] == 1):
            continue
        if at == HUE:
            picture = turned(picture, draw)
        else:
            picture = getattr(enhance, ENHANCERS[at])(picture).enhance(1 + draw)
    return from_pillow(picture), boxes


def turned(picture: object, turn: float) -> object:
    """Returns an image of Pillow, RGB, whose hues are a share `turn` of the circle further on."""
    values = np.array(picture.convert("HSV"))
    values[..., 0] += np.uint8(round(turn * 256) % 256)  # wraps around, as a circle does
    return package("PIL.Image", "vision").fromarray(values, "HSV").convert("RGB")
