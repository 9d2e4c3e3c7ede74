"""Pictures with boxes, each of a class.

    data = dict(name="detection", reader="voc", path="bccd/", size=320, mosaic=0.5,
                pipeline=("crop", "flip"), crop=dict(min_area=0.3))

`reader` is a file of data/scene_readers. The `pipeline` names files of data/augment, each with a
section of its own, in their order; its last image must be `size` x `size`. Evaluation sees the
whole picture in a letterbox.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from research.arguments import Count, Fraction, InputError, Size
from research.data.augment import Change, compose, inside, letterbox, refuse_unused
from research.data.box_corrections import corrected
from research.data.image_readers import digest
from research.data.images import NAMED, Pipeline, fit, pixels_of
from research.data.mosaic import mosaic as make_mosaic
from research.data.order import plain, sized
from research.data.scene_readers import Scenes
from research.data.source import Batch, RecordError, Source, make_source
from research.lookup import find

CROWD = -2  # the label of a box in which nothing is learned to be background (tasks/detection.py)


class Gold(NamedTuple):
    """What boxes are judged by: the annotations as COCO's JSON has them, in pixels of the pictures
    as they are; the id of a picture is its row."""

    coco: dict[str, list[dict[str, Any]]]  # images, annotations, categories: ids of classes from 0
    restore: Callable[[int, np.ndarray], np.ndarray]  # (row, boxes (n, 4) of the batch) -> of those


class Plan(NamedTuple):
    """How rows are made."""

    scenes: Scenes
    boxes: list[np.ndarray]  # of each picture, float32 (n, 5): what is learned
    where: str  # the data set, for messages
    max_boxes: int
    mosaic: float
    mosaic_epochs: float  # how many have mosaics
    batch: int
    turns: int  # batches of a pass, 0 in training


def make(
    path: str | None = None,
    reader: str = "digit_scenes",
    size: Count = 64,
    pipeline: Pipeline = ("letterbox",),
    mosaic: Fraction = 0.0,
    mosaic_stop: Count | None = None,
    max_boxes: Count = 100,
    scales: tuple[int, ...] = (),
    progressive: tuple = (),
    corrections: str | None = None,
    skip_budget: Size = 0,
    workers: Size = 0,
    *,
    split: str,
    seed: int,
    batch: int,
    **sections: dict,
) -> Source:
    """Returns batches of image (batch, size, size, 3) uint8, boxes (batch, max_boxes, 4) float32,
    x1 y1 x2 y2 in pixels of that image, labels (batch, max_boxes) int32, -1 where there is no box
    and -2 of a crowd, and weight (batch,) float32; of any split but train also `turn` (batch,
    num_batches), which says in which batch of the pass a row is.

    A share of `mosaic` of the pictures of training are four of them, but from the epoch on that
    step `mosaic_stop` is in. `scales` and `progressive` are those of images.py. Of more than
    `max_boxes` the largest stay, crowds last. A picture that cannot be read, or is not as large as
    its annotation says, is an error that names it, or up to `skip_budget` are left out, with weight
    0. `corrections` is a file of other boxes and labels (box_corrections.py).

    info: labels, the number of classes, and classes, their names; of the split, images, boxes,
    crowds, and by number and some names what is odd: boxes without area, and outside of their
    picture in part or whole, pictures without boxes and with more than max_boxes, classes that are
    absent. gold, of any split but train: see Gold. Raises InputError for a split that is not there,
    and sizes that do not fit.
    """
    refuse_unused(sections, pipeline, ("letterbox",))
    splits = find("data.scene_readers", reader)(path)
    if split not in splits:
        raise InputError(f"data.path={path!r} has no split {split!r}; it has {', '.join(splits)}")
    scenes, train, wanted = splits[split](), split == "train", ()
    if corrections is not None:
        scenes, wanted = corrected(scenes, split, splits, corrections)
    if not scenes.names:
        raise InputError(f"data.path={path!r} has no pictures in split {split!r}; add some")
    boxes, info = _clean(scenes, max_boxes)
    order, sizes = plain(len(boxes), batch, seed, train), (size,)
    if train and (scales or progressive):
        order, sizes = sized(order, scales, progressive, size, seed)
    epochs = float("inf") if mosaic_stop is None else mosaic_stop * batch // len(boxes)
    turns = 0 if train else order.num_batches
    share = mosaic if train else 0.0
    where = str(path or reader)
    plan = Plan(scenes, boxes, where, max_boxes, share, epochs, batch, turns)
    names = pipeline if train else ("letterbox",)
    rows = [
        functools.partial(_row, plan, compose(names, sections, one), one, sizes[-1])
        for one in sizes
    ]
    most = sum(sorted(map(len, boxes))[-4:])
    _say(f"{where}, split {split}", info, most if share and most > max_boxes else None)
    info |= dict(size=size, channels=3)
    used = [(name, sections.get(name)) for name in names]
    parts = (size, max_boxes, used, share, mosaic_stop, scales, progressive, *wanted)
    info["fingerprint"] = digest(scenes.fingerprint, *parts)
    forms = [dict(image=(one, one, 3), boxes=(max_boxes, 4), labels=(max_boxes,)) for one in sizes]
    forms = [form | dict(weight=()) | ({} if train else dict(turn=(turns,))) for form in forms]
    care = dict(split=split, batch=batch, seed=seed, workers=workers, skip_budget=skip_budget)
    whole = compose(("letterbox",), sections, size)
    judged = functools.partial(_row, plan._replace(mosaic=0.0), whole, size, sizes[-1])
    care |= dict(order=order, judged=judged)
    source = make_source(rows, len(boxes), forms, info, None, **care)
    return source if train else source._replace(gold=_gold(scenes, size))


def _clean(scenes: Scenes, max_boxes: int) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Returns the boxes of each picture that are some, cut at its edges, and what was counted."""
    kept, odd = [], {name: [] for name in ("no_area", "outside", "without_boxes", "too_many")}
    for name, boxes, crowd, (height, width) in zip(
        scenes.names, scenes.boxes, scenes.crowds, scenes.sizes, strict=True
    ):
        good = has_area(boxes)
        cut, within = (inside(boxes[good & x], height, width) for x in (~crowd, crowd))
        within[:, 4] = CROWD
        beyond = reaches_out(boxes[good], height, width)
        odd["no_area"] += [name] * int((~good).sum())
        odd["outside"] += [name] * int(beyond.sum())
        odd["without_boxes"] += [] if len(cut) else [name]
        odd["too_many"] += [name] if len(cut) > max_boxes else []
        kept.append(np.concatenate([cut, within]))
    labels = np.concatenate(kept)[:, 4].astype(int)
    counts = np.bincount(labels[labels >= 0], minlength=len(scenes.classes))
    info = dict(labels=len(scenes.classes), classes=scenes.classes, images=len(kept))
    info |= dict(boxes=int(counts.sum()), crowds=int(sum(map(np.sum, scenes.crowds))))
    info["absent"] = [n for n, x in zip(scenes.classes, counts, strict=True) if not x]
    for name, files in odd.items():
        info |= {name: len(files), f"{name}_files": list(dict.fromkeys(files))[:NAMED]}
    return kept, info


