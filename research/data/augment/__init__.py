"""make(**config) -> change(image, boxes, random) -> image, boxes

One file is one change of a picture and the boxes in it, drawn anew each time from `random`.

    image   uint8 (height, width, channels), not to be written to: it may be the data set's own
    boxes   float32 (n, 5): x1 y1 x2 y2 in pixels of the image, and the number of the class, so that
            a label follows its box; (0, 5) where there are none
    random  np.random.Generator of the example: the same draws whenever a run comes by again

`make` returns what pickles. A `size` of None is that of the batch, which `compose` fills in.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import numpy as np

from research.arguments import InputError, Range, complete, nearest
from research.data.media import package
from research.lookup import find

Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
Byte = Annotated[int, Range(0, 255)]
Visible = Annotated[float, Range(0, 1)]  # the share of a box that must stay within the image
AtLeastOne = Annotated[float, Range(1)]
NO_BOXES = np.zeros((0, 5), np.float32)


def compose(names: Sequence[str], sections: Mapping[str, Mapping], size: int) -> Change:
    """Returns the changes `names` in their order, each made with its section, if there is one, for
    batches of `size` x `size` pixels. Raises InputError for a section that does not fit."""
    changes = []
    for name in names:
        make = find("data.augment", name)
        given = complete(make, dict(sections.get(name, {})), f"config.data.{name}")
        if "size" in given and given["size"] is None:
            given["size"] = size
        changes.append(make(**given))
    return functools.partial(_one_by_one, changes)


def refuse_unused(sections: Mapping[str, Mapping], *pipelines: Sequence[str]) -> None:
    """Raises InputError for a section that none of the pipelines names."""
    for name in sections:
        if not any(name in names for names in pipelines):
            known = [name for names in pipelines for name in names]
            raise InputError(f"config.data.{name} is not known{nearest(name, known)}")


def _one_by_one(
    changes: list[Change], image: np.ndarray, boxes: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    for change in changes:
        image, boxes = change(image, boxes, random)
    return image, boxes


def inside(boxes: np.ndarray, height: int, width: int, visible: float = 0.0) -> np.ndarray:
    """Returns the parts of boxes that lie in an image. Left out are those of which less than a
    share of `visible` does, and those of no area."""
    low, high = boxes[:, :2], boxes[:, 2:4]
    end = np.array([width, height], np.float32)
    first, last = np.clip(low, 0, end), np.clip(high, 0, end)
    whole, part = (high - low).prod(axis=1), (last - first).prod(axis=1)
    keep = (first < last).all(axis=1) & (part >= visible * whole)
    return np.concatenate([first, last, boxes[:, 4:]], axis=1)[keep]


def moved(
    boxes: np.ndarray, scale: tuple[float, float] = (1, 1), by: tuple[float, float] = (0, 0)
) -> np.ndarray:
    """Returns boxes stretched by `scale` and then shifted `by`, both (x, y)."""
    result = boxes.copy()
    result[:, :4] = boxes[:, :4] * np.tile(scale, 2) + np.tile(by, 2)
    return result


def resized(
    image: np.ndarray, height: int, width: int, box: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """Returns the image, or what is in a `box` (x1, y1, x2, y2) of it, of another size: bilinear,
    smoothed where it shrinks."""
    x1, y1, x2, y2 = box or (0, 0, image.shape[1], image.shape[0])
    image = image[y1:y2, x1:x2]
    if image.shape[:2] == (height, width):
        return image
    bilinear = package("PIL.Image", "vision").Resampling.BILINEAR
    return from_pillow(to_pillow(image).resize((width, height), bilinear))


def to_pillow(image: np.ndarray) -> object:
    """Returns uint8 (height, width, 1 or 3) as an image of Pillow."""
    image = image[..., 0] if image.shape[-1] == 1 else image
    return package("PIL.Image", "vision").fromarray(np.ascontiguousarray(image))


def from_pillow(image: object) -> np.ndarray:
    """Returns an image of Pillow as uint8 (height, width, channels)."""
    return np.asarray(image).reshape(image.height, image.width, -1)
