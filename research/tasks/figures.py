"""Pictures of a whole split, from the sums that a task reports by."""

from collections.abc import Sequence
from typing import Any

import numpy as np

MOST = 40  # classes whose names are written, and up to 20 their counts


def confusion(totals: dict[str, Any], info: dict) -> Any:
    """Returns a figure of the confusion matrix: how often what is in truth a class (rows) is called
    another (columns). The colour is the share of a row, the number the count."""
    from matplotlib.figure import Figure

    counts = np.asarray(totals["_confusion"][0])
    names = info.get("classes") or list(range(len(counts)))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 3.5 + 0.3 * min(len(counts), MOST)
    figure = Figure(figsize=(side, side), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="named", ylabel="in truth")
    if len(counts) <= MOST:
        axes.set_xticks(range(len(names)), _short(names), rotation=90)
        axes.set_yticks(range(len(names)), _short(names))
    for place, count in np.ndenumerate(counts) if len(counts) <= MOST // 2 else ():
        if count:
            dark = "white" if shares[place] > 0.6 else "black"
            text = f"{count:,.0f}"
            axes.text(*place[::-1], text, ha="center", va="center", color=dark, fontsize=7)
    return figure


def precision_recall(precision: np.ndarray, classes: Sequence[str]) -> Any:
    """Returns a figure of precision over recall, from cocoeval's `precision` (10 IoUs, 101 recalls,
    classes; -1 where nothing is defined): of each class at an IoU of 0.5, and of their mean at 0.5,
    0.75 and 0.9."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), dpi=120, layout="constrained")
    axes, recalls = figure.subplots(), np.linspace(0, 1, 101)
    there = np.flatnonzero((precision > -1).all((0, 1)))
    for number in there if len(there) <= MOST // 2 else ():
        label = _short([classes[number]])[0] if len(there) <= MOST // 4 else None
        axes.plot(recalls, precision[0, :, number], linewidth=0.8, alpha=0.7, label=label)
    for at, style in ((0, "-"), (5, "--"), (8, ":")):
        if len(there):
            mean = precision[at][:, there].mean(1)
            name = f"all at IoU {0.5 + 0.05 * at:.2f}: AP {mean.mean():.3f}"
            axes.plot(recalls, mean, style, color="black", linewidth=1.6, label=name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    if len(there):
        figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    axes.grid(alpha=0.25)
    return figure


def _short(names: Sequence[Any]) -> list[str]:
    return [name if len(name) <= 20 else f"{name[:19]}…" for name in map(str, names)]
