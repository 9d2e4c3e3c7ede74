"""What is wrong with pictures and boxes before training is listed, and corrections put it right."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from research import config as config_lib
from research.arguments import InputError
from research.data import clean_images, detection, images
from research.data.augment import resized
from research.data.clean_images import closest, duplicates, look, main, unit
from tests.data.image_files import encoded
from tests.data.test_detection import write_coco

OPTIONS = dict(reader="folder", size=8, held_out=0.0, seed=0, batch=4)


def smooth(seed, side=32):
    """A picture like a photograph: four patches of colour, blurred."""
    random = np.random.default_rng(seed)
    return resized(random.integers(0, 256, (4, 4, 3)).astype(np.uint8), side, side)


def jpeg(pixels, quality=60):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.fixture
def leaky(tmp_path):
    """train/ has a picture of test/, smaller, as a JPEG and of another class, and a broken one."""
    root = tmp_path / "data"
    for number, (split, kind) in enumerate([(s, k) for s in ("train", "test") for k in "ab"] * 5):
        folder = root / split / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.png").write_bytes(encoded(smooth(number)))
    stolen = next(iter(sorted((root / "test" / "a").iterdir())))
    pixels = np.array(Image.open(stolen))
    (root / "train" / "b" / "stolen.jpg").write_bytes(jpeg(resized(pixels, 24, 24)))
    (root / "train" / "a" / "broken.png").write_bytes(b"\x89PNG nothing")
    return root, stolen.relative_to(root).as_posix()


def config(*given):
    return config_lib.load("configs/vision/mnist.py:tiny", list(given))


def test_a_picture_of_test_in_train_is_found_and_named_and_so_is_what_cannot_be_read(leaky):
    root, stolen = leaky
    found = list(look(config(f"config.data.path={root}", "config.data.reader=folder")))
    assert [line["reason"].partition(":")[0] for line in found] == [
        "cannot be read", "near duplicate",
    ]  # fmt: skip
    broken, double = found
    assert broken["picture"] == "train/a/broken.png" and "broken.png" in broken["reason"]
    assert (double["split"], double["picture"]) == ("train", "train/b/stolen.jpg")
    assert double["of"] == f"test {stolen}" and (double["label"], double["of_label"]) == ("b", "a")
    assert double["similarity"] > 0.95 and double["correction"] is None


def test_the_queue_leaves_pictures_out_and_gives_others_their_label(leaky, tmp_path, capsys):
    root, _ = leaky
    queue = tmp_path / "queue.jsonl"
    given = [f"--config.data.path={root}", "--config.data.reader=folder", f"--output={queue}"]
    assert main(["--config=configs/vision/mnist.py:tiny", "--drop", *given]) == 0
    assert "1 x cannot be read, 1 x near duplicate" in capsys.readouterr().out
    lines = [json.loads(line) for line in queue.read_text().splitlines()]
    assert [line["correction"] for line in lines] == [None, False]
    lines[0]["correction"] = "b"  # the broken picture's label
    queue.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plain = images.make(str(root), split="train", **OPTIONS)
    made = images.make(str(root), split="train", **OPTIONS, corrections=str(queue))
    assert (plain.info["images"], made.info["images"], made.info["corrected"]) == (12, 11, 2)
    names = [made.gold.shown(row)["picture"] for row in range(11)]
    assert "train/b/stolen.jpg" not in names
    assert made.gold.labels[names.index("train/a/broken.png")] == 1
    assert made.gold.given(names.index("train/a/broken.png")) == "a"
    assert made.info["fingerprint"] != plain.info["fingerprint"]
    test = images.make(str(root), split="test", **OPTIONS, corrections=str(queue))
    assert test.info["corrected"] == 0 and test.info["images"] == 10


def test_a_record_is_corrected_in_its_own_split_alone(tmp_path):
    """Records of a file have numbers for names, which are the same in each split."""
    options = dict(reader="digits", size=8, seed=0, batch=8)
    train, held = (images.make(split=split, **options) for split in ("train", "validation"))
    number = next(n for n in range(50) if train.gold.labels[n] == held.gold.labels[n])
    name = clean_images.digest(train.gold.shown(number).values())
    line = dict(digest=name, label=train.gold.given(number), correction="3")
    line["correction"] = str((int(line["label"]) + 1) % 10)
    (tmp_path / "queue.jsonl").write_text(json.dumps(line))
    corrected = [
        images.make(split=split, **options, corrections=str(tmp_path / "queue.jsonl"))
        for split in ("train", "validation")
    ]
    assert [one.info["corrected"] for one in corrected] == [1, 0]
    assert np.flatnonzero(corrected[0].gold.labels != train.gold.labels).tolist() == [number]


@pytest.mark.parametrize("held_out", [0.2, 0.1, 1 / 3])
def test_folds_hold_each_picture_out_once(held_out):
    options = dict(reader="digits", size=8, seed=0, batch=8, held_out=held_out)
    count, seen = round(1 / held_out), []
    whole = images.make(split="train", **(options | dict(held_out=0.0))).info["images"]
    for fold in range(count):
        parts = [images.make(split=s, **options, fold=fold) for s in ("train", "validation")]
        names = [[one.gold.shown(n)["picture"] for n in range(one.num_rows)] for one in parts]
        assert not set(names[0]) & set(names[1]) and len(names[0]) + len(names[1]) == whole
        seen += names[1]
    assert len(seen) == len(set(seen)) == whole
    with pytest.raises(InputError, match=f"data.fold={count} is not one of {count} folds, 0 to"):
        images.make(split="train", **options, fold=count)
    for share in (0.0, 0.3):
        with pytest.raises(InputError, match=f"held_out={share} with data.fold=0: expected 1 / n"):
            images.make(split="train", **(options | dict(held_out=share)), fold=0)


def correlation(one, other):
    """The mean over colours of products of what is left of each without its mean."""
    one, other = (x.reshape(-1, 3) - x.reshape(-1, 3).mean(0) for x in (one.astype(float), other))
    both = np.sqrt((one**2).sum() * (other**2).sum())
    return (one * other).sum() / both if both else 0.0


@pytest.mark.parametrize("count", [1, 7, 8, 29])
@pytest.mark.parametrize("others", [None, 11])
def test_the_most_similar_picture_is_that_of_all_pairs(count, others, monkeypatch):
    monkeypatch.setattr(clean_images, "BLOCK", 8)
    random = np.random.default_rng(count)
    pictures, more = (random.integers(0, 256, (n, 4, 4, 3)).astype("u1") for n in (count, 11))
    pictures[3:4] = pictures[5:6] = (200, 30, 30)  # without any contrast, in one tint
    scores, likes = closest(unit(pictures), None if others is None else unit(more))
    for row in range(count):
        held = pictures[:row] if others is None else more
        wanted = [correlation(pictures[row], one) for one in held]
        assert scores[row] == pytest.approx(max(wanted, default=-1), abs=1e-5)
        if wanted:
            assert wanted[likes[row]] == pytest.approx(max(wanted), abs=1e-5)


def blends(*shares):
    """Pictures between two that have nothing in common."""
    one, other = smooth(1).astype(float), smooth(2)
    return unit(np.stack([(1 - x) * one + x * other for x in shares]).astype(np.uint8))


def test_a_picture_that_is_like_one_that_is_listed_is_listed_only_if_it_is_like_the_first():
    chain = blends(*np.linspace(0, 1, 12))
    listed = {row: other for (_, row), (_, other), _ in duplicates([chain], 0.94)}
    assert 0 < len(listed) < 9 and not set(listed) & set(listed.values())
    for row, other in listed.items():
        assert chain[row] @ chain[other] >= 0.94
    kept = [row for row in range(12) if row not in listed]
    assert kept[0] == 0 and len(kept) >= 3


def test_a_picture_of_another_split_is_named_before_a_more_similar_one_of_the_same():
    shares = np.linspace(0, 1, 101)
    near = int((blends(*shares) @ blends(0.0)[0] > 0.94).sum())  # the first that is not
    test, train = blends(0.0), blends(shares[near], shares[near - 1])
    assert train[1] @ train[0] > train[1] @ test[0] > 0.94 > train[0] @ test[0]
    ((row, of, _),) = duplicates([test, train], 0.94)
    assert row == (1, 1) and of == (0, 0)


def test_equal_pictures_are_at_a_similarity_of_one():
    pictures = np.stack([smooth(seed % 50) for seed in range(100)])
    found = duplicates([unit(pictures)], 1.0)
    assert {row for (_, row), _, _ in found} == set(range(50, 100))


BOXES = [(10, 5, 2, 4, 10, 8), (10, 10, 30, 2, 20, 16), (11, 5, 3, 3, 0, 9)]  # fine, outside, thin


def detected(root, *given):
    return config_lib.load(
        "configs/vision/yolo_coco.py:tiny",
        [f"config.data.path={root}", "config.data.reader=coco", *given],
    )


def test_boxes_without_area_and_outside_are_listed_and_each_correction_does_what_it_says(tmp_path):
    write_coco(tmp_path / "data", BOXES, splits=("train",))
    lines = list(look(detected(tmp_path / "data")))
    assert [line["reason"] for line in lines] == ["box outside", "box without area"]
    assert lines[0]["box"] == [30, 2, 50, 18] and lines[0]["picture"] == "0.png"
    queue = tmp_path / "queue.jsonl"

    def corrected(*corrections):
        for line, correction in zip(lines, corrections, strict=True):
            line["correction"] = correction
        queue.write_text("".join(json.dumps(line) + "\n" for line in lines))
        path = str(tmp_path / "data")
        made = detection.make(path, "coco", 64, split="train", seed=0, batch=4,
                              corrections=str(queue))  # fmt: skip
        batch = next(made.batches(one_pass=True))
        return made.info, sorted(batch["labels"][batch["labels"] >= 0].tolist())

    info, labels = corrected(None, None)
    assert (labels, info["no_area"], info["outside"]) == ([0, 1], 1, 1)
    info, labels = corrected("cow", [3, 3, 9, 12])
    assert (labels, info["no_area"], info["outside"]) == ([0, 0, 2], 0, 1)
    info, labels = corrected(False, False)
    assert (labels, info["no_area"], info["outside"]) == ([0], 0, 0)
    for bad in (
        *("cat", True, [1, 2, 3], [1, 2, None, 4], [[1], 2, 3, 4], [1, 2, 1e999, 4]),
        *([10**400, 2, 3, 4], [True, 0, 5, 6], ["1", "2", "3", "4"], [9, 9, 3, 12]),
    ):
        with pytest.raises(InputError, match=r"jsonl:1: .* is no correction; expected \[x1, y1,"):
            corrected(bad, None)
    lines[0]["digest"] = "nothing"
    with pytest.raises(InputError, match="jsonl:1: no example has this text or picture"):
        corrected("cow", None)


def test_a_picture_of_another_size_than_its_annotation_is_listed(tmp_path):
    write_coco(tmp_path / "data", BOXES[:1], splits=("train",))
    (tmp_path / "data/train2017/2.png").write_bytes(encoded(smooth(0, 24)))
    (line,) = look(detected(tmp_path / "data", "config.data.workers=2"))
    assert line["picture"] == "2.png" and "it has 24 x 24 pixels, not 40 x 20" in line["reason"]


def test_a_picture_with_boxes_is_left_out_as_a_whole(tmp_path):
    root = tmp_path / "data"
    write_coco(root, BOXES[:1], sizes=((32, 32),) * 3)
    for split in ("train", "val"):
        for number in range(3):
            pixels = smooth(number + 10 * (split == "val"))
            (root / f"{split}2017" / f"{number}.png").write_bytes(encoded(pixels))
    os.replace(root / "val2017/1.png", root / "train2017/2.png")
    (root / "val2017/1.png").write_bytes((root / "train2017/2.png").read_bytes())
    lines = list(look(detected(root), drop=True))
    assert [(x["split"], x["picture"], x["of"]) for x in lines] == [
        ("train", "2.png", "validation 1.png")
    ]
    (tmp_path / "queue.jsonl").write_text(json.dumps(lines[0]) + "\n")
    options = dict(seed=0, batch=4, corrections=str(tmp_path / "queue.jsonl"))
    made = [
        detection.make(str(root), "coco", 32, split=s, **options) for s in ("train", "validation")
    ]
    assert [one.info["images"] for one in made] == [2, 3]
    lines[0]["correction"] = "bee"
    (tmp_path / "queue.jsonl").write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(InputError, match="jsonl:1 is of a picture: expected false"):
        detection.make(str(root), "coco", 32, split="train", **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--config=configs/nlp/bert.py:tiny"], "data text has no pictures"),
        (["--config=configs/vision/mnist.py:tiny", "--threshold=2"], "--threshold=2"),
        (["--config=configs/vision/mnist.py:tiny", "--thresold=0.9"], "thresold"),
        (["--config=configs/vision/mnist.py"], "data.path=None"),
        (
            ["--config=configs/vision/mnist.py:tiny", "--output=nowhere/q.jsonl"],
            "no folder nowhere",
        ),
        ([], "--config"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(given, message, tmp_path, capsys):
    assert main([f"--output={tmp_path / 'queue.jsonl'}", *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "queue.jsonl").exists()
