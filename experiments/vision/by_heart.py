"""The first images of COCO128, whose labels are lines of text, as COCO's JSON: the same to learn
from and to be asked about.

    path = write_coco("coco128", "data", images=32)
"""

import json
import shutil
from pathlib import Path

from PIL import Image


def write_coco(root: str, folder: str, images: int) -> str:
    """Returns a folder with images/, train.json and validation.json, which are equal. A label is
    `class x y width height`, the box's middle and sides as shares of the image's."""
    source, target = Path(root), Path(folder)
    (target / "images").mkdir(parents=True, exist_ok=True)
    lines = (source / "object_detection" / "config.yaml").read_text().splitlines()
    # Lines of `  0: person`.
    names = dict(line.strip().split(": ", 1) for line in lines if line[:2] == "  " and ": " in line)
    held = dict(images=[], annotations=[], categories=[])
    held["categories"] = [dict(id=int(number), name=name) for number, name in names.items()]
    files = sorted((source / "images" / "train2017").glob("*.jpg"))[:images]
    for number, file in enumerate(files):
        shutil.copyfile(file, target / "images" / file.name)
        with Image.open(file) as image:
            width, height = image.size
        held["images"].append(dict(id=number, file_name=file.name, width=width, height=height))
        labels = source / "object_detection" / "labels" / "train2017" / f"{file.stem}.txt"
        for line in labels.read_text().splitlines():
            label, x, y, wide, high = map(float, line.split())
            corner = ((x - wide / 2) * width, (y - high / 2) * height)
            box = [*corner, wide * width, high * height]
            held["annotations"].append(
                dict(image_id=number, category_id=int(label), bbox=box, iscrowd=0)
            )
    for split in ("train", "validation"):
        (target / f"{split}.json").write_text(json.dumps(held))
    return folder
