"""Every optimizer with a learning rate of its own, equal budgets: which learns Shakespeare best?

    python -m experiments.optimizers --path=input.txt [--steps=500] [--seeds=5] [--only=adam,muon]

nanoGPT's CPU setting (4 layers of 128, context 64, batch 12). For each optimizer a grid of five
learning rates, half a decade apart, on seed 0; then the best of them on five other seeds. Writes
results/runs.jsonl as it goes (a second call goes on), results/table.md and results/curves.png.
"""

import argparse
import json
import math
from pathlib import Path

from experiments.optimizers.chains import DIRECTIONS, sections
from experiments.short_runs import ShortRuns, interval, load, versions

RESULTS = Path(__file__).parent / "results"
GRID = [10 ** (half / 2) for half in (-2, -1, 0, 1, 2)]


def main() -> None:
    """Runs what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="tinyshakespeare's input.txt")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="names, separated by commas")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    names = [name for name in DIRECTIONS if not arguments.only or name in arguments.only.split(",")]
    if others := {run["steps"] for run in read()} - {arguments.steps}:
        parser.error(f"runs.jsonl holds runs of {others} steps; give that number, or move it away")
    for name in names:
        done = {(run["peak"], run["seed"]) for run in read() if run["name"] == name}
        runs = None
        given = [f"config.data.path={arguments.path}", f"config.steps={arguments.steps}"]
        config = load("configs/nlp/gpt.py:shakespeare", given, **sections(name, 50))
        peaks = [float(f"{DIRECTIONS[name][1] * factor:.3g}") for factor in GRID]
        for tuning in (True, False):
            if not tuning:
                peaks = [best_peak(name)]
            for peak in peaks:
                for seed in (0,) if tuning else range(1, arguments.seeds + 1):
                    if (peak, seed) in done:
                        continue
                    runs = runs or ShortRuns(config)
                    found = runs.train(seed, {"optim.lr.peak": peak})
                    loss = found["loss"] if math.isfinite(found["loss"]) else None
                    line = {"name": name, "peak": peak, "seed": seed, "loss": loss,
                            "steps": arguments.steps, "curve": found["curve"]}  # fmt: skip
                    with (RESULTS / "runs.jsonl").open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(name, peak, seed, loss, flush=True)
    write_table(arguments.steps)
    draw()


def read() -> list[dict]:
    """Returns the runs so far."""
    path = RESULTS / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def best_peak(name: str) -> float:
    """Returns the learning rate with the least loss on seed 0."""
    tuned = [run for run in read() if run["name"] == name and run["seed"] == 0]
    return min((run for run in tuned if run["loss"] is not None), key=lambda r: r["loss"])["peak"]


def write_table(steps: int) -> None:
    """Writes results/table.md, the best first."""
    rows = []
    for name in {run["name"]: None for run in read()}:
        peak = best_peak(name)
        runs = [r for r in read() if r["name"] == name and r["peak"] == peak and r["seed"] > 0]
        peaks = sorted({run["peak"] for run in read() if run["name"] == name})
        losses = [run["loss"] for run in runs if run["loss"] is not None]
        if not losses:
            continue
        found = interval(losses)
        low, high = found.get("t95", (math.nan, math.nan))
        edge = " (edge of the grid)" if peak in (peaks[0], peaks[-1]) else ""
        rows.append((found["mean"], f"| {name} | {peak:g}{edge} | {found['mean']:.3f} | "
                     f"{low:.3f} to {high:.3f} | {len(losses)} of {len(runs)} |"))  # fmt: skip
    head = (
        f"Validation loss (nats a character) after {steps} steps, 95 % t intervals over seeds; the "
        "learning rate of the least loss on another seed.\n\n"
        "| optimizer | learning rate | loss | interval | finite runs |\n|---|---|---|---|---|\n"
    )
    (RESULTS / "table.md").write_text(head + "\n".join(row for _, row in sorted(rows)) + "\n")
    (RESULTS / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")


def draw() -> None:
    """Draws the mean training loss of each optimizer at its best rate."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
    axes = figure.subplots()
    lines = []
    for name in {run["name"]: None for run in read()}:
        peak = best_peak(name)
        runs = [r for r in read() if r["name"] == name and r["peak"] == peak and r["seed"] > 0]
        curves = np.array([run["curve"] for run in runs if run["loss"] is not None])
        if len(curves):
            steps, mean = curves[0, :, 0], curves[:, :, 1].mean(0)
            smooth = np.array([mean[max(0, i - 4) : i + 1].mean() for i in range(len(mean))])
            lines.append((smooth[-1], name, steps, smooth))
    for index, (last, name, steps, smooth) in enumerate(sorted(lines, key=lambda line: line[0])):
        color, style = colormaps["tab10"](index % 10), ("-", "--", ":")[index // 10]
        axes.plot(steps, smooth, style, color=color, label=f"{last:.2f}  {name}", linewidth=1.2)
    axes.set(xlabel="step", ylabel="training loss, mean of the seeds", ylim=(1.4, 3.5))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS / "curves.png")


if __name__ == "__main__":
    main()
