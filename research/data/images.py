"""Pictures with a class each.

    data = dict(name="images", reader="folder", path="photos/", size=224,
                pipeline=("crop", "flip"), crop=dict(min_area=0.2))

`reader` is a file of data/image_readers. The `pipeline` names files of data/augment, each with a
section of its own, in their order; its last image must be `size` x `size`. Evaluation has one of
its own.
"""

import functools
import itertools
import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from research.arguments import Count, Files, InputError, Rate, Size
from research.data.augment import NO_BOXES, Change, compose, refuse_unused
from research.data.corrections import Examples, Key, correct
from research.data.corrections import digest as digest_of
from research.data.image_readers import Pictures, Splits, choose, digest, some
from research.data.media import decode_image
from research.data.order import plain, sized
from research.data.source import Batch, Row, Source, make_source
from research.lookup import find

NAMED = 10  # files in info
Channels = Literal[1, 3]
Pipeline = Annotated[tuple[str, ...], Files("data.augment")]


def make(
    path: str | None = None,
    reader: str = "digits",
    size: Count = 32,
    channels: Channels = 3,
    pipeline: Pipeline = ("resize",),
    eval_pipeline: Pipeline = ("center_crop",),
    scales: tuple[int, ...] = (),
    progressive: tuple = (),
    held_out: Rate = 0.05,
    fold: Size | None = None,
    corrections: str | None = None,
    image: str = "image",
    label: str = "label",
    skip_budget: Size = 0,
    workers: Size = 0,
    *,
    split: str,
    seed: int,
    batch: int,
    **sections: dict,
) -> Source:
    """Returns batches of image (batch, size, size, channels) uint8, labels (batch,) int32 and
    weight (batch,) float32.

    With `scales` each batch of training has one of those sizes instead, drawn evenly;
    `progressive`, pairs of a step and the size from there on, begins at step 0 (order.py): a
    compilation for each. `held_out` is the share of train that is validation where the data set has
    none; `fold` n, from 0 on, makes it the n-th such share, also where there is one: of
    1 / held_out runs each judges what it has not learned. `corrections` is a file of other labels
    (corrections.py). `image` and `label` are columns, where the reader has some. A picture that
    cannot be read is an error that names it, or up to `skip_budget` of them are left out, with
    weight 0.

    info: labels, the number of classes, and classes, their names; of the split, images, `absent`
    classes, files that are ignored, and corrected, how many rows have another label or none.
    Raises InputError for a split that is not there, pictures that the pipeline leaves in another
    size, and sizes that do not fit.
    """
    refuse_unused(sections, pipeline, eval_pipeline)
    splits = find("data.image_readers", reader)(path, image, label)
    found = choose(splits, split, held_out, path, fold)
    given, changed, wanted = found.labels, 0, ()
    if corrections is not None:
        found, given, changed, wanted = _corrected(found, splits, corrections)
        print(f"{corrections}: {changed} labels of split {split} corrected", file=sys.stderr)
    train = split == "train"
    names = pipeline if train else eval_pipeline
    order, sizes = plain(len(found.labels), batch, seed, train), (size,)
    if train and (scales or progressive):
        order, sizes = sized(order, scales, progressive, size, seed)

    def row(names: tuple[str, ...], one: int) -> Row:
        change = compose(names, sections, one)
        return functools.partial(_row, found, path, change, one, sizes[-1], channels)

    rows = [row(names, one) for one in sizes]
    info = _describe(found) | dict(size=size, channels=channels, corrected=changed)
    used = [(name, sections.get(name)) for name in names]
    info["fingerprint"] = digest(found.fingerprint, size, channels, used, scales, progressive)
    if corrections is not None:  # all of them: those of another split too are part of the run
        info["fingerprint"] = digest(info["fingerprint"], wanted)
    forms = [dict(image=(one, one, channels), labels=(), weight=()) for one in sizes]
    care = dict(split=split, batch=batch, seed=seed, workers=workers, skip_budget=skip_budget)
    care |= dict(order=order, judged=row(eval_pipeline, size))
    source = make_source(rows, len(found.labels), forms, info, None, **care)
    return source._replace(
        gold=Examples(
            found.labels,
            given=lambda index: found.classes[given[index]],
            shown=found.shown,
            where=lambda index: _where(found, path, index),
        )
    )


