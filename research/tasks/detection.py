"""Detection: boxes around the objects of images, and their classes.

A batch holds image (b, h, w, 3), boxes (b, m, 4) as x1 y1 x2 y2 in pixels of that image, labels
(b, m) with -1 for boxes of padding and -2 for crowds, weight (b,), and in evaluation `turn` (b,
batches), as data/questions.py makes it. Points inside a crowd that have no object learn nothing:
there are objects, but nobody said where. A model gives what
models/yolo.py does: two heads, each with class logits and distributions of the distances to the
four sides at every anchor point. Both are trained, with different assignments of points to objects
(YOLOv10, arXiv:2405.14458, section 3.1): one-to-many learns from several points an object and
teaches the features; one-to-one learns from one, and so its answer needs no suppression.

Loss of a head, summed over points: the cross-entropy of each class on its own, whose target is the
assignment's score (TOOD, arXiv:2108.07755); and where a point has an object, weighted by that
score, 1 - CIoU (arXiv:1911.08287) and the distribution focal loss (arXiv:2006.04388).
The sums are divided by the number of objects, an image without any counting as one. That number
adds over micro-batches and devices, and is never 0. The papers divide each head's loss by the sum
of its own scores instead. Two such quotients are no quotient of sums, but as no parameter gets
gradients of both heads, it is the scale of a head's gradient alone that differs. As boxes get
better, scores and with them the loss may rise: NAME/box and NAME/distance are means over scores,
which fall, and NAME/score is the sum of an object's scores.

The right answers of a split, info["gold"], are those of data/detection.py: `coco`, a dict of
images, annotations and categories as in COCO's files, in pixels of the original images, these in
the order of the split, categories numbered as classes are; and restore(row, boxes_k4), which takes
boxes found in the image of a row to where they are in its original.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.arguments import Count, Fraction, InputError, NonNegative, Size
from research.kernels import boxes as boxes_lib
from research.kernels.augment import augment, is_on
from research.kernels.detections import Head, detect
from research.kernels.matmul import wide
from research.tasks import Aux, Task, figures
from research.tasks.assignment import assign
from research.tasks.average_precision import average_precision, judge

Array = jax.Array
HEADS = ("one_to_many", "one_to_one")
CROWD = -2  # as in data/detection.py
SMALL = 1e-9  # a mean over scores is 0 where there are none


def make(
    labels: Count | None = None,
    points: Count = 10,
    alpha: NonNegative = 0.5,
    beta: NonNegative = 6.0,
    class_weight: NonNegative = 0.5,
    box_weight: NonNegative = 7.5,
    distance_weight: NonNegative = 1.5,
    one_to_many: NonNegative = 1.0,
    one_to_one: NonNegative = 1.0,
    head: Head = "one_to_one",
    detections: Count = 100,
    min_score: Fraction = 0.001,
    max_iou: Fraction = 0.7,
    shift: Size = 0,
    flip: Fraction = 0.0,
    jitter: Fraction = 0.0,
    erase: Fraction = 0.0,
) -> Task:
    """Returns the task; `labels`, the number of classes, None: what the data says. One-to-many
    gives an object up to `points` anchor points; alpha and beta are those of assignment.py;
    class_weight, box_weight and distance_weight weigh the parts of a head's loss, one_to_many and
    one_to_one the heads. shift (pixels), flip, jitter and erase change images and boxes of training
    on the device (kernels/augment.py), 0 is off.

    Reports COCO's average precision (average_precision.py) of what `head` finds: the best
    `detections` boxes an image of at least `min_score`, `max_iou` that of suppression."""
    if labels is None:
        raise InputError("detection needs labels, or data that decides them")
    weights = {"class": class_weight, "box": box_weight, "distance": distance_weight}
    counts, shares = (points, 1), (one_to_many, one_to_one)
    changes = dict(shift=shift, flip=flip, jitter=jitter, erase=erase)

    def loss(
        model: Any, variables: dict, batch: dict, key: Array | None, train: bool
    ) -> tuple[tuple[Array, Array], Aux]:
        if train and any(map(is_on, changes.values())):
            key, own = jax.random.split(key)
            image, boxes = augment(own, batch["image"], batch["boxes"], **changes)
            gone_bm = (boxes[..., 2:] <= boxes[..., :2]).any(-1)
            labels_bm = jnp.where(gone_bm, -1, batch["labels"])
            batch = batch | dict(image=image, boxes=boxes, labels=labels_bm)
        outputs, state = model.apply(variables, batch["image"], key=key, train=train)
        weight_b = batch["weight"]
        objects_b = (batch["labels"] >= 0).sum(-1)
        # Sums, not products of vectors, which a TPU would round to bfloat16.
        weight = (weight_b * jnp.maximum(objects_b, 1)).sum()
        total, metrics = 0.0, {}
        for name, count, share in zip(HEADS, counts, shares, strict=True):
            where = dict(count=count, alpha=alpha, beta=beta)
            sums = head_losses(outputs, name, batch, **where)
            sums = {part: (sum_b * weight_b).sum() for part, sum_b in sums.items()}
            total = total + share * sum(weights[part] * sums[part] for part in weights)
            scores = sums["score"] + SMALL
            over = {"class": weight, "score": weight, "box": scores, "distance": scores}
            metrics |= {f"{name}/{part}": (sums[part], over[part]) for part in over}
        if "turn" in batch:
            found_bk6 = detect(outputs, head, detections, min_score, max_iou=max_iou)
            # Each image has a place of its own, as a row has in span.py.
            own, exact = jnp.eye(len(weight_b)), dict(precision=jax.lax.Precision.HIGHEST)
            found = jnp.einsum("bn,bj,bkf->njkf", batch["turn"], own, found_bk6, **exact)
            metrics["_found"] = (found, weight)
            metrics["_seen"] = (jnp.einsum("bn,bj->nj", batch["turn"], own, **exact), weight)
        return (total, weight), Aux(state, metrics)

    return Task(loss, report, figures={"precision_recall": draw_curves})


def head_losses(
    outputs: dict[str, Any], head: Head, batch: dict, *, count: int, alpha: Any, beta: Any
) -> dict[str, Array]:
    """Returns the parts of a head's loss, `class`, `box` and `distance`, and `score`, each (b,):
    sums over anchor points."""
    points_a2, strides_a = outputs["anchors"], outputs["strides"]
    logits_bac, bins_ba4r = wide(outputs[head]["classes"]), wide(outputs[head]["boxes"])
    boxes_ba4 = boxes_lib.from_logits(bins_ba4r, points_a2, strides_a)
    truth_bm4, labels_bm = batch["boxes"], batch["labels"]
    rule = partial(assign, count=count, alpha=alpha, beta=beta)
    guess = jax.lax.stop_gradient((jax.nn.sigmoid(logits_bac), boxes_ba4))
    over_images = jax.vmap(rule, in_axes=(0, 0, None, 0, 0))
    object_ba, score_ba = over_images(*guess, points_a2, truth_bm4, labels_bm)

    own_ba = jnp.maximum(object_ba, 0)  # of points without an object the score is 0
    truth_ba4 = jnp.take_along_axis(truth_bm4, own_ba[..., None], axis=1)
    label_ba = jnp.take_along_axis(labels_bm, own_ba, axis=1)
    aim_bac = score_ba[..., None] * jax.nn.one_hot(label_ba, logits_bac.shape[-1])
    entropy_bac = jax.nn.softplus(logits_bac) - aim_bac * logits_bac
    crowd_bma = (boxes_lib.to_distances(points_a2, truth_bm4[:, :, None]) > 0).all(-1)
    crowd_ba = (crowd_bma & (labels_bm == CROWD)[..., None]).any(1)
    entropy_bac = jnp.where((crowd_ba & (object_ba < 0))[..., None], 0.0, entropy_bac)
    aim_ba4 = boxes_lib.to_distances(points_a2, truth_ba4) / strides_a[:, None]
    spread_ba = distribution_focal(bins_ba4r, aim_ba4).mean(-1)
    return {
        "class": entropy_bac.sum((1, 2)),
        "box": (score_ba * (1 - boxes_lib.ciou(boxes_ba4, truth_ba4))).sum(-1),
        "distance": (score_ba * spread_ba).sum(-1),
        "score": score_ba.sum(-1),
    }


def distribution_focal(logits: Array, aim: Array) -> Array:
    """Returns the distribution focal loss (...) of logits (..., r) over the bins 0 to r - 1 for
    distances `aim` (...): the cross-entropy with the two bins around it, each by its nearness
    (arXiv:2006.04388, equation 6). What is outside counts as the nearest end."""
    last = logits.shape[-1] - 1
    aim = jnp.clip(aim, 0, last)
    nearness = jnp.maximum(1 - jnp.abs(jnp.arange(last + 1) - aim[..., None]), 0)
    return -(nearness * jax.nn.log_softmax(logits, -1)).sum(-1)


def report(totals: dict[str, Any], info: dict) -> dict[str, float]:
    """Returns the average precision of a split by info["gold"] (any split but train)."""
    if info.get("gold") is None:
        return {}
    coco, found = restored(totals, info["gold"])
    left_out = len(info["gold"].coco["images"]) - len(found)
    return {"images_left_out": left_out} | average_precision(coco, found)


def draw_curves(totals: dict[str, Any], info: dict) -> Any:
    """Returns a figure of precision over recall of a split; None without the right answers."""
    if info.get("gold") is None:
        return None
    precision, _ = judge(*restored(totals, info["gold"]))
    return figures.precision_recall(precision[..., 0, -1], info["classes"])


def restored(totals: dict[str, Any], gold: Any) -> tuple[dict[str, Any], np.ndarray]:
    """Returns the right answers of the images that could be read, and the boxes found in each
    (n, k, 6), in pixels of the originals."""
    found_nk6 = np.asarray(totals["_found"][0])
    found_nk6 = found_nk6.reshape(-1, *found_nk6.shape[2:])
    images = gold.coco["images"]
    rows = np.flatnonzero(np.asarray(totals["_seen"][0]).reshape(-1)[: len(images)])
    corners = [gold.restore(row, found_nk6[row, :, :4]) for row in rows.tolist()]
    corners = np.reshape(corners, (len(rows), -1, 4))
    ids = {images[row]["id"] for row in rows}
    seen = [one for one in gold.coco["annotations"] if one["image_id"] in ids]
    coco = gold.coco | dict(images=[images[row] for row in rows], annotations=seen)
    return coco, np.concatenate([corners, found_nk6[rows, :, 4:]], -1)
