"""Pictures to look at before they are learned: near duplicates, and what is not as it should be.

    python -m research.data.clean_images --config=configs/vision/yolo_voc.py --output=queue.jsonl \\
        --config.data.path=bccd
    anneal train ... --config.data.corrections=queue.jsonl         # once "correction" is filled in

Writes lines as `anneal review` does (data/corrections.py), each with a "reason":

- near duplicate: the most similar picture before it, in the order of test, validation and train, so
  that it is train that is asked to do without what the others hold; "of" and "of_label" name it
- cannot be read
- box without area, and box outside: of the data of detection; "box" is x1 y1 x2 y2

Two pictures are similar by the correlation of their colours in 16 x 16 pixels: no new encoding,
size or brightness changes it much. All pairs are compared, on the accelerator if there is one.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from research import config as config_lib
from research.arguments import Fraction, InputError, RunError, check
from research.data.augment import resized
from research.data.box_corrections import box_key
from research.data.corrections import digest
from research.data.detection import has_area
from research.data.image_readers import Pictures
from research.data.images import pixels_of
from research.data.scene_readers import Scenes
from research.data.source import RecordError
from research.lookup import find

ORDER = ("test", "validation", "train")
SIDE = 16  # of what is compared, in pixels
BLOCK = 4096  # pictures that are compared with as many at a time
EQUAL = 0.95  # finds 98 % of what experiments/image_cleaning seeds


def look(
    config: ml_collections.FrozenConfigDict, threshold: Fraction = EQUAL, drop: bool = False
) -> Iterator[dict[str, Any]]:
    """Yields the lines for the data of a config. A picture is a near duplicate from a similarity of
    `threshold` on. With `drop` those of train, and boxes without area, are corrected by false: left
    out. Raises InputError for a config without pictures, and a data set that is none."""
    check(threshold, Fraction, "--threshold")
    data = config.data
    if data.name == "images":
        splits = find("data.image_readers", data.reader)(data.path, data.image, data.label)
    elif data.name == "detection":
        splits = find("data.scene_readers", data.reader)(data.path)
    else:
        raise InputError(f"data {data.name} has no pictures; images and detection have some")
    held = [(split, splits[split]()) for split in ORDER if split in splits]
    small, rows = [], []
    for split, one in held:
        found, errors = _thumbnails(one, data.path, data.workers)
        small.append(found)
        rows += [(split, one, index) for index in range(len(found))]
        for index, error in errors.items():
            yield _line(split, one, index, f"cannot be read: {error}")
        if isinstance(one, Scenes):
            yield from _odd_boxes(split, one, drop)
    scores, likes = closest(np.concatenate(small))
    order = np.argsort(-scores, kind="stable")
    for at in order[scores[order] >= threshold].tolist():
        line, of = _line(*rows[at], "near duplicate"), _line(*rows[likes[at]], "")
        line |= dict(of=f"{of['split']} {of['picture']}", of_label=of["label"])
        line |= dict(similarity=round(float(scores[at]), 4))
        yield line | dict(correction=False if drop and line["split"] == "train" else None)


def _line(split: str, held: Pictures | Scenes, index: int, reason: str) -> dict[str, Any]:
    shown = {"split": split, "picture": str(held.names[index])}
    label = held.classes[held.labels[index]] if isinstance(held, Pictures) else ""
    return shown | dict(label=label, reason=reason, digest=digest(shown.values()), correction=None)


def _odd_boxes(split: str, scenes: Scenes, drop: bool) -> Iterator[dict[str, Any]]:
    for index, (boxes, (height, width)) in enumerate(zip(scenes.boxes, scenes.sizes, strict=True)):
        good = has_area(boxes)
        beyond = (boxes[:, :2] < 0).any(1) | (boxes[:, 2:4] > (width, height)).any(1)
        for number in np.flatnonzero(~good | beyond).tolist():
            reason = "box outside" if good[number] else "box without area"
            shown = {"split": split, "picture": str(scenes.names[index])}
            key, label = box_key(split, scenes, index, number)
            line = shown | dict(box=boxes[number, :4].tolist(), label=label, reason=reason)
            yield line | dict(digest=key, correction=False if drop and not good[number] else None)


def _thumbnails(
    held: Pictures | Scenes, path: str | None, workers: int
) -> tuple[np.ndarray, dict[int, str]]:
    """Returns uint8 (count, SIDE, SIDE, 3), zeros where a picture cannot be read, and why not."""
    count, one = len(held.names), partial(_thumbnail, held, path)
    if workers:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            found = pool.map(one, range(count), chunksize=256)
    else:
        found = [one(index) for index in range(count)]
    errors = {index: made for index, made in enumerate(found) if isinstance(made, str)}
    empty = np.zeros((SIDE, SIDE, 3), np.uint8)
    return np.stack([empty if isinstance(made, str) else made for made in found]), errors


def _thumbnail(held: Pictures | Scenes, path: str | None, index: int) -> np.ndarray | str:
    try:
        pixels = pixels_of(held.read(index), f"{path}: {held.names[index]}", 3)
    except RecordError as error:
        return str(error)
    return resized(pixels, SIDE, SIDE)


def closest(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each of the uint8 pictures (count, ...) the largest correlation with one before
    it, -1 for the first, and the number of that one. One without any contrast is like no other."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    size = min(BLOCK, len(flat))
    scores, likes = np.full(len(flat), -1.0, np.float32), np.zeros(len(flat), int)
    for start in range(0, len(flat), size):
        own = slice(start, start + size)
        for other in range(0, start + size, size):
            parts = (_padded(flat[at : at + size], size) for at in (start, other))
            best, where = jax.device_get(_closest(*parts, start == other))
            best, where = best[: len(scores[own])], where[: len(scores[own])]
            better = best > scores[own]
            scores[own] = np.where(better, best, scores[own])
            likes[own] = np.where(better, where + other, likes[own])
    return scores, likes


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))


@jax.jit
def _closest(rows: jax.Array, others: jax.Array, same: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the best correlation of each row with the others, before itself where they are the
    `same`, and where it is."""
    found = jnp.einsum("rd,od->ro", rows, others, precision=jax.lax.Precision.HIGHEST)
    before = jnp.tri(len(rows), len(others), -1, dtype=bool)
    found = jnp.where(before | ~same, found, -1.0)
    return found.max(1), found.argmax(1)


def main(argv: list[str] | None = None) -> int:
    """Writes the lines, and says how many of each reason."""
    parser = argparse.ArgumentParser(
        prog="python -m research.data.clean_images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="a file of configs/vision, or like one")
    parser.add_argument("--output", required=True, help="a new file of JSON lines")
    parser.add_argument("--threshold", type=float, default=EQUAL, help=f"default: {EQUAL}")
    parser.add_argument("--drop", action="store_true", help="leave duplicates out of train")

    def refuse(message: str) -> None:
        raise InputError(f"{message}; see `{parser.prog} --help`")

    parser.error = refuse
    try:
        known, overrides = parser.parse_known_args(argv)
        if Path(known.output).exists():  # it may hold a person's work
            raise InputError(f"--output={known.output} is there already; name a new file")
        config = config_lib.load(known.config, overrides)
        lines = list(look(config, known.threshold, known.drop))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        Path(known.output).write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"clean_images: --output cannot be written: {error}", file=sys.stderr)
        return InputError.code
    except (InputError, RunError) as error:
        print(f"clean_images: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return error.code
    reasons = [line["reason"].partition(":")[0] for line in lines]
    counts = ", ".join(f"{reasons.count(one)} x {one}" for one in dict.fromkeys(reasons))
    print(f"{known.output}: {counts or 'nothing to look at'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
