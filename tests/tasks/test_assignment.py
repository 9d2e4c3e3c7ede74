"""The assignment of anchor points to objects against a slow double loop."""

from functools import partial

import jax
import numpy as np
import pytest

from research.tasks.assignment import assign


def iou(a, b):
    wide = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    high = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
    return wide * high / union if union > 0 else 0.0


def slow(chances, boxes, points, truth, labels, count, alpha, beta):
    """The words of arXiv:2108.07755, one point and one object at a time."""
    asked = {}
    for m, (box, label) in enumerate(zip(truth, labels, strict=True)):
        inside = []
        for a, (x, y) in enumerate(points):
            if label >= 0 and box[0] < x < box[2] and box[1] < y < box[3]:
                t = chances[a, label] ** alpha * iou(boxes[a], box) ** beta
                inside.append((-t, a))
        for t, a in sorted(inside)[:count]:
            asked.setdefault(a, []).append((-iou(boxes[a], box), m, -t))
    owner, score = np.full(len(points), -1), np.zeros(len(points))
    own = {a: min(claims) for a, claims in asked.items()}
    for a, (_, m, t) in own.items():
        mine = [other for other in own.values() if other[1] == m]
        largest, best = max(other[2] for other in mine), max(-other[0] for other in mine)
        owner[a], score[a] = m, t / largest * best if largest > 0 else 0.0
    return owner, score


def grid(size, stride):
    return (np.mgrid[:size, :size][::-1].reshape(2, -1).T + 0.5) * stride


def fixture(name, rng):
    points = np.concatenate([grid(8, 8), grid(4, 16)])
    classes, objects = 3, 7
    first = rng.uniform(0, 40, (objects, 2))
    truth = np.concatenate([first, first + rng.uniform(4, 30, (objects, 2))], -1)
    labels = rng.integers(-1, classes, objects)
    near = truth[rng.integers(objects, size=len(points))] + rng.normal(0, 4, (len(points), 4))
    boxes = np.sort(near.reshape(-1, 2, 2), 1).reshape(-1, 4)
    chances = rng.uniform(0, 1, (len(points), classes))
    if name == "ties":  # all points alike, so the first of them are taken
        chances[:], boxes[:] = 0.5, [8, 8, 40, 40]
        truth[:3] = [[8, 8, 40, 40], [8, 8, 40, 40], [0, 0, 40, 40]]
        labels[:3] = [1, 2, 0]
    elif name == "tiny":  # no point is inside, or on a side of one
        truth[:3] = [[5, 5, 7, 7], [4, 4, 9, 9], [1, 1, 4, 20]]
        labels[:] = [0, 1, 2, -1, -1, -1, -1]
    elif name == "crowded":
        first = rng.uniform(10, 16, (objects, 2))
        truth = np.concatenate([first, first + rng.uniform(30, 36, (objects, 2))], -1)
        labels = rng.integers(0, classes, objects)
    elif name == "none":
        labels[:] = -1
    elif name == "one":
        labels[1:] = -1
    elif name == "hopeless":  # nothing found overlaps, or has any chance
        boxes[:] = [50, 50, 51, 51]
        chances[::2] = 0
    return [x.astype(np.float64) for x in (chances, boxes, points, truth)] + [labels]


NAMES = ["random", "ties", "tiny", "crowded", "none", "one", "hopeless"]
FAST = {}


def fast(given, **rule):
    with jax.enable_x64(True):
        key = tuple(rule.items())
        FAST.setdefault(key, jax.jit(partial(assign, **rule)))
        return [np.asarray(x) for x in FAST[key](*given)]


@pytest.mark.parametrize("count", [1, 10])
@pytest.mark.parametrize("name", NAMES)
def test_assignment_equals_a_slow_double_loop(name, count):
    rule = dict(count=count, alpha=0.5, beta=6.0)
    for seed in range(10):
        given = fixture(name, np.random.default_rng(seed))
        owner, score = fast(given, **rule)
        expected = slow(*given, **rule)
        np.testing.assert_array_equal(owner, expected[0])
        np.testing.assert_allclose(score, expected[1], atol=1e-12)


def test_the_fixtures_have_what_they_are_named_for():
    rule = dict(count=10, alpha=0.5, beta=6.0)
    owners = {n: slow(*fixture(n, np.random.default_rng(0)), **rule) for n in NAMES}
    assert (owners["none"][0] == -1).all()
    assert 1 not in owners["tiny"][0][:64] and 0 not in owners["tiny"][0]
    assert (owners["hopeless"][0] >= 0).any() and not owners["hopeless"][1].any()
    assert len(set(owners["crowded"][0])) > 3


def test_one_to_one_gives_an_object_one_point_at_most():
    rule = dict(count=1, alpha=0.5, beta=6.0)
    for name in NAMES:
        owner, _ = fast(fixture(name, np.random.default_rng(1)), **rule)
        assert all((owner == m).sum() <= 1 for m in range(7))


def test_the_best_point_of_an_object_has_its_best_overlap_as_score():
    rule = dict(count=10, alpha=0.5, beta=6.0)
    given = fixture("random", np.random.default_rng(2))
    owner, score = fast(given, **rule)
    for m in set(owner[owner >= 0]):
        overlaps = [iou(given[1][a], given[3][m]) for a in np.flatnonzero(owner == m)]
        assert score[owner == m].max() == pytest.approx(max(overlaps), abs=1e-12)
