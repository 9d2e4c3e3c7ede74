"""Overlaps of boxes against published numbers and slow loops, and finite for every box."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from research.kernels import boxes as boxes_lib

KINDS = {name: getattr(boxes_lib, name) for name in ("iou", "giou", "diou", "ciou")}


def slow(kind, ours, theirs):
    """One pair of boxes, by the formulas of arXiv:1902.09630 and 1911.08287."""
    ax1, ay1, ax2, ay2 = map(float, ours)
    bx1, by1, bx2, by2 = map(float, theirs)
    wide = max(min(ax2, bx2) - max(ax1, bx1), 0.0)
    high = max(min(ay2, by2) - max(ay1, by1), 0.0)
    sizes = [(max(x2 - x1, 0.0), max(y2 - y1, 0.0)) for x1, y1, x2, y2 in (ours, theirs)]
    union = sizes[0][0] * sizes[0][1] + sizes[1][0] * sizes[1][1] - wide * high
    iou = wide * high / union if union > 0 else 0.0
    width = max(max(ax2, bx2) - min(ax1, bx1), 0.0)
    height = max(max(ay2, by2) - min(ay1, by1), 0.0)
    if kind == "iou":
        return iou
    if kind == "giou":
        return iou - ((width * height - union) / (width * height) if width * height else 0.0)
    apart = ((ax1 + ax2 - bx1 - bx2) / 2) ** 2 + ((ay1 + ay2 - by1 - by2) / 2) ** 2
    diagonal = width**2 + height**2
    diou = iou - (apart / diagonal if diagonal else 0.0)
    if kind == "diou":
        return diou
    angles = [math.atan(w / h) if h else (math.pi / 2 if w else 0.0) for w, h in sizes]
    v = 4 / math.pi**2 * (angles[1] - angles[0]) ** 2
    return diou - (v / (1 - iou + v) * v if v else 0.0)


def random_boxes(rng, count):
    first = rng.uniform(-50, 50, (count, 2))
    return np.concatenate([first, first + rng.uniform(0, 60, (count, 2))], -1)


# Identical, touching at a side and at a corner, inside, far away, of no width, no area, a point in
# a box, corners swapped.
AWKWARD = np.array(
    [
        [0, 0, 10, 10], [0, 0, 10, 10], [10, 0, 20, 10], [10, 10, 20, 20], [2, 3, 4, 5],
        [1e4, 1e4, 1e4 + 1, 1e4 + 1], [3, 0, 3, 10], [0, 4, 9, 4], [5, 5, 5, 5], [0, 0, 0, 0],
        [8, 8, 2, 2],
    ],
    float,
)  # fmt: skip


def test_overlaps_are_the_published_ones():
    """Those of the tests of MultimediaTechLab/YOLO (MIT licence), four digits."""
    ours = jnp.array([[50, 80, 150, 140], [30, 20, 100, 80]], float)
    theirs = jnp.array([[90, 70, 160, 160], [40, 40, 90, 120]], float)
    found = boxes_lib.iou(ours[:, None], theirs)
    np.testing.assert_allclose(found, [[0.4138, 0.1905], [0.0096, 0.3226]], atol=6e-5)
    found = boxes_lib.diou(ours[:, None], theirs)
    np.testing.assert_allclose(found, [[0.3816, 0.0943], [-0.2048, 0.2622]], atol=6e-5)


@jax.jit  # all at once: one compilation
def overlaps(ours, theirs):
    return {name: kind(ours, theirs) for name, kind in KINDS.items()}


def test_overlaps_equal_a_slow_loop():
    rng = np.random.default_rng(0)
    boxes = np.concatenate([random_boxes(rng, 20), AWKWARD, AWKWARD + rng.uniform(-1, 1, (11, 4))])
    with jax.enable_x64(True):
        found = overlaps(boxes[:, None], boxes)
    for kind, values in found.items():
        expected = [[slow(kind, a, b) for b in boxes] for a in boxes]
        np.testing.assert_allclose(values, expected, atol=1e-10, rtol=0, err_msg=kind)


def test_values_and_gradients_are_finite_for_boxes_of_no_area_too():
    every = np.concatenate([AWKWARD, AWKWARD * 1e-6, AWKWARD * 100]).astype(np.float32)
    totals = lambda a, b: {n: x.sum() for n, x in overlaps(a, b).items()}  # noqa: E731
    values = totals(every[:, None], every)
    grads = jax.jit(jax.jacrev(totals, (0, 1)))(every[:, None], every)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((values, grads)))


def test_gradients_are_those_of_finite_differences():
    rng = np.random.default_rng(1)
    ours, theirs = random_boxes(rng, 6), random_boxes(rng, 6)
    angle = lambda b: jnp.arctan2(b[:, 2] - b[:, 0], b[:, 3] - b[:, 1])  # noqa: E731
    v = lambda b: 4 / jnp.pi**2 * (angle(b) - angle(theirs)) ** 2  # noqa: E731

    def values(x):
        alpha = v(ours) / (1 - boxes_lib.iou(ours, theirs) + v(ours))  # whatever x is
        found = overlaps(x, theirs)
        found["ciou"] = found["diou"] - alpha * v(x)
        return {name: one.sum() for name, one in found.items()}

    with jax.enable_x64(True):
        totals = lambda x: {n: one.sum() for n, one in overlaps(x, theirs).items()}  # noqa: E731
        found = jax.jit(jax.jacrev(totals))(ours)
        step = 1e-5 * np.eye(ours.size).reshape(-1, *ours.shape)
        for kind, both in jax.jit(jax.vmap(values))(
            np.concatenate([ours + step, ours - step])
        ).items():
            above, below = np.split(np.asarray(both), 2)
            np.testing.assert_allclose(
                np.ravel(found[kind]), (above - below) / 2e-5, atol=1e-8, err_msg=kind
            )


def test_conversions_go_and_come_back():
    rng = np.random.default_rng(2)
    boxes, points = random_boxes(rng, 12).reshape(3, 4, 4), rng.uniform(-9, 9, (3, 4, 2))
    assert boxes_lib.to_xywh(jnp.array([1.0, 2, 4, 8])).tolist() == [1, 2, 3, 6]
    assert boxes_lib.to_distances(jnp.array([2.0, 5]), jnp.array([1.0, 2, 4, 8])).tolist() == [
        1, 3, 2, 3
    ]  # fmt: skip
    np.testing.assert_allclose(boxes_lib.from_xywh(boxes_lib.to_xywh(boxes)), boxes, atol=1e-5)
    back = boxes_lib.from_distances(points, boxes_lib.to_distances(points, boxes))
    np.testing.assert_allclose(back, boxes, atol=1e-5)


def test_a_distribution_is_read_as_its_mean_in_strides():
    points, strides = jnp.array([[4.0, 4], [40, 8]]), jnp.array([8.0, 16])
    sure = 1e3 * jax.nn.one_hot(jnp.array([[0, 1, 2, 3], [3, 0, 0, 1]]), 4)
    np.testing.assert_allclose(
        boxes_lib.from_logits(sure, points, strides), [[4, -4, 20, 28], [-8, 8, 40, 24]]
    )
    even = boxes_lib.from_logits(jnp.zeros((5, 2, 4, 4)), points, strides)
    np.testing.assert_allclose(even[0, 0], [-8, -8, 16, 16], atol=1e-5)