def load(
    given: str | Path | bytes, size: int, channels: int, pipeline: Change | None = None
) -> np.ndarray:
    """Returns an image file, or its bytes, as evaluation sees it: uint8 (size, size, channels).
    `pipeline` None: the middle of it; the pipeline of a run is
    compose(data.eval_pipeline, data, data.size).

    Raises InputError for a file that cannot be read.
    """
    change = pipeline or compose(("center_crop",), {"center_crop": dict(size=size)}, size)
    return change(read(given, channels), NO_BOXES, np.random.default_rng(0))[0]


def read(given: str | Path | bytes, channels: int) -> np.ndarray:
    """Returns an image file, or its bytes, as it is: uint8 (h, w, channels). Raises InputError for
    a file that cannot be read."""
    name = "the image" if isinstance(given, bytes) else str(given)
    try:
        data = given if isinstance(given, bytes) else Path(given).expanduser().read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); give an image file") from None
    return decode_image(data, name=name, channels=channels)


def pixels_of(given: bytes | np.ndarray, name: str, channels: int) -> np.ndarray:
    """Returns what a reader found as uint8 (h, w, channels). Raises RecordError."""
    if isinstance(given, bytes):
        return decode_image(given, name=name, channels=channels)
    if given.shape[-1] == channels:
        return given
    if given.shape[-1] == 1:
        return given.repeat(3, axis=-1)
    grey = given @ np.array([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow has it
    return np.round(grey).astype(np.uint8)[..., None]


def _describe(found: Pictures) -> dict:
    counts = np.bincount(found.labels, minlength=len(found.classes))
    absent = [name for name, count in zip(found.classes, counts, strict=True) if not count]
    info = dict(labels=len(found.classes), classes=found.classes, images=len(found.labels))
    info |= dict(absent=absent, ignored=len(found.ignored))
    return info | dict(ignored_files=list(found.ignored[:NAMED]))


def _corrected(
    found: Pictures, splits: Splits, file: str
) -> tuple[Pictures, np.ndarray, int, list]:
    """Returns the pictures that are not left out, with labels as they are to be, their labels in
    the data, and what `correct` says of the split and the file."""

    def keys(one: Pictures) -> list[Key]:
        names = (digest_of(one.shown(index).values()) for index in range(len(one.labels)))
        return list(zip(names, (one.classes[label] for label in one.labels), strict=True))

    others = (open_()._replace(split=split) for split, open_ in splits.items())
    every = map(keys, itertools.chain([found], others))
    names, changed, wanted = correct(file, found.classes, every)
    kept = [at for at, name in enumerate(names) if name is not None]
    if not kept:
        raise InputError(f"{file} leaves out every picture of a split")
    number = {name: index for index, name in enumerate(found.classes)}
    labels = np.array([number[names[at]] for at in kept], np.int32)
    found = some(found, kept, "corrected")
    return found._replace(labels=labels), found.labels, changed, wanted


def _where(found: Pictures, path: str | None, index: int) -> str:
    name = found.names[index]
    return f"{path}: {name if isinstance(name, str) else f'record {name}'}"


def _row(
    found: Pictures,
    path: str | None,
    change: Change,
    size: int,
    room: int,
    channels: int,
    index: int,
    epoch: int,
    random: np.random.Generator,
) -> Batch:
    where = _where(found, path, index)
    pixels = pixels_of(found.read(index), where, channels)
    pixels, _ = change(pixels, NO_BOXES, random)
    whole = fit(pixels, size, room, where)
    return {"image": whole, "labels": found.labels[index], "weight": np.float32(1)}


def fit(pixels: np.ndarray, size: int, room: int, where: str) -> np.ndarray:
    """Returns an image of `size` in the corner of one of `room`, which its batch is cut out of.
    Raises InputError for one of another size."""
    high, wide, channels = pixels.shape
    if (high, wide) != (size, size):
        raise InputError(
            f"{where} leaves its pipeline as {wide} x {high} pixels, not {size} x {size}; end "
            "config.data.pipeline by crop, resize or letterbox, or set config.data.size"
        )
    if size == room:
        return pixels
    whole = np.zeros((room, room, channels), np.uint8)
    whole[:size, :size] = pixels
    return whole
