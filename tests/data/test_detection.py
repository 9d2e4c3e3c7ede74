"""Batches of pictures with boxes: what is odd is counted by name, gold is in their own pixels."""

import inspect
import json
import re

import numpy as np
import pytest

from research.arguments import InputError
from research.data import detection
from research.data.mosaic import mosaic
from research.data.scene_readers import coco, digit_scenes, voc
from tests.data.image_files import encoded, random_pixels

CLASSES = ("ant", "bee", "cow")


def make(split="train", seed=0, batch=4, **given):
    return detection.make(**given, split=split, seed=seed, batch=batch)


def taken(source, count, start=0):
    batches = source.batches(start)
    return [next(batches) for _ in range(count)]


def annotate(boxes, **more):
    """Returns COCO's annotations of (image, category, x, y, w, h)."""
    return [
        dict(id=n, image_id=image, category_id=category, bbox=[x, y, w, h], area=w * h, iscrowd=0)
        | more
        for n, (image, category, x, y, w, h) in enumerate(boxes, 1)
    ]


def write_coco(root, boxes, crowds=(), sizes=((20, 40),) * 4, splits=("train", "val")):
    """Writes pictures of (height, width) and annotations, the same for each split."""
    (root / "annotations").mkdir(parents=True)
    held = dict(
        images=[
            dict(id=n + 10, file_name=f"{n}.png", height=high, width=wide)
            for n, (high, wide) in enumerate(sizes)
        ],
        categories=[dict(id=5 * n + 5, name=name) for n, name in enumerate(CLASSES)],
        annotations=annotate(boxes) + annotate(crowds, iscrowd=1),
    )
    for split in splits:
        (root / f"{split}2017").mkdir()
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(held))
        for n, (high, wide) in enumerate(sizes):
            (root / f"{split}2017/{n}.png").write_bytes(encoded(random_pixels(n, high, wide)))
    return held


BOXES = [(10, 5, 2, 4, 10, 8), (10, 10, 20, 2, 12, 16), (11, 5, 0, 0, 40, 20)]


@pytest.fixture
def folder(tmp_path):
    write_coco(tmp_path, BOXES)
    return str(tmp_path)


def test_a_batch_has_the_form_of_its_spec(folder):
    for split in ("train", "validation"):
        source = make(split, reader="coco", path=folder, size=16, max_boxes=5)
        (batch,) = taken(source, 1)
        assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
            name: (leaf.shape, leaf.dtype) for name, leaf in source.spec.items()
        }
        assert batch["boxes"].shape == (4, 5, 4) and batch["boxes"].dtype == np.float32
        assert ("turn" in batch) == (split == "validation")
    assert source.info["labels"] == 3 and source.info["classes"] == list(CLASSES)


def test_evaluation_sees_boxes_in_the_letterbox_and_turn_says_which_batch(folder):
    source = make("validation", reader="coco", path=folder, size=20, max_boxes=3, batch=3)
    first, second = source.batches()
    want = np.array([[1, 7, 6, 11], [10, 6, 16, 14], [0, 0, 0, 0]])
    np.testing.assert_allclose(first["boxes"][0], want, atol=1e-5)
    assert first["labels"][0].tolist() == [0, 1, -1]
    np.testing.assert_allclose(first["boxes"][1, 0], [0, 5, 20, 15], atol=1e-5)
    assert first["labels"][2].tolist() == [-1, -1, -1]  # a picture with no objects
    assert first["turn"].tolist() == [[1, 0]] * 3
    assert second["turn"][0].tolist() == [0, 1] and second["weight"].tolist() == [1, 0, 0]


