"""COCO's numbers: those of pycocotools, whatever is found and whatever is there.

Its program divides by tp + fp + 2^-52, lest that be 0. So where the one box so far is right it says
1 - 2^-52, where faster-coco-eval says 1; nothing else may differ, in any bit.
"""

import contextlib
import io

import numpy as np
import pytest

from research.tasks.average_precision import average_precision, judge, tables

NAMES = ["map", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]


def official(gold, found):
    """Tables and the twelve numbers of the program of COCO itself."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        both = []
        for table in tables(gold, found):
            one = COCO()
            one.dataset = table
            one.createIndex()
            both.append(one)
        evaluation = COCOeval(*both, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.eval["precision"], evaluation.eval["recall"], evaluation.stats


def scene(rng, images=12, classes=4, objects=6, k=12, crowds=0.15, levels=None, empty=0.2):
    """Objects of all sizes, and boxes near some of them, of wrong classes, twice, or anywhere."""
    names = [dict(id=i, name=f"c{i}") for i in range(classes)]
    gold = dict(images=[], annotations=[], categories=names)
    found = np.zeros((images, k, 6))
    found[..., 5] = -1
    for number in range(images):
        image = 1000 - 7 * number  # not in the order of the numbers
        gold["images"].append(dict(id=image, width=400, height=300))
        boxes = []
        for _ in range(0 if rng.random() < empty else rng.integers(1, objects + 1)):
            size = rng.choice([10, 40, 150], 2) * rng.uniform(0.6, 1.6, 2)
            boxes.append([*rng.uniform(0, [250, 150]), *size])
            label = int(rng.integers(classes - 1))  # the last class never occurs
            gold["annotations"].append(
                dict(
                    id=len(gold["annotations"]), image_id=image, category_id=label,
                    bbox=boxes[-1], area=float(size.prod() * rng.uniform(0.4, 1)),
                    iscrowd=int(rng.random() < crowds),
                )
            )  # fmt: skip
        for place in range(rng.integers(0, k + 1)):
            own = [a for a in gold["annotations"] if a["image_id"] == image]
            if own and rng.random() < 0.8:
                one = own[rng.integers(len(own))]
                x, y, w, h = np.array(one["bbox"]) + rng.choice([0, 0, 1, 4]) * rng.normal(size=4)
                label = one["category_id"] if rng.random() < 0.8 else rng.integers(classes)
            else:
                (x, y), (w, h), label = rng.uniform(0, 200, 2), rng.uniform(1, 90, 2), 0
            score = rng.random()
            score = np.round(score * levels) / levels if levels else score
            found[number, place] = [x, y, x + max(w, 0), y + max(h, 0), score, label]
    return gold, found


def same(gold, found):
    ours, theirs = judge(gold, found), official(gold, found)
    guarded = (ours[0] == 1) & (theirs[0] == 1 - 2.0**-52)
    np.testing.assert_array_equal(np.where(guarded, theirs[0], ours[0]), theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])
    numbers = average_precision(gold, found)
    for name, value in zip([*NAMES, "", "", "ar100"], theirs[2], strict=False):
        if name:
            assert abs(numbers.get(name, -1) - value) < 5e-16, name
    return numbers


@pytest.mark.parametrize(
    "kind",
    [
        dict(), dict(crowds=0), dict(crowds=0.9), dict(levels=2), dict(levels=1, crowds=0.4),
        dict(empty=0.9), dict(objects=25, k=60), dict(images=1), dict(classes=2, images=30),
        dict(objects=3, k=150, images=3, classes=2),
    ],
    ids=str,
)  # fmt: skip
def test_every_number_is_that_of_pycocotools(kind):
    for seed in range(6):
        same(*scene(np.random.default_rng(seed), **kind))


def test_nothing_found_counts_as_nothing():
    gold, found = scene(np.random.default_rng(0), empty=0)
    found[..., 5] = -1
    assert same(gold, found)["map"] == 0


def test_no_objects_leave_nothing_to_say():
    gold, found = scene(np.random.default_rng(0), empty=1)
    assert same(gold, found) == {}


def test_crowds_excuse_what_lies_in_them_and_are_not_to_be_found():
    box = [10.0, 10.0, 100.0, 100.0]
    crowd = dict(id=0, image_id=3, category_id=0, bbox=box, area=1e4, iscrowd=1)
    one = crowd | dict(id=1, bbox=[200.0, 10.0, 50.0, 50.0], area=2500.0, iscrowd=0)
    image = dict(id=3, width=300, height=200)
    gold = dict(images=[image], annotations=[crowd, one], categories=[dict(id=0, name="a")])
    found = np.array([[[20, 20, 60, 60, 0.9, 0], [200, 10, 250, 60, 0.8, 0]]], float)
    assert same(gold, found)["map"] == 1
    gold["annotations"][0]["iscrowd"] = 0
    assert same(gold, found)["map"] < 0.5


def test_the_first_object_counts_though_its_number_is_0():
    one = dict(id=0, image_id=1, category_id=0, bbox=[1.0, 2, 30, 40], area=1200.0, iscrowd=0)
    gold = dict(
        images=[dict(id=1, width=64, height=64)],
        annotations=[one],
        categories=[dict(id=0, name="a")],
    )
    assert same(gold, np.array([[[1, 2, 31, 42, 0.5, 0.0]]]))["map"] == 1


def test_each_class_has_its_own_number_and_they_mean_the_map():
    gold, found = scene(np.random.default_rng(3), images=30, empty=0)
    numbers = same(gold, found)
    each = [value for name, value in numbers.items() if name.startswith("ap/")]
    assert list(numbers)[-3:] == ["ap/c0", "ap/c1", "ap/c2"]
    assert np.mean(each) == pytest.approx(numbers["map"], rel=1e-12)
