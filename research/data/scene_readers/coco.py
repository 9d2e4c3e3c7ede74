"""COCO's JSON (arXiv:1405.0312): one file of annotations for each split.

    data = dict(name="detection", reader="coco", path="coco/", size=640)

Annotations are path/annotations/instances_SPLIT*.json, path/SPLIT.json or
path/SPLIT/_annotations.coco.json; images lie by their `file_name` in path/SPLIT*,
path/images/SPLIT*, path/images or path. Splits are train, validation (val, valid) and test.
"""

import functools
import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from research.arguments import InputError
from research.data.image_readers import ALSO, FileReader, digest, existing
from research.data.scene_readers import Scenes


def make(path: str | None) -> dict:
    """Returns the splits that have annotations. Raises InputError for a folder that has none."""
    root = existing(path, "a folder with annotations/instances_train*.json")
    splits = {}
    for split in ("train", "validation", "test"):
        for stem in (split, *ALSO.get(split, ())):
            files = [*sorted(root.glob(f"annotations/instances_{stem}*.json"))]
            if len(files) > 1:
                found = ", ".join(file.name for file in files)
                raise InputError(f"{root}/annotations has {found}; leave one of them there")
            files += [root / f"{stem}.json", root / stem / "_annotations.coco.json"]
            file = next((file for file in files if file.is_file()), None)
            if file is not None and split not in splits:
                splits[split] = functools.partial(read, root, file, stem)
    if "train" not in splits:
        raise InputError(f"{root} has no annotations/instances_train*.json, train.json or "
                         "train/_annotations.coco.json")  # fmt: skip
    return splits


def read(root: Path, file: Path, stem: str) -> Scenes:
    """Returns a split. Raises InputError for a file that is not COCO's JSON, an annotation of an
    image or a category that is not there, and a file_name that points outside."""
    try:
        held = json.loads(file.read_bytes())
        categories = sorted((int(one["id"]), str(one["name"])) for one in held["categories"])
        images = sorted(held["images"], key=lambda image: int(image["id"]))
        numbers = {number: place for place, (number, _) in enumerate(categories)}
        places = {int(image["id"]): place for place, image in enumerate(images)}
        names = [_inside(file, str(image["file_name"])) for image in images]
        sizes = [(int(image["height"]), int(image["width"])) for image in images]
        rows: list[list] = [[] for _ in images]
        for one in held.get("annotations", ()):
            rows[places[int(one["image_id"])]].append(_row(one, numbers))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{file} is not COCO's JSON ({reason:.200}); mend it") from None
    tables = [np.array(row, np.float64).reshape(-1, 7) for row in rows]
    data = [table[:, :5].astype(np.float32) for table in tables]
    return Scenes(
        names=names,
        read=FileReader(_folder(root, stem, names), names),
        sizes=sizes,
        boxes=data,
        crowds=[table[:, 5] > 0 for table in tables],
        areas=[table[:, 6].astype(np.float32) for table in tables],
        classes=[name for _, name in categories],
        fingerprint=digest(names, sizes, categories, *(table.tobytes() for table in tables)),
    )


def _row(one: dict[str, Any], numbers: dict[int, int]) -> tuple[float, ...]:
    x, y, width, height = (float(number) for number in one["bbox"])
    area = float(one.get("area", width * height))
    number = numbers[int(one["category_id"])]
    return x, y, x + width, y + height, number, float(one.get("iscrowd", 0)), area


def _inside(file: Path, name: str) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or name[1:2] == ":" or "\0" in name:
        raise InputError(f"{file}: file_name {name!r} points out of the data set; refused")
    return str(path)


def _folder(root: Path, stem: str, names: list[str]) -> Path:
    """Returns the folder that the first image is in."""
    folders = [*sorted(root.glob(f"{stem}*")), *sorted(root.glob(f"images/{stem}*"))]
    for folder in [*folders, root / "images", root]:
        if names and folder.is_dir() and (folder / names[0]).is_file():
            return folder
    return root  # then each image is missing by name
