"""Boxes around the 20 kinds of objects of Pascal VOC, or those of any folder of its form.

Paper: as yolo_coco.py; the data is Everingham et al. 2015 (doi:10.1007/s11263-014-0733-5).
Expected: BCCD's blood cells (205 images, from nothing, variant n at 256 pixels, 2,000 steps of 8,
    one run): AP 53.7 %, AP50 81.7 % on its test split, 58 minutes of a CPU core; command in
    experiments/vision. VOC itself is not measured here. Detectors trained from nothing do poorly
    on its few images; most published numbers begin with features of ImageNet or COCO.
Command: anneal train --config=configs/vision/yolo_voc.py:s --workdir=runs/voc
    --config.data.path=VOCdevkit/VOC2012
    It learns from train (5,717 images) and is judged by val (5,823), with COCO's AP .5:.95;
    `ap50` is close to VOC's own number, which asks for an IoU of .5, but not the same.
Variants: n, s, m, l, tiny (seconds, digits).
"""

from typing import Literal

from configs.common import adamw
from configs.vision import yolo_coco

Variant = Literal["n", "s", "m", "l", "tiny"]
EPOCH = 5_717 // 32  # steps


def get_config(variant: Variant = "n") -> dict:
    """Returns the config as a dict."""
    return yolo_coco.tiny() if variant == "tiny" else voc(variant)


def voc(scale: str) -> dict:
    """200 epochs in batches of 32 at 512 pixels, mosaics until 20 epochs before the end."""
    steps = 200 * EPOCH
    config = yolo_coco.coco(scale)
    config.update(steps=steps, batch=32)
    config["data"].update(reader="voc", size=512, max_boxes=60, mosaic=0.5)
    config["data"].update(mosaic_stop=steps - 20 * EPOCH, workers=8)
    config["optim"] = adamw(1e-3, warmup=3 * EPOCH, final=0.05, decay=0.05, b2=0.999, max_norm=10.0)
    config["ema"] = 0.999
    config["eval"] = dict(every=5 * EPOCH, batch=32)
    config["checkpoint"]["every"] = 5 * EPOCH
    return config
