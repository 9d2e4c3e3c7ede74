"""Classification of an image: a batch holds `image` (b, h, w, c) of bytes, `labels` and `weight`
(b,). A model gives logits (b, classes).

Training may change images (kernels/augment.py), and mix each with another one and aim at both
labels: mixup (arXiv:1710.09412) adds them, CutMix (arXiv:1905.04899) pastes a rectangle of one into
the other. All this happens on the device, by the key of the step. Evaluation is of the images as
they are, and without smoothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.arguments import Count, Fraction, InputError, Positive, Size
from research.kernels.augment import augment, is_on
from research.tasks import Aux, Task, classify, figures

Array = jax.Array
BINS = 15  # of confidence, as in arXiv:1706.04599
TOP = 5
# Of more classes there is no table of truth by guess: 1,000 take 4 MB a batch.
CONFUSABLE = 1_000


def make(
    labels: Count | None = None,
    label_smoothing: Fraction = 0.0,
    mixup: Positive | None = None,
    cutmix: Positive | None = None,
    mixing: Fraction = 1.0,
    shift: Size = 0,
    flip: Fraction = 0.0,
    jitter: Fraction = 0.0,
    erase: Fraction = 0.0,
) -> Task:
    """Returns the task; `labels`, the number of classes, None: what the data says.

    `mixup` and `cutmix` are the alpha of the Beta distribution that shares are drawn from (None:
    off), `mixing` the probability that a batch is mixed; where both are on, each has half of those.
    shift (pixels), flip, jitter and erase are those of kernels/augment.py, 0 is off.

    Reports accuracy; top5 of more than five classes; ece, the expected calibration error over 15
    bins of confidence (arXiv:1706.04599); of up to 1,000 classes balanced_accuracy, the mean of
    their recalls, and f1, the mean over classes.
    """
    if labels is None:
        raise InputError("image_classification needs labels, or data that decides them")

    changes = dict(shift=shift, flip=flip, jitter=jitter, erase=erase)

    def loss(
        model: Any, variables: dict, batch: dict, key: Array | None, train: bool
    ) -> tuple[tuple[Array, Array], Aux]:
        image_bhwc, weight_b = batch["image"], batch["weight"]
        aim_bc = jax.nn.one_hot(batch["labels"], labels)
        if train and any(map(is_on, changes.values())):
            key, own = jax.random.split(key)
            image_bhwc, _ = augment(own, image_bhwc, **changes)
        if train and (mixup is not None or cutmix is not None):
            key, own = jax.random.split(key)
            share_hw = draw_shares(own, image_bhwc.shape[1:3], mixup, cutmix, mixing)
            image_bhwc, aim_bc = mix(image_bhwc, aim_bc, weight_b, share_hw)
        logits_bc, state = model.apply(variables, image_bhwc, key=key, train=train)
        smoothing = label_smoothing if train else 0.0
        smooth_bc = (1 - smoothing) * aim_bc + smoothing / labels
        nll_b = -(smooth_bc * jax.nn.log_softmax(logits_bc)).sum(-1)
        total, guess_bc = weight_b.sum(), jax.nn.one_hot(logits_bc.argmax(-1), labels)
        right_b = (guess_bc * aim_bc).sum(-1)  # of a mixed image, the share of the label it names
        metrics = {"accuracy": ((right_b * weight_b).sum(), total)}
        if not train:
            metrics["_calibration"] = (calibration(logits_bc, right_b, weight_b), total)
            if labels > TOP:
                best = jax.lax.top_k(logits_bc, TOP)[1]
                found_b = (best == batch["labels"][:, None]).any(-1)
                metrics["top5"] = ((found_b * weight_b).sum(), total)
            if labels <= CONFUSABLE:  # truth by guess
                table = jnp.einsum("b,bc,bd->cd", weight_b, aim_bc, guess_bc)
                metrics["_confusion"] = (table, total)
        return ((nll_b * weight_b).sum(), total), Aux(state, metrics)

    drawn = {"confusion": figures.confusion} if labels <= CONFUSABLE else {}
    return Task(loss, report, figures=drawn)


def draw_shares(
    key: Array, size: tuple[int, int], mixup: Any, cutmix: Any, probability: Any
) -> Array:
    """Returns which share of each pixel (h, w) an image keeps: the same of all (mixup), or 0 within
    a rectangle and 1 outside (CutMix), or 1 of all where a batch is not mixed."""
    keys = jax.random.split(key, 4)
    ones = jnp.ones(size)
    alphas = jnp.stack([jnp.asarray(1.0 if a is None else a, float) for a in (mixup, cutmix)])
    shares, found = jax.random.beta(keys[0], alphas, alphas), []
    if mixup is not None:
        found.append(ones * shares[0])
    if cutmix is not None:
        inside = 1.0
        for axis, (length, key) in enumerate(zip(size, jax.random.split(keys[1]), strict=True)):
            half = jnp.floor(length * jnp.sqrt(1 - shares[1])) // 2
            centre = jax.random.randint(key, (), 0, length)
            place = jnp.expand_dims(jnp.arange(length), 1 - axis)
            # A rectangle that leaves the image is cut off there, and so its share is counted.
            inside = inside * ((place >= centre - half) & (place < centre + half))
        found.append(1 - inside * ones)
    mixed = jnp.where(jax.random.bernoulli(keys[2], 0.5), found[0], found[-1])
    return jnp.where(jax.random.bernoulli(keys[3], probability), mixed, ones)


def mix(image_bhwc: Array, aim_bc: Array, weight_b: Array, share_hw: Array) -> tuple[Array, Array]:
    """Returns images, as float32 from 0 to 255, and aims, each mixed with those of the next row.
    Rows are in random order, so the next is a random partner, and nothing but a row at the end of
    each device's part travels. One that is padding is no partner."""
    partner = lambda x: jnp.roll(x, -1, 0)  # noqa: E731
    real_b = partner(weight_b) > 0
    share_bhw = jnp.where(real_b[:, None, None], share_hw, 1.0)[..., None]
    image_bhwc = image_bhwc.astype(jnp.float32)
    image_bhwc = share_bhw * image_bhwc + (1 - share_bhw) * partner(image_bhwc)
    own_b = jnp.where(real_b, share_hw.mean(), 1.0)[:, None]
    return image_bhwc, own_b * aim_bc + (1 - own_b) * partner(aim_bc)


