"""Handwritten digits: a small residual network.

Paper: LeCun et al. 1998, "Gradient-based learning applied to document recognition", whose LeNet-5
    has 0.95 % errors; the network is one block of arXiv:1512.03385.
Expected: 99.2 % of the test set after five epochs, 4.7 minutes of two CPU cores, one run (99.22 %).
    The test set chose nothing.
Command: anneal train --config=configs/vision/mnist.py --workdir=runs/mnist --config.data.path=MNIST
    where MNIST holds the four files of IDX, train-images-idx3-ubyte.gz and so on. Fashion-MNIST is
    stored alike.
Variants: mnist, tiny (seconds, scikit-learn's digits).
"""

from typing import Literal

from configs.common import sgd


def get_config(variant: Literal["mnist", "tiny"] = "mnist") -> dict:
    """Returns the config as a dict."""
    return {"mnist": mnist, "tiny": tiny}[variant]()


def mnist() -> dict:
    """Five epochs. The stem leaves 7 x 7 of 28 x 28: convolutions are slow on CPUs."""
    return dict(
        seed=0,
        steps=2_345,
        batch=128,
        model=dict(
            name="resnet",
            depth=20,
            blocks=(1,),
            widths=(64,),
            stem="large",
            stem_width=32,
            shortcut="projection",
            mean=(0.1307,),
            std=(0.3081,),
        ),
        task=dict(name="image_classification", label_smoothing=0.1),
        data=dict(
            name="images",
            reader="mnist",
            path=None,
            size=28,
            channels=1,
            held_out=0.0,
            pipeline=("pad_crop",),
            pad_crop=dict(padding=2),
        ),
        optim=sgd(0.1, warmup=234, decay=5e-4),
        eval=dict(every=469, batch=500, split="test"),
        checkpoint=dict(every=469),
        log=dict(every=50),
    )


def tiny() -> dict:
    """Seconds: digits of 8 x 8."""
    config = mnist()
    config.update(
        steps=20,
        batch=8,
        model=dict(name="resnet", depth=20, blocks=(1,), widths=(8,), stem_width=8),
        data=dict(name="images", reader="digits", size=8, channels=1),
        optim=sgd(0.1, warmup=5),
        eval=dict(every=10, batch=120),
        checkpoint=dict(every=10),
        log=dict(every=5),
    )
    return config