def test_gold_is_the_file_and_boxes_come_back_to_its_pixels(folder):
    source = make("validation", reader="coco", path=folder, size=24, max_boxes=3)
    gold, (batch,) = source.gold, source.batches()
    assert make("train", reader="coco", path=folder).gold is None
    found = [
        (one["image_id"], one["category_id"], *one["bbox"]) for one in gold.coco["annotations"]
    ]
    assert found == [(image - 10, category // 5 - 1, *box) for image, category, *box in BOXES]
    for row in range(4):
        own = [one["bbox"] for one in gold.coco["annotations"] if one["image_id"] == row]
        back = gold.restore(row, batch["boxes"][row][: len(own)])
        back[:, 2:] -= back[:, :2]
        np.testing.assert_allclose(back, np.array(own).reshape(-1, 4), atol=1e-4)


def test_the_right_answers_have_an_average_precision_of_one(tmp_path, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    write_coco(tmp_path, BOXES, crowds=[(10, 5, 0, 0, 30, 20)])
    source = make("validation", reader="coco", path=str(tmp_path), size=24, max_boxes=3)
    truth, results = COCO(), []
    truth.dataset = source.gold.coco
    truth.createIndex()
    for step, batch in enumerate(source.batches()):
        for at, row in enumerate(source.rows(step, True)):
            labels = batch["labels"][at]
            back = source.gold.restore(row, batch["boxes"][at][labels >= 0]).astype(float)
            back[:, 2:] -= back[:, :2]
            results += [
                dict(image_id=row, category_id=int(label), bbox=box.tolist(), score=0.9)
                for label, box in zip(labels[labels >= 0], back, strict=True)
            ]
    judge = COCOeval(truth, truth.loadRes(results), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert judge.stats[0] == pytest.approx(1)


def test_what_is_odd_is_counted_named_and_said(tmp_path, capsys):
    boxes = [
        (10, 5, 2, 4, 0, 8), (10, 5, 2, 4, 5, -1), (10, 5, -5, 4, 10, 8), (11, 5, 100, 100, 4, 4),
        (12, 5, 1, 1, 3, 3), (12, 5, 2, 2, 9, 9), (12, 10, 3, 3, 6, 6),
    ]  # fmt: skip
    write_coco(tmp_path, boxes, crowds=[(13, 15, 0, 0, 20, 20)])
    source = make("validation", reader="coco", path=str(tmp_path), size=40, max_boxes=2)
    info, said = source.info, capsys.readouterr().err
    assert (info["images"], info["boxes"], info["crowds"]) == (4, 4, 1)
    assert (info["no_area"], info["no_area_files"]) == (2, ["0.png"])
    assert (info["outside"], info["outside_files"]) == (2, ["0.png", "1.png"])
    assert (info["without_boxes"], info["without_boxes_files"]) == (2, ["1.png", "3.png"])
    assert (info["too_many"], info["too_many_files"]) == (1, ["2.png"])
    assert info["absent"] == ["cow"]
    for text in ("2 boxes have no area .*: 0.png", "no box of cow", "1 pictures have more than"):
        assert re.search(text, said)
    (batch,) = source.batches()
    assert batch["labels"].tolist() == [[0, -1], [-1, -1], [0, 1], [-2, -1]]  # the largest two
    np.testing.assert_allclose(batch["boxes"][0, 0], [0, 14, 5, 22])  # cut at the edge
    kept = source.gold.coco["annotations"]
    assert len(kept) == 5 and [one["iscrowd"] for one in kept] == [0, 0, 0, 0, 1]
    assert [one["id"] for one in kept] == [1, 2, 3, 4, 5]


def test_a_picture_of_another_size_than_its_annotation_is_named(tmp_path):
    write_coco(tmp_path, BOXES)
    (tmp_path / "val2017/1.png").write_bytes(encoded(random_pixels(1, 30, 20)))
    given = dict(reader="coco", path=str(tmp_path), split="validation", size=16)
    with pytest.raises(InputError, match="1.png has 20 x 30 pixels, its annotation says 40 x 20;"):
        list(make(**given).batches())
    (batch,) = make(**given, skip_budget=1).batches()
    assert batch["weight"].tolist() == [1, 0, 1, 1]
    (tmp_path / "val2017/2.png").unlink()
    with pytest.raises(InputError, match="more than skip_budget=1 .*2.png cannot be read"):
        list(make(**given, skip_budget=1).batches())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("categories"), "is not COCO's JSON .KeyError: 'categories'"),
        (lambda held: held["annotations"].append(dict(image_id=99)), "is not COCO's JSON"),
        (lambda held: held["annotations"][0].update(category_id=4), "is not COCO's JSON"),
        (lambda held: held["annotations"][0].update(bbox=[1, 2]), "is not COCO's JSON"),
        (lambda held: held["images"][0].update(file_name="../x.png"), "points out of the data set"),
        (lambda held: held["images"][0].update(file_name="/etc/x.png"), "points out of the data"),
        (lambda held: held["images"][0].update(height=None), "is not COCO's JSON"),
    ],
)
def test_a_file_that_is_not_cocos_is_refused(tmp_path, change, message):
    held = write_coco(tmp_path, BOXES)
    change(held)
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(held))
    with pytest.raises(InputError, match=message) as error:
        make(reader="coco", path=str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", ["{split}.json", "{split}/_annotations.coco.json"])
def test_other_places_of_annotations_are_found(tmp_path, layout):
    held = write_coco(tmp_path / "a", BOXES, splits=("train", "valid"))
    for split in ("train", "valid"):
        file = tmp_path / "b" / layout.format(split=split)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(held))
        folder = tmp_path / "b" / split
        folder.mkdir(exist_ok=True)
        for one in (tmp_path / "a" / f"{split}2017").iterdir():
            one.rename(folder / one.name)
    for split in ("train", "validation"):
        assert taken(make(split, reader="coco", path=str(tmp_path / "b")), 1)[0]["weight"].all()
    with pytest.raises(InputError, match="no split 'test'; it has train, validation"):
        make("test", reader="coco", path=str(tmp_path / "b"))


