"""Several of scikit-learn's digits in a picture: detection that installs with the project.

    data = dict(name="detection", reader="digit_scenes", size=64)

512 scenes for train and 128 for validation, the same everywhere, of 64 x 64 pixels with 1 to 5
digits each, which are 10 to 24 pixels high and do not overlap. A scene takes the digits of its own
split; a box is as close around the ink as can be.
"""

import functools

import numpy as np

from research.data.augment import resized
from research.data.image_readers import digest, digits
from research.data.scene_readers import Scenes

SIDE, MOST, SMALLEST, LARGEST = 64, 5, 10, 24
COUNTS = {"train": 512, "validation": 128}
TRIES, FAINT = 20, 96


def make(path: str | None) -> dict:
    """Returns train and validation; there is no `path` to set."""
    return {split: functools.partial(read, split) for split in COUNTS}


def read(split: str) -> Scenes:
    """Returns the scenes of a split. Raises InputError without scikit-learn or Pillow."""
    held = digits.read(split)
    # Another stream for each split: a detector could know validation by the noise of train.
    own = (1998, list(COUNTS).index(split))
    made = [_scene(held, np.random.default_rng((*own, n))) for n in range(COUNTS[split])]
    pixels, boxes = np.stack([one for one, _ in made]), [found for _, found in made]
    return Scenes(
        names=[f"{split} scene {number}" for number in range(len(made))],
        read=pixels.__getitem__,
        sizes=[(SIDE, SIDE)] * len(made),
        boxes=boxes,
        crowds=[np.zeros(len(found), bool) for found in boxes],
        areas=[(found[:, 2:4] - found[:, :2]).prod(axis=1) for found in boxes],
        classes=held.classes,
        fingerprint=digest(pixels.tobytes(), np.concatenate(boxes).tobytes()),
    )


def _scene(held: digits.Pictures, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 (SIDE, SIDE, 3) and boxes: digits of any colour on a dark, noisy ground."""
    scene = random.uniform(0, 60, 3) + random.normal(0, 8, (SIDE, SIDE, 1))
    taken, boxes = np.zeros((SIDE, SIDE), bool), []
    for _ in range(random.integers(1, MOST + 1)):
        number = random.integers(len(held.labels))
        ink = _cut(held.read(int(number))[..., 0])
        high = int(random.integers(SMALLEST, LARGEST + 1))
        wide = max(round(high * ink.shape[1] / ink.shape[0]), 3)
        color, ink = random.uniform(120, 255, 3), resized(ink[..., None], high, wide) / 255
        for _ in range(TRIES):
            y, x = (int(random.integers(SIDE - side + 1)) for side in (high, wide))
            spot = np.s_[y : y + high, x : x + wide]
            if not taken[spot].any():
                taken[spot] = True
                scene[spot] = (1 - ink) * scene[spot] + ink * color
                boxes.append((x, y, x + wide, y + high, held.labels[number]))
                break
    return np.clip(scene, 0, 255).astype(np.uint8), np.array(boxes, np.float32)


def _cut(ink: np.ndarray) -> np.ndarray:
    """Returns a digit without the rows and columns around it that hold no ink to be seen."""
    seen = ink > FAINT
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
