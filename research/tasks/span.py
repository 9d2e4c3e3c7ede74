"""Extractive question answering (arXiv:1810.04805, section 4.2): where an answer starts and ends.

A batch holds tokens, segments, types (b, t), starts, ends and weight (b,), and in evaluation `turn`
(b, batches), as data/questions.py makes them: rows are windows of passages. A model gives logits
(b, t, 2). That of place 0 stands for no answer.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.arguments import Count
from research.tasks import Aux, Task
from research.tasks.answers import Language, score

NEVER = -1e9  # finite: a sum over batches multiplies it by zeros


def make(
    max_answer: Count = 30,
    unanswerable: bool = False,
    threshold: float = 0.0,
    language: Language = "en",
) -> Task:
    """Returns the task. Answers have at most `max_answer` tokens. With `unanswerable`, a question
    is left unanswered when the logits of no answer exceed those of the best one by more than
    `threshold`; `language` is that of answers.py. Reports exact_match and f1, 0 to 1."""

    def loss(
        model: Any, variables: dict, batch: dict, key: jax.Array | None, train: bool
    ) -> tuple[tuple[jax.Array, jax.Array], Aux]:
        inputs = (batch.get(name) for name in ("tokens", "segments", "positions", "types"))
        logits_bt2, state = model.apply(variables, *inputs, key=key, train=train)
        logits_bt2 = jnp.where(batch["segments"][..., None] > 0, logits_bt2, NEVER)
        aim_b2 = jnp.stack([batch["starts"], batch["ends"]], -1)
        log_bt2 = jax.nn.log_softmax(logits_bt2, axis=1)
        nll_b = -jnp.take_along_axis(log_bt2, aim_b2[:, None], axis=1)[:, 0].mean(-1)
        right_b = (logits_bt2.argmax(1) == aim_b2).all(-1)
        weight_b = batch["weight"]
        weight = weight_b.sum()
        metrics = {"accuracy": (right_b @ weight_b, weight)}
        if "turn" in batch:
            # Each row has a place of its own, (its batch, its place in it): so the windows of a
            # split arrive whole, by sums alone, whichever device or host had them.
            found_b4 = search(logits_bt2, batch["types"], max_answer)
            own = jnp.eye(len(weight_b))
            exact = dict(precision=jax.lax.Precision.HIGHEST)
            spans = jnp.einsum("bn,bj,bf->njf", batch["turn"], own, found_b4, **exact)
            metrics["_spans"] = (spans, weight)
        return (nll_b @ weight_b, weight), Aux(state, metrics)

    def report(totals: dict[str, Any], info: dict) -> dict[str, float]:
        """Exact match and F1 over questions, by info["gold"]: `rows` and `answers` of each, and
        `text(row, start, end)`."""
        gold = info.get("gold")
        if gold is None:  # the train split
            return {}
        found = np.asarray(totals["_spans"][0]).reshape(-1, 4)
        scores = []
        for rows, answers in zip(gold.rows, gold.answers, strict=True):
            row, start, end, above = choose(found[rows.start : rows.stop])
            no_answer = unanswerable and above < -threshold
            answer = "" if no_answer else gold.text(rows.start + row, start, end)[0]
            scores.append(score(answer, answers, language))
        exact, f1 = np.mean(scores, axis=0)
        return {"exact_match": float(exact), "f1": float(f1)}

    return Task(loss, report)


def search(logits_bt2: jax.Array, types_bt: jax.Array, max_answer: int) -> jax.Array:
    """Returns (b, 4) for each window: the logits of its best answer, added, of at most `max_answer`
    tokens of the passage; where that starts and ends; the logits of no answer."""
    length = types_bt.shape[1]
    # The passage is what has type 1, but for the `end` behind it.
    inside_bt = (types_bt > 0) & (jnp.pad(types_bt[:, 1:], ((0, 0), (0, 1))) > 0)
    logits_bt2 = jnp.nan_to_num(logits_bt2, nan=NEVER, posinf=-NEVER, neginf=NEVER)
    start_bt, end_bt = jnp.moveaxis(jnp.where(inside_bt[..., None], logits_bt2, NEVER), -1, 0)
    count = min(max_answer, length)
    end_bt = jnp.pad(end_bt, ((0, 0), (0, count - 1)), constant_values=NEVER)
    sums_bta = jnp.stack([start_bt + end_bt[:, i : i + length] for i in range(count)], -1)
    sums = sums_bta.reshape(len(types_bt), -1)
    best_b = sums.argmax(-1)
    first_b, more_b = best_b // count, best_b % count
    none_b = logits_bt2[:, 0].sum(-1)
    return jnp.stack([sums.max(-1), first_b, first_b + more_b, none_b], -1)


def choose(found: np.ndarray) -> tuple[int, int, int, float]:
    """Returns the window (w, 4) with the best answer, its start and end, and how far its logits are
    above those of no answer, which is as sure as the window that is least sure of it."""
    row = int(found[:, 0].argmax())
    best, start, end, _ = found[row]
    return row, int(start), int(end), float(best - found[:, 3].min())
