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


def _short(names: Sequence[Any]) -> list[str]:
    return [name if len(name) <= 20 else f"{name[:19]}…" for name in map(str, names)]
