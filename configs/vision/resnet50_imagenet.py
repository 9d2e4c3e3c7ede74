"""ImageNet (ILSVRC 2012) by ResNets of the form v1.5.

Paper: Goyal et al. 2017 (arXiv:1706.02677), the recipe that most later papers compare with:
    Nesterov momentum 0.9, weights but not norms decayed by 1e-4, the rate 0.1 for each 256 images
    of a batch, risen over five epochs and divided by 10 after 30, 60 and 80 of 90; the last scale
    of each block begins as 0. Crops of 8 % to 100 % of an image, mirrored.
Expected: 76.4 % top-1 on the validation set with 50 layers (its table 1: errors of 23.60 +- 0.12 %,
    five runs of batches of 256, eight P100; 23.74 +- 0.09 % with batches of 8,192 in an hour of
    256 of them). No number of our own yet. One
    difference: theirs takes the moments of a batch norm over 32 images, ours over the whole batch.
Command: anneal train --config=configs/vision/resnet50_imagenet.py --workdir=runs/resnet50
    --config.data.path=IMAGENET where IMAGENET holds train/CLASS/*.JPEG and validation/CLASS/*.JPEG.
Variants: resnet18, resnet34, resnet50, resnet101, resnet152, tiny (seconds, no file).
"""

from typing import Literal

from configs.common import NO_DECAY

EPOCH = 1_251  # steps: 1,281,167 images in batches of 1,024


def get_config(
    variant: Literal[
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "tiny"
    ] = "resnet50",
) -> dict:
    """Returns the config as a dict."""
    return tiny() if variant == "tiny" else imagenet(int(variant.removeprefix("resnet")))


def imagenet(depth: int) -> dict:
    """90 epochs."""
    return dict(
        seed=0,
        steps=90 * EPOCH,
        batch=1_024,
        precision="bf16",
        model=dict(name="resnet", depth=depth),
        task=dict(name="image_classification"),
        data=dict(
            name="images",
            reader="folder",
            path=None,
            held_out=0.0,  # validation must be there, none of train is taken for it
            size=224,
            pipeline=("crop", "flip"),
            crop=dict(min_area=0.08),
            eval_pipeline=("center_crop",),
            center_crop=dict(share=0.875),
            workers=16,
        ),
        optim=dict(
            chain=("l2", "momentum", "lr"),
            l2=dict(rate=1e-4, rules=NO_DECAY),
            momentum=dict(decay=0.9, nesterov=True),
            lr=dict(
                peak=0.4,
                schedule="step",
                warmup=5 * EPOCH,
                boundaries=(30 * EPOCH, 60 * EPOCH, 80 * EPOCH),
                factor=0.1,
            ),
        ),
        eval=dict(every=5 * EPOCH),
        checkpoint=dict(every=EPOCH),
        log=dict(every=100),
    )


def tiny() -> dict:
    """Seconds: scikit-learn's digits, by bottlenecks, with mixed images."""
    config = imagenet(50)
    config["optim"]["lr"].update(warmup=5, boundaries=(10, 15))
    config["data"].update(reader="digits", size=16, workers=0)
    config.update(
        steps=20,
        batch=8,
        precision="fp32",
        model=dict(
            name="resnet", depth=50, blocks=(1, 1), widths=(16, 32), stem="small", stem_width=8
        ),
        task=dict(name="image_classification", label_smoothing=0.1, mixup=0.2, cutmix=1.0),
        eval=dict(every=10, batch=120),
        checkpoint=dict(every=10),
        log=dict(every=5),
    )
    return config
