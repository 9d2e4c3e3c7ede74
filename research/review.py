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
    examples in the split.

    A score is the probability of the given label (`by` "confidence"), or that less the largest of
    another ("margin"). `top` None: all that confident learning counts as wrong, which are few where
    the run has learned from these labels; else the first ones by score. Raises InputError for a run
    that does not classify, and for what evaluate refuses.
    """
    check(top, Count | None, "--top")
    check(by, By, "--by")
    config = workdir.existing_config(folder)
    task, data = config.task.name, config.data.name
    if (task, data) != ("classify", "sentences"):
        raise InputError(
            f"task {task} with data {data} has no labels to review; classify with sentences has"
        )
    run, source = reopen(folder, split, overrides)
    examples = source.gold

    @jax.jit
    def judge(variables: dict, batch: dict) -> jax.Array:
        inputs = (batch.get(name) for name in ("tokens", "segments", "positions", "types"))
        chances = jax.nn.softmax(run.model.apply(variables, *inputs)[0])
        return constrain(chances, None, None)  # each host has all of them

    with jax.set_mesh(run.mesh):
        variables, _, info = restore_weights(folder, run, step, weights)
        refuse_other_numbers(info, source)
        classes, labels = source.info["classes"], examples.labels
        chances = np.zeros((len(labels), len(classes)), np.float32)
        for at, batch in enumerate(build.batches(run, source, one_pass=True)):
            rows = source.rows(at, True)  # what pads a batch stands last
            chances[rows] = np.asarray(judge(variables, batch))[: len(rows)]
    given = np.array([classes.index(label) for label in labels])
    scores, likely, wrong = doubt(chances, given, by)
    order = np.argsort(scores, kind="stable")
    order = order[wrong[order]] if top is None else order[:top]
    lines = []
    for index in order:
        texts = dict(zip(("text", "pair"), examples.texts[index], strict=False))
        # Corrections know a row by the label that it has in the data.
        line = dict(label=examples.given[index], suggested=classes[likely[index]])
        line |= {} if labels[index] == examples.given[index] else dict(corrected=labels[index])
        line |= dict(score=round(float(scores[index]), 6), where=examples.where[index])
        line |= dict(digest=corrections.digest(examples.texts[index]), correction=None)
        lines.append(texts | line)
    return lines, len(given)


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
