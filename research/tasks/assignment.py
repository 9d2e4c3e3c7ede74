"""Which anchor point is to find which object: task-aligned assignment (TOOD, arXiv:2108.07755).

    object_a, score_a = assign(chances_ac, boxes_a4, points_a2, truth_m4, labels_m, count=10)

Shape suffixes: a anchor points, c classes, m objects of an image, padded.
"""

import jax
import jax.numpy as jnp

from research.kernels import boxes as boxes_lib

Array = jax.Array


def assign(
    chances_ac: Array,
    boxes_a4: Array,
    points_a2: Array,
    truth_m4: Array,
    labels_m: Array,
    *,
    count: int,
    alpha: float,
    beta: float,
) -> tuple[Array, Array]:
    """Returns the object (a,) of each anchor point of an image, -1: none, and its score (a,).

    An object, one with a label of at least 0, asks for the `count` points with the highest
    alignment t = s^alpha u^beta among those that lie inside it (not on its sides): s is the chance
    of its class there, 0 to 1, u the IoU of the box found there with its own. A point that several
    ask for goes to the one of the highest IoU. Of equals the first is taken, of points and of
    objects. The score, what the class's chance is to be, is t divided by the largest t of the
    object's points and multiplied by their largest IoU (section 3.2). An object that no point is
    inside gets none. `count=1` is the one-to-one assignment of YOLOv10 (arXiv:2405.14458, 3.1),
    whose metric with the same alpha and beta is the consistent one.
    """
    present_m = labels_m >= 0
    inside_ma = (boxes_lib.to_distances(points_a2, truth_m4[:, None]) > 0).all(-1)
    inside_ma &= present_m[:, None]
    iou_ma = boxes_lib.iou(truth_m4[:, None], boxes_a4)
    chance_ma = chances_ac.T[jnp.maximum(labels_m, 0)]
    aligned_ma = jnp.where(inside_ma, chance_ma**alpha * iou_ma**beta, -1.0)
    _, best = jax.lax.top_k(aligned_ma, min(count, len(points_a2)))
    rows = jnp.arange(len(labels_m))[:, None]
    asked_ma = jnp.zeros_like(inside_ma).at[rows, best].set(True) & inside_ma
    object_a = jnp.where(asked_ma, iou_ma, -1.0).argmax(0)
    object_a = jnp.where(asked_ma.any(0), object_a, -1)
    owned_ma = object_a == rows
    aligned_ma, iou_ma = (jnp.where(owned_ma, x, 0.0) for x in (aligned_ma, iou_ma))
    largest_m1 = aligned_ma.max(-1, keepdims=True)
    share_ma = aligned_ma / jnp.where(largest_m1 > 0, largest_m1, 1.0)
    return object_a, (share_ma * iou_ma.max(-1, keepdims=True)).max(0)
