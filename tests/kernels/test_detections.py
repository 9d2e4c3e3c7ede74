"""What a detector finds: the best chances, and suppression as a slow loop has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.decode import boxes as decode_boxes
from research.kernels.detections import detect, highest, suppress
from research.models.functional import Model


def overlap(a, b):
    wide = max(min(a[2], b[2]) - max(a[0], b[0]), np.float32(0))
    high = max(min(a[3], b[3]) - max(a[1], b[1]), np.float32(0))
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return wide * high / (both - wide * high) if both > 0 else 0.0


def slow_suppress(found, count, max_iou):
    """The best first, of equals the first; what a better one of its class covers is left out."""
    kept = []
    for row in sorted((r for r in found if r[5] >= 0 and r[4] > 0), key=lambda r: -r[4]):
        if all(row[5] != one[5] or overlap(row, one) <= max_iou for one in kept):
            kept.append(row)
    empty = np.array([0, 0, 0, 0, 0, -1])
    return np.array(kept[:count] + [empty] * (count - len(kept)))


def random_found(rng, levels=None, whole=False):
    first = rng.uniform(0, 60, (40, 2))
    boxes = np.concatenate([first, first + rng.uniform(5, 40, (40, 2))], -1)
    boxes = boxes.round() if whole else boxes
    boxes[30:] = boxes[:10]  # the same boxes again
    scores = rng.random(40) if levels is None else rng.integers(0, levels + 1, 40) / levels
    found = np.concatenate([boxes, scores[:, None], rng.integers(-1, 3, (40, 1))], -1)
    return found.astype(np.float32)


@pytest.mark.parametrize("count", [5, 50])
def test_suppression_equals_a_slow_loop(count):
    run = jax.jit(suppress, static_argnames="count")
    for seed in range(30):
        levels, whole = (None, 1, 3)[seed % 3], seed % 2
        rng = np.random.default_rng(seed)
        found = random_found(rng, levels, whole)
        # 0.5 is an IoU that boxes of whole pixels have exactly: it is not above itself.
        max_iou = (0.5, 0.3, 0.7, 0.0)[seed % 4]
        expected = slow_suppress(found, count, max_iou)
        np.testing.assert_array_equal(run(found, count=count, max_iou=max_iou), expected)


def test_an_overlap_that_is_the_limit_is_kept():
    found = np.array([[0, 0, 10, 10, 0.9, 0], [0, 0, 10, 5, 0.8, 0], [0, 0, 10, 6, 0.7, 0]])
    kept = np.asarray(suppress(jnp.array(found, np.float32), 3, 0.5))
    np.testing.assert_allclose(kept[:, 4], [0.9, 0.8, 0], rtol=1e-6)


def test_a_box_of_no_area_is_found_once():
    found = np.array([[5, 5, 5, 5, 0.9, 0], [0, 0, 9, 9, 0.1, 0]], np.float32)
    np.testing.assert_array_equal(suppress(jnp.array(found), 2, 0.5), found)


@pytest.mark.parametrize("count", [1, 7, 60, 200])
def test_the_highest_chances_are_found_with_point_and_class(count):
    rng = np.random.default_rng(0)
    chances, boxes = rng.random((30, 4), np.float32), rng.random((30, 4), np.float32)
    found = np.asarray(highest(chances, boxes, count))
    order = np.argsort(-chances.reshape(-1))[:count]
    np.testing.assert_array_equal(found[: len(order), 4], chances.reshape(-1)[order])
    np.testing.assert_array_equal(found[: len(order), 5], order % 4)
    np.testing.assert_array_equal(found[: len(order), :4], boxes[order // 4])
    assert (found[len(order) :] == [0, 0, 0, 0, 0, -1]).all()


def outputs(rng, points=12):
    """What models/yolo.py gives, for two images."""
    head = lambda: dict(  # noqa: E731
        classes=rng.normal(-2, 2, (2, points, 3)).astype(np.float32),
        boxes=rng.normal(0, 2, (2, points, 4, 8)).astype(np.float32),
    )
    places = dict(anchors=rng.uniform(0, 64, (points, 2)).astype(np.float32))
    places |= dict(strides=np.full(points, 8, np.float32))
    return dict(one_to_one=head(), one_to_many=head()) | places


@pytest.mark.parametrize("head", ["one_to_one", "one_to_many"])
def test_decoding_reads_the_head_that_is_asked_for_in_one_compiled_call(head):
    given = outputs(np.random.default_rng(0))
    model = Model(None, None, lambda variables, image: (variables, {}))
    limits = dict(head=head, count=6, min_score=0.2, max_iou=0.4, candidates=20)
    run = jax.jit(lambda v, x: decode_boxes.decode(model, v, x, **limits))
    found = np.asarray(run(given, {"image": np.zeros((2, 64, 64, 3), np.uint8)}))
    assert found.shape == (2, 6, 6)
    chances = 1 / (1 + np.exp(-given[head]["classes"]))
    bins = np.exp(given[head]["boxes"])
    distances = 8 * (bins / bins.sum(-1, keepdims=True)) @ np.arange(8)
    first = given["anchors"] - distances[..., :2]
    boxes = np.concatenate([first, given["anchors"] + distances[..., 2:]], -1)
    for image in range(2):
        scored = [
            [*boxes[image, a], chances[image, a, c], c]
            for a in range(12) for c in range(3) if chances[image, a, c] >= 0.2
        ]  # fmt: skip
        expected = slow_suppress(np.array(scored), 6, 0.4 if head == "one_to_many" else 1.0)
        np.testing.assert_allclose(found[image], expected, rtol=1e-4, atol=1e-4)


def test_what_is_not_a_number_is_never_the_best():
    given = outputs(np.random.default_rng(1))
    given["one_to_one"]["classes"][0, 3] = np.nan
    given["one_to_one"]["boxes"][0, 4] = np.nan
    found = np.asarray(detect(given, "one_to_one", 10))
    assert np.isfinite(found).all() and (np.diff(found[0, :, 4]) <= 0).all()
