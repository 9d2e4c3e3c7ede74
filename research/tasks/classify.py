"""Classification of a text, or of a pair: each batch holds `labels` and `weight` (b,).

Reports accuracy, the macro average of F1 over classes, and Matthews' correlation
(doi:10.1016/j.compbiolchem.2004.09.006 for more than two classes).
"""

from typing import Any

import jax
import numpy as np

from research.arguments import Count, Fraction, InputError
from research.tasks import Aux, Task, figures, name_class


def make(labels: Count | None = None, label_smoothing: Fraction = 0.0) -> Task:
    """Returns the task; `labels`, the number of classes, None: what the data says."""
    if labels is None:
        raise InputError("classify needs labels, or data that decides them")

    def loss(
        model: Any, variables: dict, batch: dict, key: jax.Array | None, train: bool
    ) -> tuple[tuple[jax.Array, jax.Array], Aux]:
        inputs = (batch.get(name) for name in ("tokens", "segments", "positions", "types"))
        logits_bc, state = model.apply(variables, *inputs, key=key, train=train)
        total, metrics = name_class(logits_bc, batch, labels, label_smoothing, train)
        return total, Aux(state, metrics)

    return Task(loss, report, figures={"confusion": figures.confusion})


def report(totals: dict[str, Any], info: dict) -> dict[str, float]:
    """Returns macro F1 and Matthews' correlation of a whole split."""
    confusion = np.asarray(totals["_confusion"][0])
    hits, truth, guess = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    f1 = 2 * hits / np.maximum(truth + guess, 1e-9)
    total = confusion.sum()
    covariance = lambda a, b: total**2 - (a * b).sum()  # noqa: E731
    spread = np.sqrt(covariance(truth, truth) * covariance(guess, guess))
    together = hits.sum() * total - (truth * guess).sum()
    matthews = together / spread if spread > 0 else 0.0
    return {"f1": float(f1[truth > 0].mean()), "matthews": float(matthews)}
