"""Boxes around the 80 kinds of objects of COCO, by an anchor-free detector with two heads.

Paper: the parts are those of YOLOX (arXiv:2107.08430), TOOD (arXiv:2108.07755), generalized focal
    loss (arXiv:2006.04388) and YOLOv10 (arXiv:2405.14458); the whole is none of theirs, see
    research/models/yolo.py. The recipe is AdamW where theirs is SGD, for a reason: but where
    the norm of the gradient is clipped, its steps do not depend on what a loss is divided by
    (research/tasks/detection.py).
Expected: not measured here. Published, AP .5:.95 on val2017 at 640 pixels: YOLOv10 38.5 (n), 46.3
    (s), 51.1 (m) and 53.2 % (l) after 500 epochs; YOLOX-L 50.0 % after 300.
    Hardware and hours: not measured either.
Command: anneal train --config=configs/vision/yolo_coco.py:s --workdir=runs/coco
    --config.data.path=COCO
    where COCO holds annotations/instances_train2017.json and instances_val2017.json, train2017/ and
    val2017/ (cocodataset.org). One-to-many with suppression instead: anneal evaluate
    --workdir=runs/coco --config.task.head=one_to_many
Variants: n, s, m, l (2.8, 10.9, 29.7, 61.9 million parameters, two heads), tiny (seconds, digits).
"""

from typing import Literal

from configs.common import adamw

Variant = Literal["n", "s", "m", "l", "tiny"]
EPOCH = 118_287 // 64  # steps


def get_config(variant: Variant = "n") -> dict:
    """Returns the config as a dict."""
    return tiny() if variant == "tiny" else coco(variant)


def coco(scale: str) -> dict:
    """300 epochs in batches of 64, mosaics until 15 epochs before the end."""
    steps = 300 * EPOCH
    return dict(
        seed=0,
        steps=steps,
        batch=64,
        precision="bf16",
        model=dict(name="yolo", scale=scale),
        task=dict(name="detection"),
        data=dict(
            name="detection",
            reader="coco",
            path=None,
            size=640,
            max_boxes=120,
            mosaic=1.0,
            mosaic_stop=steps - 15 * EPOCH,
            pipeline=("crop", "flip", "color_jitter"),
            crop=dict(min_area=0.25),
            color_jitter=dict(brightness=0.4, contrast=0.0, saturation=0.7, hue=0.015),
            workers=16,
        ),
        optim=adamw(1e-3, warmup=5 * EPOCH, final=0.05, decay=0.05, b2=0.999, max_norm=10.0),
        ema=0.9998,
        eval=dict(every=5 * EPOCH, batch=64),
        checkpoint=dict(every=EPOCH),
        log=dict(every=50),
    )


def tiny() -> dict:
    """Seconds: digits in pictures of 64 pixels, from a data set that installs with the project."""
    return dict(
        seed=0,
        steps=20,
        batch=8,
        model=dict(name="yolo", strides=(8, 16), depth=0.0, width=0.125, bins=8, momentum=0.9),
        task=dict(name="detection", detections=20),
        data=dict(name="detection", reader="digit_scenes", size=64, max_boxes=8),
        optim=adamw(1e-3, warmup=5, max_norm=10.0),
        eval=dict(every=10, batch=64),
        checkpoint=dict(every=10, best="map", best_mode="max"),
        log=dict(every=5),
    )
