"""A folder, or an archive, of image files in a folder for each class.

    data = dict(name="images", reader="folder", path="photos/", size=224)

Either path/SPLIT/CLASS/FILE, the splits being train, validation (val, valid, dev) and test, or
path/CLASS/FILE. Classes are numbered in the order of their names, those of train. An archive is
read into memory and gives the same pictures as the folder would.
"""

import functools
import os
from pathlib import Path

import numpy as np

from research.arguments import InputError
from research.data.image_readers import (
    FileReader,
    Pictures,
    Splits,
    digest,
    existing,
    named,
    number_of,
)  # fmt: skip
from research.data.unpack import members

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def make(path: str | None, image: str, label: str) -> Splits:
    """Returns the splits of a folder. Its fingerprint covers the names and sizes of the files.

    Raises InputError for a folder without image files below folders, an archive that is damaged or
    not to be trusted, and a class that train does not have.
    """
    root = existing(path, "a folder of SPLIT/CLASS/FILE or CLASS/FILE")
    held: dict[str, bytes] = {}
    if root.is_dir():
        sizes = _walk(root)
    elif root.name.endswith(ARCHIVES):
        held = _without_top(dict(members(root)))
        sizes = {name: len(data) for name, data in held.items()}
    else:
        raise InputError(f"data.path={path!r} is no folder; give one, or {' '.join(ARCHIVES)}")
    depth = _depth(root, [name for name in sizes if name.lower().endswith(SUFFIXES)])
    files: dict[str, list[str]] = {}
    ignored: dict[str, list[str]] = {}
    for name in sorted(sizes):
        parts = name.split("/")
        split = named(parts[0]) if depth else "train"
        good = len(parts) > depth + 1 and name.lower().endswith(SUFFIXES)
        (files if good else ignored).setdefault(split or "train", []).append(name)
    for split in ignored.keys() - files.keys() if depth else ():
        if any(name.lower().endswith(SUFFIXES) for name in ignored[split]):
            raise InputError(f"{root}: images of {split} lie in no folder of a class; sort them")
    if not files.get("train"):
        raise InputError(
            f"{root} has no image files as SPLIT/CLASS/FILE or CLASS/FILE; expected "
            + " ".join(SUFFIXES)
        )
    classes = sorted({name.split("/")[depth] for name in files["train"]})

    def open_split(split: str) -> Pictures:
        names = files[split]
        labels = [number_of(classes, n.split("/")[depth], f"{root}/{n}") for n in names]
        print_ = digest(classes, [(name, sizes[name]) for name in names])
        read = [held[name] for name in names].__getitem__ if held else FileReader(root, names)
        return Pictures(
            names, read, np.array(labels, np.int32), classes, print_, tuple(ignored.get(split, ()))
        )

    return {split: functools.partial(open_split, split) for split in files}


def _depth(root: Path, images: list[str]) -> int:
    """Returns how many folders are above those of the classes: 1 where the first are splits."""
    deep = {name.split("/")[0] for name in images if name.count("/") > 1}
    if "train" not in deep:
        return 0
    top = {name.split("/")[0] for name in images if "/" in name}
    strange = sorted(name for name in top if named(name) is None)
    if strange:
        raise InputError(f"{root} has {strange[0]}/ beside train/, and it is no split; move it out")
    return 1


def _walk(root: Path) -> dict[str, int]:
    """Returns the files below a folder and their sizes. A link to a file is followed: who made the
    folder could have put the file there; one to a folder is not, as it may lead around."""
    sizes = {}
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n != "__MACOSX")
        for name in files:
            path = Path(folder, name)
            if not name.startswith("."):
                sizes[path.relative_to(root).as_posix()] = _size(path)
    return sizes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # a link to nothing; named when it is read


def _without_top(held: dict[str, bytes]) -> dict[str, bytes]:
    """Returns the files of an archive by their names below the folders that hold them all."""
    tops = {name.split("/")[0] for name in held}
    if len(tops) != 1 or named(*tops) or not all(name.count("/") > 1 for name in held):
        return held
    return _without_top({name.partition("/")[2]: data for name, data in held.items()})
