"""The pictures of a run: schedule.png, loss.png, and what its task and data draw in pictures/.

The numbers are saved elsewhere, so a picture that cannot be drawn is only said.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath

from research import build, hosts, metrics
from research.data import contact_sheet
from research.tasks import Task


def at_start(folder: epath.PathLike, run: build.Run) -> None:
    """Draws the learning rate to come, and some examples as they are trained on."""
    path = epath.Path(folder)
    _save(path / "schedule.png", lambda: draw_schedule(build.learning_rates(run)))
    if "image" in run.source.spec:
        sheet = partial(contact_sheet.of, run.source, run.config.seed)
        _save(path / "pictures" / "inputs.png", sheet)


def of_evaluation(folder: epath.PathLike, task: Task, totals: dict[str, Any], info: dict) -> None:
    """Draws what the task makes of the summed metrics of a split: a confusion matrix."""
    for name, draw in task.figures.items():
        png = epath.Path(folder) / "pictures" / f"{name}.png"
        _save(png, lambda draw=draw: draw(totals, info))


def at_end(folder: epath.PathLike) -> None:
    """Draws the loss so far."""
    path = epath.Path(folder)
    if (path / "metrics.jsonl").exists():
        _save(path / "loss.png", lambda: draw_loss(metrics.read(path / "metrics.jsonl")))


def draw_loss(lines: list[dict]) -> Any:
    """Returns a figure of training and evaluation loss over steps, from lines of metrics.jsonl."""
    from matplotlib.figure import Figure

    curves: dict[str, list] = {}
    for line in (line for line in lines if line.get("loss") is not None):
        curves.setdefault(line["split"], []).append((line["step"], line["loss"]))
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for split, points in curves.items():
        steps, loss = np.array(points).T
        name, marker = split, "o"
        if split == "train":
            axes.plot(steps, loss, color="tab:blue", alpha=0.3, linewidth=0.8)
            window = np.ones(min(len(loss), max(3, len(loss) // 30)))
            counts = np.convolve(np.ones_like(loss), window, "same")
            loss, name, marker = np.convolve(loss, window, "same") / counts, "train, smoothed", ""
        label = f"{name}: {loss[-1]:.3f}"
        axes.plot(steps, loss, marker=marker, markersize=3, linewidth=1.3, label=label)
    axes.legend(frameon=False)
    return _over_steps(figure, axes, "loss")


def draw_schedule(rates: np.ndarray | None) -> Any:
    """Returns a figure of the learning rate of every update; None where there is none."""
    if rates is None:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(1, len(rates) + 1), rates, color="tab:blue", linewidth=1.3)
    return _over_steps(figure, axes, "learning rate")


def _over_steps(figure: Any, axes: Any, label: str) -> Any:
    axes.set(xlabel="step", ylabel=label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _save(png: epath.Path, draw: Callable[[], Any]) -> None:
    """Writes what `draw` returns, a figure of matplotlib or an image, on the first process."""
    if jax.process_index() != 0:
        return
    try:
        drawn = draw()
        if drawn is not None:
            png.parent.mkdir(parents=True, exist_ok=True)
            with png.open("wb") as file:
                getattr(drawn, "savefig", getattr(drawn, "save", None))(file, format="png")
    except ImportError as error:
        hosts.say(f"no {png.name}: {error.name} is missing; pip install 'anneal[nlp]'")
    except Exception as error:
        hosts.warn(f"no {png.name}: {type(error).__name__}: {error}")
