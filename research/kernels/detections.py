"""From what a detector says at each anchor point to the boxes that it means.

    found_bk6 = detect(outputs, "one_to_one", count=100)     # x1 y1 x2 y2 score class

The heads of a detector (models/yolo.py) differ in how they are read: one-to-one says each object
once, so the highest scores are the answer; one-to-many says it several times, so what overlaps with
a better box of its class is left out (non-maximum suppression). Both have fixed shapes, and places
left over hold zeros and class -1. Shape suffixes: a anchor points, c classes, n candidates,
k boxes.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from research.kernels import boxes as boxes_lib
from research.kernels.matmul import wide

Array = jax.Array
Head = Literal["one_to_one", "one_to_many"]


def detect(
    outputs: dict[str, Any],
    head: Head,
    count: int,
    min_score: float = 0.001,
    candidates: int = 1000,
    max_iou: float = 0.7,
) -> Array:
    """Returns the `count` best boxes (b, k, 6) that a head of a detector found in each image, the
    best first: x1 y1 x2 y2 in pixels of its input, the chance of its class, that class. Scores are
    at least `min_score`. Of one-to-many they are among the `candidates` with the highest scores,
    and none overlaps with a better one of its class by more than `max_iou`."""
    logits_bac, bins_ba4r = wide(outputs[head]["classes"]), wide(outputs[head]["boxes"])
    boxes_ba4 = boxes_lib.from_logits(bins_ba4r, outputs["anchors"], outputs["strides"])
    # What is not a number would be the best of all, or make others so.
    chances_bac = jnp.nan_to_num(jax.nn.sigmoid(logits_bac), nan=0.0)
    boxes_ba4 = jnp.nan_to_num(boxes_ba4, nan=0.0)
    number = count if head == "one_to_one" else max(count, candidates)
    found_bn6 = jax.vmap(partial(highest, count=number))(chances_bac, boxes_ba4)
    found_bn6 = _leave_out(found_bn6, found_bn6[..., 4] >= min_score)
    if head == "one_to_one":
        return found_bn6
    return jax.vmap(partial(suppress, count=count, max_iou=max_iou))(found_bn6)


def highest(chances_ac: Array, boxes_a4: Array, count: int) -> Array:
    """Returns the boxes (k, 6) of the `count` highest chances of all points and classes, the
    highest first, padded if there are fewer."""
    classes = chances_ac.shape[1]
    # The points of the highest chances are among those of their highest one: two small sorts.
    _, points = jax.lax.top_k(chances_ac.max(-1), min(count, len(boxes_a4)))
    flat = chances_ac[points].reshape(-1)
    scores_k, places = jax.lax.top_k(flat, min(count, len(flat)))
    found = [boxes_a4[points[places // classes]], scores_k[:, None], (places % classes)[:, None]]
    found_k6 = jnp.concatenate([x.astype(scores_k.dtype) for x in found], -1)
    more = count - len(found_k6)
    return jnp.concatenate([found_k6, jnp.zeros((more, 6)).at[:, 5].set(-1)]) if more else found_k6


def suppress(found_n6: Array, count: int, max_iou: float) -> Array:
    """Returns the boxes (k, 6) that greedy non-maximum suppression keeps, the best first: again and
    again the one with the highest score, of equals the first, without those of its class that
    overlap with it by an IoU above `max_iou`. `count` steps, whatever is found."""
    boxes_n4, classes_n = found_n6[:, :4], found_n6[:, 5]

    def step(left_n: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        best = left_n.argmax()
        overlap_n = boxes_lib.iou(boxes_n4[best], boxes_n4)
        gone_n = (classes_n == classes_n[best]) & (overlap_n > max_iou)
        gone_n = gone_n.at[best].set(True)  # a box of no area does not overlap with itself
        return jnp.where(gone_n, 0.0, left_n), (found_n6[best], left_n[best] > 0)

    left_n = jnp.where(classes_n >= 0, found_n6[:, 4], 0.0)
    _, (found_k6, some_k) = jax.lax.scan(step, left_n, None, length=count)
    return _leave_out(found_k6, some_k)


def _leave_out(found_k6: Array, some_k: Array) -> Array:
    nothing = jnp.array([0, 0, 0, 0, 0, -1], found_k6.dtype)
    return jnp.where(some_k[..., None], found_k6, nothing)
