"""COCO's average precision (arXiv:1405.0312, section 5; its program cocoeval) of the boxes of a
split, by the library faster-coco-eval. Tests hold it equal to cocoeval in every bit but one: a
precision of 1 / 1, for which cocoeval has 1 - 2^-52.

    average_precision(coco, found_nk6)        # {"map": .., "ap50": .., "ap75": .., "ap/cat": ..}
"""

import importlib
from typing import Any

import numpy as np

from research.arguments import InputError

AREAS = ("all", "small", "medium", "large")  # less than 32^2 pixels, less than 96^2, more


def average_precision(coco: dict[str, Any], found: np.ndarray) -> dict[str, float]:
    """Returns `map`, the mean over IoUs of .5, .55, ... .95 and over classes; ap50 and ap75, at one
    IoU; ap_small, ap_medium and ap_large; ar100, the recall as the mean over the same; and
    ap/CLASS. All are 0 to 1, of the best 100 boxes of a class in an image. What nothing defines, a
    class or a size without an object, is left out, and so is all if there is none.

    coco: images, annotations and categories as in COCO's files, categories numbered 0, 1, ...
    found: (n, k, 6) of the images in their order: x1 y1 x2 y2 in their pixels, score, class, -1:
    padding. Raises InputError without the library.
    """
    precision, recall = judge(coco, found)  # (ious, recalls, classes, areas, 1, 10 or 100 boxes)
    every = precision[..., -1]
    values = {"map": every[..., 0], "ap50": every[0, ..., 0], "ap75": every[5, ..., 0]}
    values |= {f"ap_{name}": every[..., i] for i, name in enumerate(AREAS) if i}
    names = [one["name"] for one in coco["categories"]]
    values["ar100"] = recall[..., 0, -1]
    values |= {f"ap/{name}": every[:, :, i, 0] for i, name in enumerate(names)}
    defined = {name: value[value > -1] for name, value in values.items()}
    return {name: float(value.mean()) for name, value in defined.items() if value.size}


def judge(coco: dict[str, Any], found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns cocoeval's tables: precision (10 IoUs, 101 recalls, classes, AREAS, 3 numbers of
    boxes) and recall, the same without recalls; -1 where nothing is defined."""
    try:
        library = importlib.import_module("faster_coco_eval")
    except ImportError as error:
        raise InputError(f"{error}; pip install 'anneal[vision]'") from None
    truth, answers = tables(coco, found)
    quiet = dict(print_function=lambda *_: None)
    both = library.COCO(truth, **quiet), library.COCO(answers, **quiet)
    evaluation = library.COCOeval_faster(*both, "bbox", **quiet)
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def tables(coco: dict[str, Any], found: np.ndarray) -> tuple[dict, dict]:
    """Returns truth and answers as COCO's files have them."""
    shared = {name: coco[name] for name in ("images", "categories")}
    # cocoeval takes an object numbered 0 for one that is not found.
    objects = [one | {"id": i} for i, one in enumerate(coco["annotations"], start=1)]
    boxes = []
    for image, rows in zip(coco["images"], np.asarray(found, float), strict=True):
        for x1, y1, x2, y2, score, label in rows[rows[:, 5] >= 0].tolist():
            box = dict(bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1))
            box |= dict(image_id=image["id"], category_id=int(label), score=score, iscrowd=0)
            boxes.append(box | {"id": len(boxes) + 1})
    return shared | {"annotations": objects}, shared | {"annotations": boxes}
