"""CIFAR-10 by the residual networks that were made for it.

Paper: He et al. 2015 (arXiv:1512.03385), section 4.2 and table 6: SGD with momentum 0.9, all
    parameters decayed by 1e-4, batches of 128, 0.1 divided by 10 after 32k and 48k of 64k steps,
    images shifted by up to 4 pixels and mirrored, shortcuts without parameters (option A), all
    50,000 training images. Two differences: pixels are normalised by channel, where the paper
    subtracts the mean of each pixel; and where it trains 110 layers with 0.01 until the error is
    below 80 % (400 steps), the rate rises over these.
Expected: errors of the paper on the test set, one run: 20 layers 8.75 %, 32 7.51 %, 44 7.17 %, 56
    6.97 %, 110 6.43 % (of five runs 6.61 +- 0.16), on two GPUs of 2015. No number of our own
    yet.
Command: anneal train --config=configs/vision/resnet_cifar.py:resnet20 --workdir=runs/cifar
    --config.data.path=cifar-10-binary.tar.gz
Variants: resnet20, resnet32, resnet44, resnet56, resnet110, tiny (seconds, no file).
"""

from typing import Literal


def get_config(
    variant: Literal[
        "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "tiny"
    ] = "resnet20",
) -> dict:
    """Returns the config as a dict."""
    return tiny() if variant == "tiny" else paper(int(variant.removeprefix("resnet")))


def paper(depth: int) -> dict:
    """The paper's recipe."""
    return dict(
        seed=0,
        steps=64_000,
        batch=128,
        model=dict(
            name="resnet",
            depth=depth,
            zero_init=False,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        task=dict(name="image_classification"),
        data=dict(
            name="images",
            reader="cifar",
            path=None,
            size=32,
            held_out=0.0,
            pipeline=("pad_crop", "flip"),
            pad_crop=dict(padding=4),
        ),
        optim=dict(
            chain=("l2", "momentum", "lr"),
            l2=dict(rate=1e-4),
            momentum=dict(decay=0.9),
            lr=dict(
                peak=0.1,
                schedule="step",
                boundaries=(32_000, 48_000),
                factor=0.1,
                warmup=400 if depth == 110 else 0,
            ),
        ),
        eval=dict(every=2_000, batch=500, split="test"),
        checkpoint=dict(every=2_000),
        log=dict(every=100),
    )


def tiny() -> dict:
    """Seconds: scikit-learn's digits, shifted by a pixel."""
    config = paper(20)
    config["model"].update(blocks=(1, 1), widths=(8, 16), stem_width=8)
    config["optim"]["lr"].update(boundaries=(10, 15))
    config.update(
        steps=20,
        batch=8,
        data=dict(
            name="images",
            reader="digits",
            size=8,
            pipeline=("pad_crop", "flip"),
            pad_crop=dict(padding=1),
        ),
        eval=dict(every=10, batch=120),
        checkpoint=dict(every=10),
        log=dict(every=5),
    )
    return config
