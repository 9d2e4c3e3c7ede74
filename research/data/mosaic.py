"""Four pictures as one (arXiv:2004.10934): objects meet other surroundings and sizes.

Four cells meet at a point at random; each picture has its corner there, and is cut where its cell
ends. The paper leaves sizes open: here the longer side of each is between half of the mosaic's
and all of it.
"""

import numpy as np

from research.data.augment import inside, moved, resized
from research.data.augment.letterbox import place

FILL, VISIBLE = 114, 0.2

Scene = tuple[np.ndarray, np.ndarray]


def mosaic(parts: list[Scene], size: int, random: np.random.Generator) -> Scene:
    """Returns uint8 (size, size, channels) and boxes (n, 5) of four images and their boxes. A box
    of which less than a fifth is within its cell is left out."""
    whole = np.full((size, size, parts[0][0].shape[2]), FILL, np.uint8)
    middle = random.integers(size // 4, size - size // 4 + 1, size=2)
    kept = []
    for number, (image, boxes) in enumerate(parts):
        at = place(*image.shape[:2], max(round(size * random.uniform(0.5, 1)), 1))
        image, boxes = resized(image, at.height, at.width), moved(boxes, at.scale)
        # Of the image from `start` on, `span` pixels are seen, from `corner` on, in x and in y.
        sides, later = (at.width, at.height), (number % 2, number // 2)
        room = [size - x if after else x for x, after in zip(middle, later, strict=True)]
        span = [int(min(pair)) for pair in zip(sides, room, strict=True)]
        start = [
            0 if after else side - s for side, s, after in zip(sides, span, later, strict=True)
        ]
        corner = [int(x if a else x - s) for x, s, a in zip(middle, span, later, strict=True)]
        piece = image[start[1] : start[1] + span[1], start[0] : start[0] + span[0]]
        whole[corner[1] : corner[1] + span[1], corner[0] : corner[0] + span[0]] = piece
        boxes = inside(moved(boxes, by=(-start[0], -start[1])), span[1], span[0], VISIBLE)
        kept.append(moved(boxes, by=corner))
    return whole, np.concatenate(kept)
