"""The loss of detection against a slow one, that it adds, and the way from outputs to COCO's
numbers."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.arguments import InputError
from research.kernels.augment import augment
from research.models.functional import Model
from research.tasks import detection
from research.tasks.average_precision import average_precision
from tests.kernels.test_boxes import slow as slow_overlap
from tests.tasks.test_assignment import grid
from tests.tasks.test_assignment import slow as slow_assign

POINTS = np.concatenate([grid(8, 8), grid(4, 16)]).astype(np.float32)
STRIDES = np.repeat(np.float32([8, 16]), [64, 16])
CLASSES, BINS = 3, 8


def look_up(variables, image, key=None, train=False):
    """A model that says of an image what the variables hold at the number that its pixels are."""
    at = image[:, 0, 0, 0].astype(int)
    heads = jax.tree.map(lambda x: x[at], variables["params"])
    return heads | {"anchors": POINTS, "strides": STRIDES}, {}


MODEL = Model(None, None, look_up)


def variables(rng, images=4):
    head = lambda: dict(  # noqa: E731
        classes=jnp.array(rng.normal(-1, 2, (images, len(POINTS), CLASSES)), jnp.float32),
        boxes=jnp.array(rng.normal(0, 2, (images, len(POINTS), 4, BINS)), jnp.float32),
    )
    return {"params": dict(one_to_many=head(), one_to_one=head())}


def batch(rng, images=4, room=6):
    """Objects of many sizes; the last image has none."""
    first = rng.uniform(0, 40, (images, room, 2))
    boxes = np.concatenate([first, first + rng.uniform(2, 30, (images, room, 2))], -1)
    labels = rng.integers(-1, CLASSES, (images, room))
    labels[-1] = -1
    boxes[labels < 0] = 0
    image = np.zeros((images, 64, 64, 3), np.uint8) + np.arange(images)[:, None, None, None]
    weight = np.ones(images, np.float32)
    found = dict(image=image.astype(np.uint8), boxes=boxes.astype(np.float32), weight=weight)
    return found | dict(labels=labels.astype(np.int32))


TASK = detection.make(labels=CLASSES)
LOSS = jax.jit(partial(TASK.loss, MODEL, key=None, train=True))


def numbers(values, given):
    """Every sum and weight of a batch, by name."""
    total, aux = LOSS(values, given)
    return {n: np.array(pair) for n, pair in ({"loss": total} | aux.metrics).items()}


def slow_loss(head, given, count):
    """The parts of a head's loss, and its scores, point by point."""
    parts = np.zeros(4)
    for image in np.flatnonzero(given["weight"]):
        logits = np.asarray(head["classes"][image], float)
        bins = np.exp(np.asarray(head["boxes"][image], float))
        bins /= bins.sum(-1, keepdims=True)
        apart = (bins @ np.arange(BINS)) * STRIDES[:, None]
        found = np.concatenate([POINTS - apart[:, :2], POINTS + apart[:, 2:]], -1)
        truth, labels = given["boxes"][image].astype(float), given["labels"][image]
        chances = 1 / (1 + np.exp(-logits))
        owner, score = slow_assign(chances, found, POINTS, truth, labels, count, 0.5, 6.0)
        for a in range(len(POINTS)):
            within = [label == -2 and (POINTS[a] > b[:2]).all() and (POINTS[a] < b[2:]).all()
                      for b, label in zip(truth, labels, strict=True)]  # fmt: skip
            for c in range(CLASSES if owner[a] >= 0 or not any(within) else 0):
                aim = score[a] if owner[a] >= 0 and labels[owner[a]] == c else 0.0
                p = chances[a, c]
                parts[0] -= aim * np.log(p) + (1 - aim) * np.log(1 - p)
            if owner[a] < 0:
                continue
            box = truth[owner[a]]
            parts[1] += score[a] * (1 - slow_overlap("ciou", found[a], box))
            aims = np.array([*(POINTS[a] - box[:2]), *(box[2:] - POINTS[a])]) / STRIDES[a]
            for side, aim in enumerate(np.clip(aims, 0, BINS - 1)):
                low = min(int(aim), BINS - 2)
                for n, share in ((low, low + 1 - aim), (low + 1, aim - low)):
                    parts[2] -= score[a] / 4 * share * np.log(bins[a, side, n])
        parts[3] += score.sum()
    return parts


def test_the_loss_is_that_of_a_slow_loop():
    rng = np.random.default_rng(0)
    values, given = variables(rng), batch(rng)
    given["labels"][0, 0], given["boxes"][0, 0] = detection.CROWD, [5, 5, 50, 40]
    found = numbers(values, given)
    objects = (given["labels"] >= 0).sum(-1)
    assert found["loss"][1] == objects[:3].sum() + 1
    whole = 0
    for name, count in (("one_to_many", 10), ("one_to_one", 1)):
        expected = slow_loss(values["params"][name], given, count)
        parts = [found[f"{name}/{part}"][0] for part in ("class", "box", "distance", "score")]
        np.testing.assert_allclose(parts, expected, rtol=2e-5)
        assert min(parts) > 0
        assert found[f"{name}/box"][1] == found[f"{name}/score"][0]
        whole += expected[:3] @ [0.5, 7.5, 1.5]
    np.testing.assert_allclose(found["loss"][0], whole, rtol=2e-5)