VOC = """<annotation><folder>x</folder><filename>{name}.png</filename>
<size><width>40</width><height>20</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{label}</name><pose>Left</pose><difficult>{difficult}</difficult>
<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"""


def write_voc(root, head=""):
    for part in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / part).mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("p0\np1\n")
    (root / "ImageSets/Main/val.txt").write_text("p2\n")
    for number in range(3):
        (root / f"JPEGImages/p{number}.png").write_bytes(encoded(random_pixels(number, 20, 40)))
        objects = [
            OBJECT.format(label="bee", difficult=0, x1=2, y1=3, x2=12, y2=13),
            OBJECT.format(label="ant", difficult=1, x1=1, y1=1, x2=9, y2=9),
        ]
        text = head + VOC.format(name=f"p{number}", objects="".join(objects))
        (root / f"Annotations/p{number}.xml").write_text(text)


def test_voc_is_read_and_difficult_boxes_are_crowds(tmp_path):
    write_voc(tmp_path)
    source = make("validation", reader="voc", path=str(tmp_path), size=40, max_boxes=3, batch=1)
    (batch,) = source.batches()
    assert source.info["classes"] == ["ant", "bee"] and source.info["crowds"] == 1
    assert batch["labels"].tolist() == [[1, -2, -1]]
    np.testing.assert_allclose(batch["boxes"][0, 0], [2, 13, 12, 23])
    assert [one["iscrowd"] for one in source.gold.coco["annotations"]] == [0, 1]
    assert make(reader="voc", path=str(tmp_path)).info["images"] == 2


BOMB = "<!DOCTYPE a [<!ENTITY b 'x'><!ENTITY c '&b;&b;&b;&b;&b;&b;&b;&b;'>]>"


@pytest.mark.parametrize(
    ("head", "cut", "message"),
    [
        (BOMB, None, "has a document type or an entity, which could grow without end"),
        ("<!DOCTYPE a SYSTEM 'file:///etc/passwd'>", None, "has a document type"),
        ("", -20, "is not VOC's XML .ExpatError"),
        ("<a>" * 60, None, "nested without end"),
        ("<a/>", None, "is not VOC's XML"),
    ],
)
def test_xml_that_is_damaged_or_a_bomb_is_refused_by_name(tmp_path, head, cut, message):
    write_voc(tmp_path, head)
    for file in (tmp_path / "Annotations").iterdir():
        file.write_text(file.read_text()[:cut])
    with pytest.raises(InputError, match=rf"p\d.xml.*{message}") as error:
        make(reader="voc", path=str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["list", "file"])
def test_a_name_of_voc_that_points_outside_is_refused(tmp_path, place):
    write_voc(tmp_path)
    file = tmp_path / ("ImageSets/Main/train.txt" if place == "list" else "Annotations/p0.xml")
    file.write_text(file.read_text().replace("p0", "../p0"))
    with pytest.raises(InputError, match="points out of the data set; refused"):
        make(reader="voc", path=str(tmp_path))


def test_scenes_of_digits_are_the_same_everywhere_and_boxes_fit_them_closely():
    scenes, again = digit_scenes.read("validation"), digit_scenes.read("validation")
    assert scenes.fingerprint == again.fingerprint != digit_scenes.read("train").fingerprint
    counts = [len(boxes) for boxes in scenes.boxes]
    assert min(counts) >= 1 and max(counts) == 5 and len(counts) == 128
    labels = np.concatenate(scenes.boxes)[:, 4]
    assert np.bincount(labels.astype(int), minlength=10).min() > 10
    for number, boxes in enumerate(scenes.boxes[:40]):
        image = scenes.read(number).astype(int)
        for x1, y1, x2, y2, _ in boxes.astype(int):
            assert 10 <= y2 - y1 <= 24 and 0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 64
            ink = image[y1:y2, x1:x2].max(axis=2)
            around = np.median(image.max(axis=2))
            for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]):
                assert edge.max() > around + 15


DIGITS = dict(size=64, max_boxes=8, pipeline=("crop", "flip"), crop=dict(min_area=0.5))


