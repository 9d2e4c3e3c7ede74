"""Readers of pictures with a class each: make(path, image, label) -> {split: open}.

One file is one kind of storage, and open() -> Pictures. `image` and `label` name columns, where
there are such. `make` looks at what is there; it raises InputError for what is no data set of its
kind.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.arguments import InputError, nearest
from research.data.corrections import named_picture
from research.data.source import RecordError

ALSO = {"validation": ("val", "valid", "dev")}  # what a split is also called


class Pictures(NamedTuple):
    """The pictures of one split, in a fixed order; what it is made of pickles."""

    names: list[str] | range  # where each lies below the data set, the same on every machine
    read: Callable[[int], bytes | np.ndarray]  # an image file, or uint8 (h, w, c); RecordError
    labels: np.ndarray  # int32 (count,): the class of each
    classes: list[str]
    fingerprint: str  # changes when a picture does
    ignored: tuple[str, ...] = ()  # files that lie there and are no pictures
    split: str = "train"  # of the data set; names may repeat in another one

    def shown(self, index: int) -> dict[str, str]:
        """Returns what a person, and a correction, knows a picture by."""
        return named_picture(self.split, self.names[index])


class FileReader(NamedTuple):
    """Reads image file number `index`."""

    root: Path
    names: list[str]

    def __call__(self, index: int) -> bytes:
        path = self.root / self.names[index]
        try:
            return path.read_bytes()
        except OSError as error:
            raise RecordError(f"{path} cannot be read ({error.strerror})") from None


Splits = dict[str, Callable[[], Pictures]]


def choose(
    splits: Splits, split: str, held_out: float, path: str | None, fold: int | None = None
) -> Pictures:
    """Returns a split. Where there is no validation, or with a `fold`, a share of `held_out` of
    train is it, by a hash of the names: the first, or the one of that number. Raises InputError for
    a split that is not there, or is empty, and a fold beyond the last."""
    folds = round(1 / held_out) if held_out else 0
    if fold is not None:
        if not folds or abs(folds * held_out - 1) > 1e-6:
            raise InputError(
                f"data.held_out={held_out} with data.fold={fold}: expected 1 / n for one of n folds"
            )
        if fold >= folds:
            raise InputError(f"data.fold={fold} is not one of {folds} folds, 0 to {folds - 1}")
    held = ("validation" not in splits and held_out > 0) or fold is not None
    held = held and split in ("train", "validation")
    name = "train" if held else split
    if name not in splits:
        advice = "set config.data.held_out" if split == "validation" else "name one of them"
        raise InputError(
            f"data.path={path!r} has no split {split!r}; it has {', '.join(splits)}: {advice}"
        )
    found, chosen = splits[name]()._replace(split=name), None
    if held:
        wanted = split == "validation"
        places = (_place(name) for name in found.names)
        # Whole folds: each name is in one, whatever the last digits of the share are.
        inside = (x < held_out if fold is None else int(x * folds) == fold for x in places)
        chosen = [index for index, is_held in enumerate(inside) if is_held == wanted]
    if not (len(found.names) if chosen is None else len(chosen)):
        raise InputError(f"data.path={path!r} has no pictures in split {split!r}; add some")
    which = f"{split} {held_out}" + ("" if fold is None else f" {fold}")
    return found if chosen is None else some(found, chosen, which)


def _place(name: str | int) -> float:
    """Returns where in [0, 1) a name is by its hash."""
    return int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:8], "big") / 2**64


def some(found: Pictures, chosen: list[int], which: str) -> Pictures:
    """Returns the pictures of the numbers `chosen`; `which` says in their fingerprint which."""
    return found._replace(
        names=[found.names[index] for index in chosen],
        read=Some(found.read, np.array(chosen)),
        labels=found.labels[chosen],
        fingerprint=digest(found.fingerprint, which),
    )


class Some(NamedTuple):
    """Reads some of the pictures."""

    read: Callable[[int], bytes | np.ndarray]
    chosen: np.ndarray

    def __call__(self, index: int) -> bytes | np.ndarray:
        return self.read(int(self.chosen[index]))


def digest(*parts: object) -> str:
    """Returns a fingerprint of some values."""
    whole = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        whole.update(hashlib.sha256(data).digest())
    return whole.hexdigest()


def existing(path: str | None, what: str) -> Path:
    """Returns `path` if it is there; raises InputError that says what is expected in it."""
    if path is None or not (root := Path(path).expanduser()).exists():
        raise InputError(f"data.path={path!r} does not exist; give {what}")
    return root


def named(name: str, known: tuple[str, ...] = ("train", "validation", "test")) -> str | None:
    """Returns the split that a folder or file of that name holds, None for none."""
    return next((split for split in known if name in (split, *ALSO.get(split, ()))), None)


def number_of(classes: list[str], name: str, where: str) -> int:
    """Returns the number of a class; raises InputError for one that train does not have."""
    if name not in classes:
        raise InputError(f"{where}: class {name!r} is not one of train{nearest(name, classes)}")
    return classes.index(name)
