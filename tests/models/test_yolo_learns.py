"""A proof of learning: a small detector learns a few scenes of coloured rectangles by heart."""

from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from research.models import yolo
from research.tasks import detection
from tests.models.test_yolo import begin

COLOURS = np.array([[220, 40, 40], [40, 200, 60], [60, 80, 230]])


def scenes(rng, count=6, size=64, room=4):
    """Grey noise with one to three rectangles, whose colour is their class; later ones cover."""
    image = rng.integers(90, 130, (count, size, size, 3)).astype(np.uint8)
    boxes = np.zeros((count, room, 4), np.float32)
    labels = np.full((count, room), -1, np.int32)
    for scene in range(count):
        for place in range(1 + scene % 3):
            (w, h), label = rng.integers(12, 30, 2), rng.integers(3)
            x, y = rng.integers(0, size - w), rng.integers(0, size - h)
            image[scene, y : y + h, x : x + w] = COLOURS[label]
            boxes[scene, place], labels[scene, place] = [x, y, x + w, y + h], label
    weight = np.ones(count, np.float32)
    return dict(image=image, boxes=boxes, labels=labels, weight=weight)


def truth(batch):
    """What the report judges by."""
    count, size = batch["image"].shape[:2]
    gold = dict(images=[dict(id=i, width=size, height=size) for i in range(count)])
    names = enumerate(("red", "green", "blue"))
    gold |= dict(annotations=[], categories=[dict(id=i, name=name) for i, name in names])
    for scene, place in np.argwhere(batch["labels"] >= 0):
        x1, y1, x2, y2 = batch["boxes"][scene, place].tolist()
        box = dict(bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1), iscrowd=0)
        label = int(batch["labels"][scene, place])
        gold["annotations"].append(box | dict(image_id=int(scene), category_id=label))
    return SimpleNamespace(coco=gold, restore=lambda row, boxes: boxes)


def learn(steps=300, seed=0):
    """Returns the report of each head after `steps`, and the losses on the way."""
    batch = scenes(np.random.default_rng(seed))
    model = yolo.make(
        labels=3, channels=3, strides=(8, 16), width=0.25, depth=0.33, bins=8, momentum=0.9
    )
    task = detection.make(labels=3)
    variables = begin(model, seed)
    tx = optax.adam(3e-3)

    @jax.jit
    def step(variables, opt_state):
        def loss(params):
            (total, weight), aux = task.loss(
                model, variables | {"params": params}, batch, None, True
            )
            return total / weight, aux.model_state

        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, "model_state": state}, opt_state, value

    opt_state, losses = tx.init(variables["params"]), []
    for _ in range(steps):
        variables, opt_state, value = step(variables, opt_state)
        losses.append(float(value))
    reports = {}
    judged = batch | dict(turn=np.ones((len(batch["weight"]), 1), np.float32))
    for head in detection.HEADS:
        task = detection.make(labels=3, head=head)
        evaluate = jax.jit(lambda v, t=task: t.loss(model, v, judged, None, False)[1].metrics)
        reports[head] = task.report(evaluate(variables), {"gold": truth(batch)})
    return reports, losses


@pytest.mark.slow
def test_both_heads_learn_scenes_by_heart():
    reports, _ = learn()
    for head, numbers in reports.items():
        assert numbers["ap50"] > 0.9, (head, numbers)
