"""Labels that a run doubts, for a person to review: confident learning (arXiv:1911.00068).

    anneal review --workdir=runs/s --output=queue.jsonl         # then fill in "correction", and
    anneal train --config=... --workdir=runs/better --config.data.corrections=queue.jsonl

A model that has learned its examples by heart doubts none of their labels. Judge what it has not
seen: train on a part of the data and review another, by --split, or --config.data.path=OTHER. Of
the train split itself, prefer a run that was short, or an earlier step.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from research import build, workdir
from research.arguments import Count, InputError, check
from research.data import corrections
from research.evaluate import refuse_other_numbers, reopen, restore_weights
from research.sharding import constrain

By = Literal["margin", "confidence"]
REVIEWED = (("classify", "sentences"), ("image_classification", "images"))  # task and data
INPUTS = ("image", "tokens", "segments", "positions", "types")  # of models, in their order


def review(
    folder: str,
    split: str = "train",
    top: Count | None = None,
    by: By = "margin",
    step: str = "latest",
    weights: str | None = None,
    overrides: Sequence[str] = (),
) -> tuple[list[dict[str, Any]], int]:
    """Returns lines for data/corrections.py, the most doubtful label first, and the number of
    examples in the split that could be read.

    A score is the probability of the given label (`by` "confidence"), or that less the largest of
    another ("margin"). `top` None: all that confident learning counts as wrong, which are few where
    the run has learned from these labels; else the first ones by score. Raises InputError for a run
    that does not classify, and for what evaluate refuses.
    """
    check(top, Count | None, "--top")
    check(by, By, "--by")
    config = workdir.existing_config(folder)
    task, data = config.task.name, config.data.name
    if (task, data) not in REVIEWED:
        known = " and ".join(" with ".join(pair) for pair in REVIEWED)
        raise InputError(f"task {task} with data {data} has no labels to review; {known} have some")
    run, source = reopen(folder, split, overrides)
    examples = source.gold

    @jax.jit
    def judge(variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        names = INPUTS[:1] if "image" in batch else INPUTS[1:]
        inputs = (batch.get(name) for name in names)
        chances = jax.nn.softmax(run.model.apply(variables, *inputs)[0])
        # Each host has all of them. A picture that cannot be read has weight 0.
        return constrain(chances, None, None), constrain(batch["weight"], None)

    with jax.set_mesh(run.mesh):
        variables, _, info = restore_weights(folder, run, step, weights)
        refuse_other_numbers(info, source)
        classes, labels = source.info["classes"], np.asarray(examples.labels)
        chances = np.zeros((len(labels), len(classes)), np.float32)
        judged = np.zeros(len(labels), bool)
        for at, batch in enumerate(build.batches(run, source, one_pass=True)):
            rows = source.rows(at, True)  # what pads a batch stands last
            found, counts = jax.device_get(judge(variables, batch))
            chances[rows], judged[rows] = found[: len(rows)], counts[: len(rows)] > 0
    judged = np.flatnonzero(judged)
    scores, likely, wrong = doubt(chances[judged], labels[judged], by)
    order = np.argsort(scores, kind="stable")
    order = order[wrong[order]] if top is None else order[:top]
    lines = []
    for at in order:
        index = int(judged[at])
        shown, given = examples.shown(index), examples.given(index)
        # Corrections know a row by the label that it has in the data.
        line = shown | dict(label=given, suggested=classes[likely[at]])
        line |= {} if classes[labels[index]] == given else dict(corrected=classes[labels[index]])
        line |= dict(score=round(float(scores[at]), 6), where=examples.where(index))
        lines.append(line | dict(digest=corrections.digest(shown.values()), correction=None))
    return lines, len(judged)


def doubt(
    chances: np.ndarray, given: np.ndarray, by: By = "margin"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns for each example the score of its given label, low where that is in doubt; the likely
    label; and whether confident learning counts the given one as wrong. `chances` are (n, classes).

    A label is likely whose probability is at least its threshold, the mean of that probability over
    the examples which have the label (section 3.1 there), the largest of several; so a class that
    the model is never sure of is not taken for wrong. Where there is none, the most probable one
    stands in, and nothing is counted."""
    rows, classes = np.arange(len(given)), chances.shape[1]
    own = chances[rows, given]
    sums = np.bincount(given, own, minlength=classes)
    counts = np.bincount(given, minlength=classes)
    threshold = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    confident = chances >= threshold
    likely = np.where(confident, chances, -1.0).argmax(1)
    known = confident.any(1)
    wrong = known & (likely != given)
    others = chances.copy()
    others[rows, given] = -1.0
    scores = own - others.max(1) if by == "margin" else own
    return scores, np.where(known, likely, chances.argmax(1)), wrong