def has_area(boxes: np.ndarray) -> np.ndarray:
    """Tells which boxes (n, 4 or more) are finite, and wider and higher than nothing."""
    finite = np.isfinite(boxes[:, :4]).all(axis=1)
    return finite & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def reaches_out(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Tells which boxes (n, 4 or more) are not in their picture as a whole."""
    return (boxes[:, :2] < 0).any(axis=1) | (boxes[:, 2:4] > (width, height)).any(axis=1)


def _say(where: str, info: dict[str, Any], most: int | None) -> None:
    """Says on stderr what is left out."""
    texts = {
        "no_area": "boxes have no area and are left out",
        "outside": "boxes reach out of their picture and are cut",
        "too_many": "pictures have more than max_boxes boxes, of which the largest stay",
    }
    for name, text in texts.items():
        if info[name]:
            print(f"{where}: {info[name]} {text}: {', '.join(info[f'{name}_files'])}",
                  file=sys.stderr)  # fmt: skip
    if info["absent"]:
        print(f"{where}: no box of {', '.join(info['absent'])}", file=sys.stderr)
    if most:
        text = f"a mosaic may hold {most} boxes, of which the largest max_boxes stay"
        print(f"{where}: {text}", file=sys.stderr)


def _gold(scenes: Scenes, size: int) -> Gold:
    images, annotations = [], []
    for row, (height, width) in enumerate(scenes.sizes):
        images.append(dict(id=row, file_name=scenes.names[row], height=height, width=width))
        boxes = scenes.boxes[row]
        seen = (boxes[:, :2] < (width, height)).all(axis=1) & (boxes[:, 2:4] > 0).all(axis=1)
        for at in np.flatnonzero(has_area(boxes) & seen):
            x1, y1, x2, y2, label = boxes[at].tolist()
            # Ids from 1: to what COCO's evaluation matches, 0 means nothing.
            one = dict(id=len(annotations) + 1, image_id=row, category_id=int(label))
            one |= dict(bbox=[x1, y1, x2 - x1, y2 - y1], area=float(scenes.areas[row][at]))
            annotations.append(one | dict(iscrowd=int(scenes.crowds[row][at])))
    categories = [dict(id=number, name=name) for number, name in enumerate(scenes.classes)]
    coco = dict(images=images, annotations=annotations, categories=categories)

    def restore(row: int, boxes: np.ndarray) -> np.ndarray:
        return letterbox.back(np.asarray(boxes), *scenes.sizes[row], size)

    return Gold(coco, restore)


def _row(
    plan: Plan,
    change: Change,
    size: int,
    room: int,
    index: int,
    epoch: int,
    random: np.random.Generator,
) -> Batch:
    if plan.mosaic and epoch < plan.mosaic_epochs and random.random() < plan.mosaic:
        others = random.integers(len(plan.boxes), size=3)
        parts = [_scene(plan, int(one)) for one in (index, *others)]
        image, boxes = make_mosaic(parts, size, random)
    else:
        image, boxes = _scene(plan, index)
    image, boxes = change(image, boxes, random)
    if len(boxes) > plan.max_boxes:
        areas = (boxes[:, 2:4] - boxes[:, :2]).prod(axis=1)
        order = np.lexsort((-areas, boxes[:, 4] == CROWD))  # objects before crowds
        boxes = boxes[np.sort(order[: plan.max_boxes])]
    padded, labels = (
        np.zeros((plan.max_boxes, 4), np.float32),
        np.full(plan.max_boxes, -1, np.int32),
    )
    padded[: len(boxes)], labels[: len(boxes)] = boxes[:, :4], boxes[:, 4]
    image = fit(image, size, room, f"{plan.where}: {plan.scenes.names[index]}")
    turn = np.zeros(plan.turns, np.float32)
    turn[index // plan.batch : index // plan.batch + 1] = 1
    row = {"image": image, "boxes": padded, "labels": labels, "weight": np.float32(1)}
    return row | {"turn": turn}


def _scene(plan: Plan, index: int) -> tuple[np.ndarray, np.ndarray]:
    where = f"{plan.where}: {plan.scenes.names[index]}"
    image = pixels_of(plan.scenes.read(index), where, 3)
    (height, width), (high, wide) = plan.scenes.sizes[index], image.shape[:2]
    if (high, wide) != (height, width):
        raise RecordError(
            f"{where} has {wide} x {high} pixels, its annotation says {width} x {height}; mend it"
        )
    return image, plan.boxes[index]