def calibration(logits_bc: Array, right_b: Array, weight_b: Array) -> Array:
    """Returns sums (BINS, 3) of weight, confidence and hits in each bin ((m - 1) / 15, m / 15] of
    the probability of the class that is named: sums add exactly over batches, errors do not."""
    sure_b = jax.nn.softmax(logits_bc).max(-1)
    index_b = jnp.clip(jnp.ceil(sure_b * BINS) - 1, 0, BINS - 1)
    numbers_b3 = weight_b[:, None] * jnp.stack([jnp.ones_like(sure_b), sure_b, right_b], -1)
    exact = dict(precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("bm,bn->mn", jax.nn.one_hot(index_b, BINS), numbers_b3, **exact)


def report(totals: dict[str, Any], info: dict) -> dict[str, float]:
    """Returns ece, and of not too many classes balanced_accuracy and f1, of a whole split."""
    bins = np.asarray(totals["_calibration"][0])
    count, sure, right = bins.T
    found = {"ece": float(np.abs(right - sure).sum() / count.sum())}
    if "_confusion" in totals:
        confusion = np.asarray(totals["_confusion"][0])
        there = confusion.sum(1) > 0
        recalls = np.diag(confusion)[there] / confusion.sum(1)[there]
        found["balanced_accuracy"] = float(recalls.mean())
        found["f1"] = classify.report(totals, info)["f1"]
    return found
