"""Detection from end to end: a run, its numbers, its answers, and the boxes that are drawn."""

import numpy as np
import pytest

from research import config as config_lib
from research.answers.detection import COLOURS, draw
from research.arguments import InputError
from research.evaluate import evaluate
from research.generate import generate
from research.metrics import read
from research.train import train


def test_a_box_is_drawn_around_its_pixels_in_the_colour_of_its_class():
    pixels = np.full((60, 80, 3), 17, np.uint8)
    kept = pixels.copy()
    found = draw(pixels, np.array([[20, 10, 70, 50.0]]), [""], [8])
    np.testing.assert_array_equal(pixels, kept)
    frame = np.zeros((60, 80), bool)
    frame[10:50, 20:70] = True
    frame[11:49, 21:69] = False
    assert (found[frame] == COLOURS[1]).all()
    plain = ~frame
    plain[10:14, 20:24] = False  # where the name would be
    assert (found[plain] == 17).all()


def test_a_name_is_written_in_its_box_and_the_best_lies_on_top():
    pixels = np.zeros((60, 80, 3), np.uint8)
    found = draw(pixels, np.array([[5, 5, 75, 55.0]] * 2), ["cat 0.90", "cat 0.90"], [2, 3])
    ground = (found == COLOURS[2]).all(-1)
    assert ground[5, 5:75].all() and ground.sum() > 2 * (70 + 50) + 100
    assert not (found == COLOURS[3]).all(-1).any()  # hidden by the first
    assert found[:, 76:].max() == 0


def test_boxes_that_reach_out_of_the_picture_or_have_no_area_are_drawn_as_far_as_they_go():
    boxes = np.array([[-20, -5, 300, 90], [30, 30, 30, 30], [79, 59, 80, 60.0]])
    found = draw(np.zeros((60, 80, 3), np.uint8), boxes, ["a", "b", "c"], [0, 1, 2])
    assert found.shape == (60, 80, 3) and (found[59, 79] == COLOURS[2]).all()


@pytest.mark.slow
def test_detection_trains_is_judged_and_answers(tmp_path):
    from PIL import Image

    given = ["config.steps=4", "config.log.every=1", "config.eval.every=4", "config.eval.batch=32"]
    given += ["config.checkpoint.every=2", "config.optim.lr.warmup=1"]
    run = config_lib.load("configs/vision/yolo_coco.py:tiny", given)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(run, str(whole))
    train(run, str(cut), stop_after=2)
    train(run, str(cut))
    line = lambda folder: [x for x in read(folder / "metrics.jsonl") if "map" in x][-1]  # noqa: E731
    judged = {n: x for n, x in line(whole).items() if not n.startswith("time/")}
    assert judged == {n: x for n, x in line(cut).items() if not n.startswith("time/")}
    found = evaluate(str(whole))
    assert 0 <= found["map"] <= found["ap50"] <= 1 and np.isfinite(found["loss"])
    many = evaluate(str(whole), overrides=["config.task.head=one_to_many"])
    assert many["loss"] == pytest.approx(found["loss"]) and 0 <= many["map"] <= 1

    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "photo.png")
    (answer,) = generate(str(whole), [str(tmp_path / "photo.png")])
    assert np.array(Image.open(answer["picture"])).shape == (50, 90, 3)
    assert answer["picture"].endswith("whole/pictures/0000-photo.png")
    assert all(one["score"] >= 0.25 for one in answer["boxes"])
    with pytest.raises(InputError, match="is no file; give the path of an image"):
        list(generate(str(whole), ["nowhere.png"]))


def test_an_answer_is_in_pixels_of_its_file_and_the_picture_shows_it(tmp_path, monkeypatch):
    """A model that sees a bright patch where it is says so in the coordinates of the file."""
    from types import SimpleNamespace

    from PIL import Image

    from research.answers import detection

    seen = {}

    def fake(model, variables, inputs, **options):
        seen["image"] = inputs["image"]
        bright = inputs["image"][0].astype(int).sum(-1) > 600
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, 0.9, 1]
        return np.array([[box, [0, 0, 0, 0, 0, -1]]], np.float32)

    monkeypatch.setattr(detection.decode_boxes, "decode", fake)
    monkeypatch.setattr(detection.jax, "jit", lambda function: function)
    image = np.zeros((100, 200, 3), np.uint8)
    image[40:80, 120:180] = 255
    Image.fromarray(image).save(tmp_path / "photo.png")
    config = SimpleNamespace(
        data=SimpleNamespace(size=64),
        task=SimpleNamespace(head="one_to_one", detections=2, max_iou=0.7),
    )
    run = SimpleNamespace(config=config, model=None)
    answer = detection.make(run, None, [str(tmp_path / "photo.png")], None, {})
    info = {"classes": ["a", "b"], "workdir": str(tmp_path)}
    (result,) = answer({}, info, range(1), None)
    assert seen["image"].shape == (1, 64, 64, 3)
    (one,) = result["boxes"]
    assert one["class"] == "b" and one["score"] == pytest.approx(0.9)
    np.testing.assert_allclose(one["box"], [120, 40, 180, 80], atol=200 / 64)
    x1, y1, _, y2 = map(round, one["box"])
    drawn = np.array(Image.open(result["picture"]))
    assert (drawn[y2 - 1, x1:] == COLOURS[1]).all(-1).sum() > 40
    assert (drawn[:, x1] == COLOURS[1]).all(-1).sum() >= y2 - y1


def test_what_the_configs_say_fits_and_is_refused_where_it_does_not():
    for name in ("yolo_coco", "yolo_voc"):
        for variant in "nsml":
            found = config_lib.load(f"configs/vision/{name}.py:{variant}", [])
            assert found.model.scale == variant and found.task.beta == 6
    with pytest.raises(InputError, match="config.task.head"):
        config_lib.load("configs/vision/yolo_coco.py:tiny", ["config.task.head=both"])
