"""nanoGPT's CPU setting on tinyshakespeare: does the same small GPT learn as well here?

    python -m experiments.nano_shakespeare --path=input.txt [--seeds=3]

Trains configs/nlp/gpt.py:shakespeare for each seed and writes results/results.json: the loss over
the whole last 10 % of the text, for every seed, with mean and 95 % t interval.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from scipy import stats

from research import config, metrics
from research.evaluate import evaluate
from research.train import train
from research.workdir import environment


def main() -> None:
    """Trains every seed, going on where an interrupted call stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="tinyshakespeare's input.txt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workdir", default="runs/nano_shakespeare")
    arguments, overrides = parser.parse_known_args()
    runs = []
    for seed in range(arguments.seeds):
        given = [f"config.data.path={arguments.path}", f"config.seed={seed}", *overrides]
        settings = config.load("configs/nlp/gpt.py:shakespeare", given)
        folder = f"{arguments.workdir}/{seed}"
        start = time.monotonic()
        train(settings, folder)
        seconds = time.monotonic() - start
        result = evaluate(folder)
        lines = metrics.read(f"{folder}/metrics.jsonl")
        curve = [(line["step"], line["loss"]) for line in lines if line["split"] == "validation"]
        runs.append({"seed": seed, **result, "validation": curve, "wall_s": round(seconds, 1)})
    losses = [run["loss"] for run in runs]
    summary = {"mean": statistics.mean(losses)}
    if len(losses) > 1:
        quantile = stats.t.ppf(0.975, len(losses) - 1)
        half = quantile * statistics.stdev(losses) / len(losses) ** 0.5
        summary["t95"] = [summary["mean"] - half, summary["mean"] + half]
    found = environment()
    kept = {key: found[key] for key in ("python", "platform", "packages", "devices")}
    recipe = settings.to_dict()
    recipe["data"]["path"] = "input.txt"  # the text, wherever it lies
    text = json.dumps({"loss": summary, "runs": runs, **kept, "config": recipe}, indent=2)
    (Path(__file__).parent / "results" / "results.json").write_text(text + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
