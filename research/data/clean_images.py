"""Pictures to look at before they are learned: near duplicates, and what is not as it should be.

    python -m research.data.clean_images --config=configs/vision/yolo_voc.py --output=queue.jsonl \\
        --config.data.path=bccd
    anneal train ... --config.data.corrections=queue.jsonl         # once "correction" is filled in

Writes lines as `anneal review` does (data/corrections.py), each with a "reason":

- near duplicate, of a picture that is not listed for being one itself: of another split, those of
  test and validation before those of train, so that it is train that is asked to do without what
  the others hold; or else of the same split. "of" and "of_label" name it
- cannot be read, or is not as large as its annotation says
- box without area, and box outside: of the data of detection; "box" is x1 y1 x2 y2

Two pictures are similar by the correlation of 16 x 16 pixels, of each colour by itself: no new
encoding, size or brightness changes it much, and one tint does not make it. All pairs are compared,
on the accelerator if there is one.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
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
from research.data.corrections import digest, named_picture
from research.data.detection import has_area, reaches_out
from research.data.image_readers import Pictures
from research.data.images import pixels_of
from research.data.scene_readers import Scenes
from research.data.source import RecordError
from research.lookup import find

FIRST = ("test", "validation")  # what others are asked to do without
SIDE = 16  # of what is compared, in pixels
BLOCK = 4096  # pictures that are compared with as many at a time
ROUNDING = 1e-5
EQUAL = 0.94  # finds 98 % of what experiments/image_cleaning seeds


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
    order = [*(split for split in FIRST if split in splits), *sorted({*splits} - {*FIRST, "train"})]
    order += ["train"] if "train" in splits else []
    held = [(split, splits[split]()) for split in order]
    held = [(split, one) for split, one in held if len(one.names)]
    if not held:
        raise InputError(f"data.path={data.path!r} has no pictures")
    units = []
    for split, one in held:
        found, errors = _thumbnails(one, data.path, data.workers)
        units.append(unit(found))
        for index, error in errors.items():
            yield _line(split, one, index, f"cannot be read: {error}")
        if isinstance(one, Scenes):
            yield from _odd_boxes(split, one, drop)
    for (at, index), (before, other), score in duplicates(units, threshold):
        line, of = _line(*held[at], index, "near duplicate"), _line(*held[before], other, "")
        line |= dict(of=f"{of['split']} {of['picture']}", of_label=of["label"])
        line |= dict(similarity=round(score, 4))
        yield line | dict(correction=False if drop and line["split"] == "train" else None)


def _line(split: str, held: Pictures | Scenes, index: int, reason: str) -> dict[str, Any]:
    shown = named_picture(split, held.names[index])
    label = held.classes[held.labels[index]] if isinstance(held, Pictures) else ""
    return shown | dict(label=label, reason=reason, digest=digest(shown.values()), correction=None)


def _odd_boxes(split: str, scenes: Scenes, drop: bool) -> Iterator[dict[str, Any]]:
    for index, (boxes, (height, width)) in enumerate(zip(scenes.boxes, scenes.sizes, strict=True)):
        good, beyond = has_area(boxes), reaches_out(boxes, height, width)
        for number in np.flatnonzero(~good | beyond).tolist():
            reason = "box outside" if good[number] else "box without area"
            shown = named_picture(split, scenes.names[index])
            key, label = box_key(split, scenes, index, number)
            line = shown | dict(box=boxes[number, :4].tolist(), label=label, reason=reason)
            yield line | dict(digest=key, correction=False if drop and not good[number] else None)


def _thumbnails(
    held: Pictures | Scenes, path: str | None, workers: int
) -> tuple[np.ndarray, dict[int, str]]:
    """Returns uint8 (count, SIDE, SIDE, 3), zeros where a picture cannot be read, and why not."""
    numbers = range(len(held.names))
    if workers:
        # The data set goes to each worker once. One that dies ends the pass, in place of hanging.
        context = multiprocessing.get_context("spawn")
        options = dict(mp_context=context, initializer=_remember, initargs=(held, path))
        with ProcessPoolExecutor(workers, **options) as pool:
            size = max(1, min(256, len(numbers) // (4 * workers)))
            found = list(pool.map(_thumbnail, numbers, chunksize=size))
    else:
        _remember(held, path)
        found = [_thumbnail(index) for index in numbers]
    errors = {index: made for index, made in enumerate(found) if isinstance(made, str)}
    empty = np.zeros((SIDE, SIDE, 3), np.uint8)
    return np.stack([empty if isinstance(made, str) else made for made in found]), errors


def _remember(*held_and_path: Any) -> None:
    _thumbnail.of = held_and_path


def _thumbnail(index: int) -> np.ndarray | str:
    held, path = _thumbnail.of
    try:
        pixels = pixels_of(held.read(index), f"{path}: {held.names[index]}", 3)
    except RecordError as error:
        return str(error)
    if isinstance(held, Scenes) and pixels.shape[:2] != tuple(held.sizes[index]):
        wide, high = held.sizes[index][::-1]
        return f"it has {pixels.shape[1]} x {pixels.shape[0]} pixels, not {wide} x {high}"
    return resized(pixels, SIDE, SIDE)


def unit(pictures: np.ndarray) -> np.ndarray:
    """Returns uint8 (count, h, w, colours) as rows (count, h * w * colours) whose inner products
    are correlations: each colour less its mean, and all of length 1, but for pictures without
    contrast, which are 0 and so like no other."""
    flat = pictures.reshape(len(pictures), -1, pictures.shape[-1]).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    flat = flat.reshape(len(pictures), -1)
    return flat / np.maximum(np.sqrt(np.einsum("nd,nd->n", flat, flat)), 1e-3)[:, None]


def duplicates(
    splits: list[np.ndarray], threshold: float
) -> list[tuple[tuple[int, int], tuple[int, int], float]]:
    """Returns (split, row), (split, row) and similarity of the near duplicates in units of `splits`
    and what they are like, the most similar first."""
    lines = []
    for at, rows in enumerate(splits):
        found: dict[int, tuple[tuple[int, int], float]] = {}
        for before in range(at):
            scores, likes = closest(rows, splits[before])
            for row in np.flatnonzero(scores >= threshold).tolist():
                found.setdefault(row, ((before, int(likes[row])), float(scores[row])))
        scores, likes = closest(rows)
        for row in np.flatnonzero(scores >= threshold).tolist():
            other = int(likes[row])
            if other in found:  # what it is like is listed: is it like that one's own too?
                split, first = found[other][0]
                other = first if split == at else -1
            score = float(rows[row] @ rows[other])
            if row not in found and other >= 0 and score >= threshold - ROUNDING:
                found[row] = ((at, other), score)
        lines += [((at, row), of, score) for row, (of, score) in found.items()]
    return sorted(lines, key=lambda line: -line[2])


def closest(rows: np.ndarray, others: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each of the units `rows` (count, d) the largest correlation with one of `others`,
    or where there are none with one of the rows before it, -1 for the first; and its number."""
    size = min(BLOCK, max(len(rows), 1))
    scores, likes = np.full(len(rows), -1.0, np.float32), np.zeros(len(rows), int)
    for start in range(0, len(rows), size):
        own = slice(start, start + size)
        block = jnp.asarray(_padded(rows[own], size))
        columns = rows[: start + size] if others is None else others
        for other in range(0, len(columns), size):
            part = columns[other : other + size]
            same = others is None and start == other
            best, where = jax.device_get(_closest(block, _padded(part, size), len(part), same))
            best, where = best[: len(scores[own])].round(5), where[: len(scores[own])]
            better = best > scores[own]
            scores[own] = np.where(better, best, scores[own])
            likes[own] = np.where(better, where + other, likes[own])
    return scores, likes


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))


