"""Pictures under a wrong label: a run that has not learned them lists them."""

import json

import numpy as np
from PIL import Image

from research import config as config_lib
from research.data import images
from research.data.image_readers import digits
from research.review import review
from research.train import train

WRONG = 20


def test_runs_that_hold_a_fold_out_list_the_wrong_labels_in_it(tmp_path):
    held, random = digits.read("train"), np.random.default_rng(0)
    labels = held.labels.copy()
    wrong = random.choice(600, WRONG, replace=False)
    labels[wrong] = (labels[wrong] + random.integers(1, 10, WRONG)) % 10
    for number in range(600):
        file = tmp_path / "data" / str(labels[number]) / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(held.read(number)[..., 0]).save(file)
    file.with_name("torn.png").write_bytes(file.read_bytes()[:50])
    given = [
        f"config.data.path={tmp_path / 'data'}", "config.data.reader=folder",
        "config.data.held_out=0.5", "config.data.fold=1", "config.steps=150", "config.batch=32",
        "config.eval.every=150", "config.checkpoint.every=150", "config.data.skip_budget=9",
        "config.optim.lr.peak=0.5", "config.model.blocks=(1, 1)", "config.model.widths=(16, 32)",
        "config.log.tensorboard=False",
    ]  # fmt: skip
    train(config_lib.load("configs/vision/mnist.py:tiny", given), str(tmp_path / "run"))
    lines, count = review(str(tmp_path / "run"), split="validation", top=WRONG)
    fresh = images.make(
        str(tmp_path / "data"), "folder", 8, 1, held_out=0.5, fold=1, split="validation",
        seed=0, batch=8,
    )  # fmt: skip
    named = {fresh.gold.shown(row)["picture"] for row in range(fresh.num_rows)}
    inside = {int(one[2:5]) for one in named if "torn" not in one} & set(wrong.tolist())
    assert count == len([one for one in named if "torn" not in one])  # nobody can judge a torn one
    found = {int(line["picture"][2:5]): line for line in lines}
    hits = inside & set(found)
    assert len(hits) >= 0.7 * len(inside) > 3
    for number in hits:
        assert found[number]["label"] == str(labels[number])
        found[number]["correction"] = str(held.labels[number])
    queue = tmp_path / "queue.jsonl"
    queue.write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = images.make(
        str(tmp_path / "data"), "folder", 8, 1, held_out=0.5, fold=1, split="train",
        corrections=str(queue), seed=0, batch=8,
    )  # fmt: skip
    assert other.info["corrected"] == 0  # they are of the other half
    whole = images.make(
        str(tmp_path / "data"), "folder", 8, 1, held_out=0.0, split="train",
        corrections=str(queue), seed=0, batch=8,
    )  # fmt: skip
    assert whole.info["corrected"] == len(hits)
