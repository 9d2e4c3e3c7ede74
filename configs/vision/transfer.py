"""A new set of images for a model that has learned others.

Paper: Dosovitskiy et al. 2020 (arXiv:2010.11929), section 4.1 and table 4: momentum SGD, batches of
    512, a cosine, gradients clipped at 1, no decay, 10,000 steps of CIFAR, the last layer new and
    of zeros; the rate is chosen among 0.001, 0.003, 0.01 and 0.03. ResNets by the same recipe.
Expected: no number of our own yet. Theirs, B/16 from ImageNet-21k: about 99 % of CIFAR-10, at 384
    pixels where this stays at the 224 of the published weights.
Command: anneal train --config=configs/vision/transfer.py --workdir=runs/flowers
    --config.data.path=FLOWERS --config.init_from=hf:FOLDER
    where FLOWERS holds train/CLASS/*.jpg, and validation/CLASS/*.jpg or a share of train is taken
    for it, and FOLDER is a copy of google/vit-base-patch16-224-in21k, of microsoft/resnet-50 for
    resnet50, or a workdir of ours.
    Nothing but the last layer: --config.freeze="('^(?!classifier)',)"
Variants: vit_b16, resnet50, tiny (seconds, no file and nothing to begin with; after a run of
    vit_imagenet.py:tiny with config.model.pool=token: --config.init_from=WORKDIR).
"""

from typing import Literal

from configs.vision import resnet50_imagenet, vit_imagenet


def get_config(variant: Literal["vit_b16", "resnet50", "tiny"] = "vit_b16") -> dict:
    """Returns the config as a dict."""
    return {"vit_b16": vit_b16, "resnet50": resnet50, "tiny": tiny}[variant]()


def recipe(config: dict) -> dict:
    """Returns a config of ImageNet with another last layer, data and training."""
    config.update(
        steps=10_000,
        batch=512,
        init_rules=(("^classifier", "skip"),),
        task=dict(name="image_classification"),
        optim=dict(
            chain=("clip", "momentum", "lr"),
            clip=dict(max_norm=1.0),
            momentum=dict(decay=0.9),
            lr=dict(peak=0.003, schedule="cosine", warmup=500, final=0.0),
        ),
        eval=dict(every=500),
        checkpoint=dict(every=500, best="accuracy", best_mode="max"),
    )
    config["data"].update(held_out=0.05, pipeline=("crop", "flip"), crop=dict(min_area=0.05))
    config["data"].pop("rand_augment", None)
    return config


def vit_b16() -> dict:
    """As published: the class is read from a token."""
    config = recipe(vit_imagenet.imagenet("b16"))
    config["init_from"] = "hf:vit-base-patch16-224-in21k"
    config["model"].update(pool="token", norm_epsilon=1e-12)
    return config


def resnet50() -> dict:
    """Form v1.5, with the pixels as published."""
    config = recipe(resnet50_imagenet.imagenet(50))
    config["init_from"] = "hf:resnet-50"
    return config


def tiny() -> dict:
    """Seconds: digits."""
    config = recipe(vit_imagenet.tiny())
    config.update(steps=20, batch=8, init_rules=(), eval=dict(every=10, batch=120))
    config["model"].update(pool="token")
    config["data"].update(reader="digits", size=8)
    config["optim"]["lr"].update(warmup=5)
    config["checkpoint"]["every"] = 10
    return config
