"""Pascal VOC: an XML file for each picture.

    data = dict(name="detection", reader="voc", path="VOC2007/", size=512)

path/ImageSets/Main/SPLIT.txt lists the pictures of train, validation (val) and test,
path/Annotations holds NAME.xml, path/JPEGImages the files they name. Classes are numbered in the
order of their names, over all splits. Corners are taken as they stand. A box marked `difficult` is
a crowd here: neither learned nor asked for.
"""

import functools
import xml.parsers.expat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.arguments import InputError
from research.data.image_readers import ALSO, FileReader, digest, existing
from research.data.scene_readers import Scenes

DEEPEST = 50


class Marked(NamedTuple):
    """What an XML file says."""

    file: str
    size: tuple[int, int]  # height, width
    objects: list[tuple[str, tuple[float, float, float, float], bool]]  # class, box, difficult


def make(path: str | None) -> dict:
    """Returns the splits that are listed. Raises InputError for a folder without such lists, and an
    XML file that is damaged, or has a document type: entities could grow without end."""
    root, lists = existing(path, "a folder of VOC, with ImageSets/Main"), {}
    for split in ("train", "validation", "test"):
        for stem in (split, *ALSO.get(split, ())):
            file = root / "ImageSets" / "Main" / f"{stem}.txt"
            if file.is_file() and split not in lists:
                lists[split] = [
                    line.split()[0] for line in file.read_text().splitlines() if line.strip()
                ]
    if "train" not in lists:
        raise InputError(f"{root} has no ImageSets/Main/train.txt; give a folder of VOC")
    # The classes are those of all splits, so every file is read, once.
    load = functools.cache(lambda name: parse(root / "Annotations" / f"{_plain(root, name)}.xml"))
    marked = {split: [load(name) for name in names] for split, names in lists.items()}
    classes = sorted({one[0] for found in marked.values() for m in found for one in m.objects})
    return {
        split: functools.partial(_scenes, root, found, classes) for split, found in marked.items()
    }


def _plain(root: Path, name: str) -> str:
    if "/" in name or "\\" in name or "\0" in name or name in ("", ".", ".."):
        raise InputError(f"{root}: the name {name!r} points out of the data set; refused")
    return name


def _scenes(root: Path, marked: list[Marked], classes: list[str]) -> Scenes:
    names = [_plain(root, one.file) for one in marked]
    tables = []
    for one in marked:
        rows = [(*box, classes.index(name), difficult) for name, box, difficult in one.objects]
        tables.append(np.array(rows, np.float32).reshape(-1, 6))
    sizes = [one.size for one in marked]
    return Scenes(
        names=names,
        read=FileReader(root / "JPEGImages", names),
        sizes=sizes,
        boxes=[table[:, :5] for table in tables],
        crowds=[table[:, 5] > 0 for table in tables],
        areas=[(table[:, 2:4] - table[:, :2]).prod(axis=1) for table in tables],
        classes=classes,
        fingerprint=digest(names, sizes, classes, *(table.tobytes() for table in tables)),
    )


def parse(file: Path) -> Marked:
    """Returns what an XML file says of a picture. Raises InputError that names the file."""
    try:
        values = _values(file.read_bytes())
        sizes = (int(values["size/height"][0]), int(values["size/width"][0]))
        sides = [
            values.get(f"object/bndbox/{side}", []) for side in ("xmin", "ymin", "xmax", "ymax")
        ]
        names, objects = values.get("object/name", []), []
        for number, (name, *corners) in enumerate(zip(names, *sides, strict=True)):
            x1, y1, x2, y2 = map(float, corners)
            difficult = values["difficult"][number] == "1"
            objects.append((name, (x1, y1, x2, y2), difficult))
        return Marked(values["filename"][0], sizes, objects)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, IndexError, xml.parsers.expat.ExpatError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{file} is not VOC's XML ({reason}); mend it") from None


def _values(data: bytes) -> dict[str, list[str]]:
    """Returns the texts below the root by their path, and `difficult` of each object."""
    parser, path, values, text = xml.parsers.expat.ParserCreate(), [], {"difficult": []}, []

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type or an entity, which could grow without end")

    def start(name: str, _: dict) -> None:
        path.append(name)
        text.clear()
        if len(path) > DEEPEST:
            raise ValueError("it is nested without end")
        if path[1:] == ["object"]:
            values["difficult"].append("0")

    def end(_: str) -> None:
        place = "/".join(path[1:])
        if place == "object/difficult":
            values["difficult"][-1] = "".join(text).strip()
        else:
            values.setdefault(place, []).append("".join(text).strip())
        path.pop()
        text.clear()

    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text.append
    parser.Parse(data, True)
    return values