def test_boxes_of_a_training_batch_are_valid_and_behind_them_is_padding():
    for batch in taken(make(**DIGITS, mosaic=0.5, batch=16), 5):
        there = batch["labels"] >= 0
        assert (np.sort(~there, axis=1) == ~there).all()
        x1, y1, x2, y2 = np.moveaxis(batch["boxes"][there], -1, 0)
        assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= 64).all() and (y2 <= 64).all()
        assert (x2 > x1).all() and (y2 > y1).all() and (batch["boxes"][~there] == 0).all()


def test_a_run_resumes_with_the_same_batches_and_workers_change_none():
    given = DIGITS | dict(mosaic=0.5, scales=(32, 64))
    whole = taken(make(**given), 5)
    assert {batch["image"].shape[1] for batch in whole} == {32, 64}
    batches = make(**given, workers=2).batches(3)
    for want, *others in zip(whole[3:], taken(make(**given), 2, 3), batches, strict=False):
        for name in want:
            for other in others:
                np.testing.assert_array_equal(want[name], other[name])
    batches.close()


def test_a_pass_over_train_has_no_mosaics_and_draws_nothing():
    drawn = make(**DIGITS | dict(mosaic=1.0))
    plain = make(size=64, max_boxes=8, pipeline=("letterbox",))
    first, second = (next(one.batches(one_pass=True)) for one in (drawn, plain))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_mosaics_end_at_their_step(monkeypatch):
    made = []
    monkeypatch.setattr(detection, "make_mosaic", lambda parts, *rest: made.append(1) or parts[0])
    source = make(mosaic=1.0, mosaic_stop=150, batch=8)  # an epoch has 64 steps: 2 whole ones
    for step, count in ((0, 8), (127, 8), (128, 0), (200, 0)):
        made.clear()
        taken(source, 1, step)
        assert len(made) == count
    taken(make("validation", mosaic=1.0), 1)
    assert not made


@pytest.mark.parametrize("seed", range(8))
def test_a_mosaic_holds_what_each_cell_shows_of_its_picture(seed):
    parts = []
    for number in range(4):
        image = np.full((30, 40, 3), 60 + 40 * number, np.uint8)
        image[10:20, 10:30] = 255 - number
        parts.append((image, np.array([[10, 10, 30, 20, number]], np.float32)))
    found, boxes = mosaic(parts, 64, np.random.default_rng(seed))
    assert found.shape == (64, 64, 3) and len(set(boxes[:, 4])) == len(boxes)
    assert {60, 100, 140, 180} <= set(np.unique(found).tolist())
    looked_at = 0
    for x1, y1, x2, y2, label in boxes:
        y, x = np.nonzero(found[..., 0] == 255 - int(label))
        if len(x) < 20:
            continue  # smoothed away
        looked_at += 1
        seen = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        assert np.abs(seen - [x1, y1, x2, y2]).max() <= 2
    assert looked_at >= 2
    area = (boxes[:, 2:4] - boxes[:, :2]).prod(axis=1)
    assert (boxes[:, :4] >= 0).all() and (boxes[:, :4] <= 64).all() and (area > 0).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(reader="vco"), "did you mean 'voc'"),
        (dict(reader="voc"), "does not exist; give a folder of VOC"),
        (dict(reader="coco", path="/"), "has no annotations/instances_train"),
        (dict(pipeline=("flp",)), "did you mean 'flip'"),
        (dict(lettrebox=dict(fill=3)), "did you mean 'letterbox'"),
        (dict(scales=(8,), progressive=((0, 8),)), "are both set"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(given, message):
    with pytest.raises(InputError, match=message) as error:
        make(**given)
    assert "\n" not in str(error.value)


def test_the_readers_have_one_signature():
    for reader in (coco, voc, digit_scenes):
        assert list(inspect.signature(reader.make).parameters) == ["path"]


def test_a_scene_of_validation_shares_no_ground_with_one_of_train():
    train, validation = (digit_scenes.read(split) for split in ("train", "validation"))
    corners = {train.read(number)[:2, :2].tobytes() for number in range(len(train.names))}
    grounds = {validation.read(number)[:2, :2].tobytes() for number in range(64)}
    assert len(grounds) == 64 and not corners & grounds


def test_two_annotation_files_of_a_split_are_refused(tmp_path):
    (tmp_path / "annotations").mkdir()
    for year in (2014, 2017):
        (tmp_path / "annotations" / f"instances_train{year}.json").write_text("{}")
    with pytest.raises(InputError, match="instances_train2014.json, instances_train2017.json"):
        coco.make(str(tmp_path))