def test_boxes_of_padding_and_their_order_change_nothing():
    rng = np.random.default_rng(1)
    values, given = variables(rng), batch(rng)
    expected = numbers(values, given)
    more = rng.uniform(0, 64, (4, 3, 4)).astype(np.float32)
    padded = given | dict(boxes=np.concatenate([more, given["boxes"]], 1))
    padded["labels"] = np.concatenate([np.full((4, 3), -1, np.int32), given["labels"]], 1)
    order = rng.permutation(6)
    mixed = given | {n: given[n][:, order] for n in ("boxes", "labels")}
    for other in (padded, mixed):
        for name, pair in numbers(values, other).items():
            np.testing.assert_allclose(pair, expected[name], rtol=1e-6, err_msg=name)


def test_a_mirrored_image_is_learned_with_mirrored_boxes():
    rng = np.random.default_rng(4)
    values, given = variables(rng), batch(rng)
    task = detection.make(labels=CLASSES, flip=1.0)
    mirrored = given["boxes"].copy()
    mirrored[..., [0, 2]] = 64 - given["boxes"][..., [2, 0]]
    mirrored[given["labels"] < 0] = 0
    loss = jax.jit(partial(task.loss, MODEL, key=jax.random.key(0), train=True))
    found = loss(values, given)[0]
    wanted = LOSS(values, given | dict(boxes=mirrored))[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert abs(found[0] - LOSS(values, given)[0][0]) > 1e-3 * abs(found[0])


def test_an_object_that_is_shifted_out_of_its_image_is_not_learned():
    rng = np.random.default_rng(5)
    values, given = variables(rng), batch(rng)
    given["image"][:] = 0
    task, key = detection.make(labels=CLASSES, shift=63), jax.random.key(1)
    loss = jax.jit(partial(task.loss, MODEL, key=key, train=True))
    (_, weight), _ = loss(values, given)
    _, own = jax.random.split(key)
    boxes = np.asarray(augment(own, given["image"], given["boxes"], shift=63)[1])
    there = (boxes[..., 2] > boxes[..., 0]) & (given["labels"] >= 0)
    assert 0 < there.sum() < (given["labels"] >= 0).sum()
    assert weight == np.maximum(there.sum(-1), 1).sum()


def test_what_is_said_inside_a_crowd_changes_nothing_where_no_object_is():
    rng = np.random.default_rng(7)
    values, given = variables(rng), batch(rng)
    given["boxes"][-1, 0], given["labels"][-1, 0] = [10, 10, 40, 50], detection.CROWD
    within = np.flatnonzero(((POINTS > [10, 10]) & (POINTS < [40, 50])).all(-1))
    louder = jax.tree.map(lambda x: x, values)
    for head in louder["params"].values():
        head["classes"] = head["classes"].at[-1, within].add(5)
    before, after = (numbers(v, given)["loss"] for v in (values, louder))
    np.testing.assert_array_equal(before, after)
    given["labels"][-1, 0] = -1
    assert numbers(louder, given)["loss"][0] > numbers(values, given)["loss"][0]


def test_batches_add_and_images_of_padding_count_nothing():
    rng = np.random.default_rng(2)
    values, given = variables(rng), batch(rng)
    whole = numbers(values, given)
    first, second = (given | dict(weight=np.float32(w)) for w in ([1, 0, 0, 1], [0, 1, 1, 0]))
    parts = numbers(values, first), numbers(values, second)
    for name, pair in whole.items():
        np.testing.assert_allclose(parts[0][name] + parts[1][name], pair, rtol=1e-6, err_msg=name)
    alone = numbers(values, jax.tree.map(lambda x: x[[0, 3]], given))
    for name, pair in alone.items():
        np.testing.assert_allclose(pair, parts[0][name], rtol=1e-6, err_msg=name)


def test_gradients_are_finite_where_boxes_have_no_area():
    rng = np.random.default_rng(3)
    values, given = variables(rng), batch(rng)
    sure = jnp.zeros((4, 80, 4, BINS)).at[..., 0].set(1e4)  # every distance found is 0
    values["params"]["one_to_many"]["boxes"] = sure
    given["boxes"][0, 0], given["labels"][0, 0] = [7, 7, 7, 7], 1  # a point of a box
    given["boxes"][1, 0], given["labels"][1, 0] = [4, 4, 60, 60], 1
    grads = jax.jit(jax.grad(lambda v: LOSS(v, given)[0][0]))(values)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("head", detection.HEADS)
def test_a_head_can_be_left_out(head):
    rng = np.random.default_rng(4)
    task = detection.make(labels=CLASSES, **{head: 0.0})
    loss = lambda v: task.loss(MODEL, v, batch(rng), None, True)[0][0]  # noqa: E731
    grads = jax.jit(jax.grad(loss))(variables(rng))["params"]
    moved = {name: any(np.any(x) for x in jax.tree.leaves(grads[name])) for name in grads}
    assert moved == {name: name != head for name in detection.HEADS}


def test_distribution_focal_loss_equals_its_words():
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(9, BINS))
    aims = np.array([0, 7, 3, 2.25, 6.999, -5, 12, 0.5, 6.5])
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = []
    for p, aim in zip(chances, np.clip(aims, 0, 7), strict=True):
        low, high = int(np.floor(aim)), int(np.ceil(aim))
        both = (high - aim) * np.log(p[low]) + (aim - low) * np.log(p[high])
        expected.append(-both if high > low else -np.log(p[low]))
    with jax.enable_x64(True):
        found = detection.distribution_focal(jnp.array(logits), jnp.array(aims))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_split_is_judged_whole_in_pixels_of_the_original_images():
    """Five images in three batches, in a letterbox each; the boxes found are those that are there,
    but for one image where nothing is found."""
    rng = np.random.default_rng(6)
    sizes = [(128, 96), (64, 64), (30, 60), (100, 40), (64, 32)]
    place = np.array([(64 / max(s), 64 / max(s), *(64 - 64 * np.array(s) / max(s)) / 2)
                      for s in sizes])  # fmt: skip
    gold = dict(images=[], annotations=[])
    gold["categories"] = [dict(id=i, name=name) for i, name in enumerate("abc")]
    head = dict(classes=np.full((5, 80, 3), -9.0), boxes=np.zeros((5, 80, 4, BINS)))
    for number, (width, height) in enumerate(sizes):
        gold["images"].append(dict(id=number * 11, width=width, height=height))
        (sx, sy, dx, dy), at, label = place[number], 27 + number, number % 3
        # Distances of whole strides, so that a distribution can be sure of them.
        x1, y1, x2, y2 = np.concatenate([POINTS[at] - [8, 16], POINTS[at] + [16, 8]])
        x1, y1, x2, y2 = (x1 - dx) / sx, (y1 - dy) / sy, (x2 - dx) / sx, (y2 - dy) / sy
        x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
        box = dict(bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1), iscrowd=0)
        gold["annotations"].append(box | dict(id=0, image_id=number * 11, category_id=label))
        head["boxes"][number, at, range(4), [1, 2, 2, 1]] = 200
        head["classes"][number, at, label] = 3 if number != 4 else -9
    values = {
        "params": {"one_to_one": head, "one_to_many": variables(rng, 5)["params"]["one_to_many"]}
    }
    task = detection.make(labels=3, detections=4, min_score=0.01)
    loss = jax.jit(lambda v, b: task.loss(MODEL, v, b, None, False)[1].metrics)
    total = {"_found": 0, "_seen": 0}
    for turn in range(3):
        given = batch(rng, 2)
        at = np.array([2 * turn, 2 * turn + 1])
        given["image"][:] = np.minimum(at, 4)[:, None, None, None]
        given["weight"] = np.float32(at < 5)
        given["turn"] = given["weight"][:, None] * np.eye(3, dtype=np.float32)[turn]
        sums = loss(values, given)
        total = {name: total[name] + np.asarray(sums[name][0], float) for name in total}

    def restore(row, boxes):
        boxes = (boxes - np.tile(place[row, 2:], 2)) / np.tile(place[row, :2], 2)
        return np.clip(boxes, 0, np.tile(sizes[row], 2))

    both = SimpleNamespace(coco=gold, restore=restore)
    totals = {name: (table, 1.0) for name, table in total.items()}
    found = task.report(totals, {"gold": both})
    assert found.pop("images_left_out") == 0
    assert found["ap/a"] == 1 and found["ap/c"] == 1 and found["ap/b"] == pytest.approx(51 / 101)
    assert task.report({}, {"labels": 3}) == {}  # the train split
    boxes = [[*b["bbox"][:2], b["bbox"][0] + b["bbox"][2], b["bbox"][1] + b["bbox"][3], 0.9,
              b["category_id"]] for b in gold["annotations"]]  # fmt: skip
    boxes[4][5] = -1
    assert found == pytest.approx(average_precision(gold, np.array(boxes)[:, None]))
    # The image of which nothing was found, had it been one that cannot be read, asks for nothing.
    totals["_seen"][0][2, 0] = 0
    fewer = task.report(totals, {"gold": both})
    assert fewer["images_left_out"] == 1 and fewer["ap/b"] == 1


def test_the_number_of_classes_is_needed():
    with pytest.raises(InputError, match="needs labels"):
        detection.make()