@jax.jit
def _closest(
    rows: jax.Array, others: jax.Array, count: jax.Array, same: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the best correlation of each row with the first `count` others, before itself where
    they are the `same`, and where it is."""
    found = jnp.einsum("rd,od->ro", rows, others, precision=jax.lax.Precision.HIGHEST)
    before = jnp.tri(len(rows), len(others), -1, dtype=bool)
    found = jnp.where((before | ~same) & (jnp.arange(len(others)) < count), found, -1.0)
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
    parser.add_argument(
        "--drop",
        action="store_true",
        help="correct by false: duplicates in train, and boxes without area in all splits",
    )

    def refuse(message: str) -> None:
        raise InputError(f"{message}; see `{parser.prog} --help`")

    parser.error = refuse
    try:
        known, overrides = parser.parse_known_args(argv)
        output = Path(known.output)
        if output.exists():  # it may hold a person's work
            raise InputError(f"--output={output} is there already; name a new file")
        if not output.parent.is_dir():
            raise InputError(f"--output={output}: there is no folder {output.parent}; make it")
        config = config_lib.load(known.config, overrides)
        lines = list(look(config, known.threshold, known.drop))
        output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    except (InputError, RunError) as error:
        print(f"clean_images: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return error.code
    reasons = [line["reason"].partition(":")[0] for line in lines]
    counts = ", ".join(f"{reasons.count(one)} x {one}" for one in dict.fromkeys(reasons))
    print(f"{known.output}: {counts or 'nothing to look at'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
