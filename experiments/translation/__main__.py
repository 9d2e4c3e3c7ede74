"""How well does a small T5 translate Multi30k, and does back-translation help when pairs are few?

    python -m experiments.translation --path=MULTI30K --workdir=runs/translation

MULTI30K holds train, val, test_2016_flickr and test_2017_flickr in .en and .de (each may be a .gz).
For each seed three models are trained for the same number of updates: on `all` 29,000 pairs, on
the first `half` of them, and on that half with `back`-translations of the German side of the other
one. The command goes on where it was cut. results/results.jsonl has a line for each model and test
set, results/summary.json means and 95 % t intervals, of the paired differences too.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ml_collections

from experiments.short_runs import interval, versions
from research import config as config_lib
from research.data import table
from research.data.source import cached
from research.evaluate import evaluate
from research.recipes.back_translation import back_translate
from research.tasks.bleu import scorers
from research.train import train

ARMS = ("half", "back", "all")
TESTS = ("test_2016_flickr", "test_2017_flickr")
# Smaller than configs/nlp/translation.py:small: all runs are to take an hour or two of two cores.
SIZES = dict(num_layers=2, num_heads=4, head_dim=32, width=128, mlp_width=512, unroll=2)
GIVEN = [f"config.model.{name}={value}" for name, value in SIZES.items()]
GIVEN += ["config.model.dropout=0.1", "config.data.vocab_size=4096", "config.data.context=32"]
GIVEN += ["config.data.buckets=(16,24,32)", "config.data.cut=True", "config.log.tensorboard=False"]
GIVEN += ["config.batch=32"]  # at this size more updates teach more than larger batches
SAMPLING = dict(temperature=1.0, top_k=10)  # of a weak model: its unlikely words are noise
SEARCH = ["config.eval.beams=4", "config.eval.length_penalty=0.6"]
RESULTS = Path(__file__).parent / "results"


def halves(path: str, folder: Path) -> Path:
    """Returns a folder with half of the pairs, all of `val`, and the other half's German side."""
    read = lambda split: table.read(path, split, None, ("en", "de")).rows  # noqa: E731

    def write(new: Path) -> None:
        rows = read("train")
        middle = len(rows) // 2
        for split, kept in (("train", rows[:middle]), ("validation", read("validation"))):
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
            (new / f"{split}.jsonl").write_text("".join(lines), "utf-8")
        alone = [row["de"] + "\n" for row in rows[middle:]]
        (new / "other_half.de").write_text("".join(alone), "utf-8")

    return cached(folder, write, "free some space")


def configure(path: str, seed: int, steps: int, *more: str) -> ml_collections.FrozenConfigDict:
    """Returns the config of a run on the pairs at `path`."""
    given = [f"config.data.path={path}", f"config.seed={seed}", f"config.steps={steps}"]
    given += [f"config.{part}.every={min(500, steps)}" for part in ("eval", "checkpoint")]
    given += [f"config.optim.lr.warmup={min(200, max(steps // 5, 1))}"]
    return config_lib.load("configs/nlp/translation.py:small", [*GIVEN, *given, *more])


def run(arm: str, seed: int, path: str, root: Path, steps: int) -> Path:
    """Trains, or goes on with, a model, and returns its workdir."""
    half, own = halves(path, root / "data"), root / f"seed{seed}"
    back = own / "back"
    if arm == "back":
        config = configure(str(half), seed, steps)
        mono, folder = str(half / "other_half.de"), back / "forward"
        result = back_translate(config, str(back), mono, seed=seed, **SAMPLING)
    else:
        data = str(half) if arm == "half" else path
        # Both that learn from half of the pairs have the tokenizer of these; `half` comes later.
        shared = f"config.data.tokenizer_path={back / 'reverse' / 'tokenizer.json'}"
        config = configure(data, seed, steps, *([shared] if arm == "half" else []))
        folder = own / arm
        result = train(config, str(folder))
    if result.preempted:
        sys.exit(75)
    return folder


def summarise(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns means and intervals over seeds, and over the differences between arms of a seed."""
    summary: dict[str, Any] = {}
    for test in TESTS:
        for metric in ("bleu", "chrf", "exact_match"):
            found = {(x["arm"], x["seed"]): x[metric] for x in lines if x["test"] == test}
            seeds = sorted({seed for _, seed in found})
            part = {arm: interval([found[arm, seed] for seed in seeds]) for arm in ARMS}
            for one, other in (("back", "half"), ("all", "half")):
                gaps = [found[one, seed] - found[other, seed] for seed in seeds]
                part[f"{one} - {other}"] = interval(gaps)
            summary.setdefault(test, {})[metric] = part
    names = {name: str(metric.get_signature()) for name, metric in scorers(["a"]).items()}
    return summary | {"signatures": names, "steps": lines[0]["steps"]} | versions()


def main() -> None:
    """Trains and evaluates what is missing, then writes the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="the folder of Multi30k")
    parser.add_argument("--workdir", required=True, help="a folder for the runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1_200)
    arguments = parser.parse_args()
    root, steps = Path(arguments.workdir), arguments.steps
    arguments.results.mkdir(parents=True, exist_ok=True)
    file = arguments.results / "results.jsonl"
    text = file.read_text() if file.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    lines = [line for line in lines if line["steps"] == steps]
    for seed in range(arguments.seeds):
        for arm in ("back", "half", "all"):
            done = {x["test"] for x in lines if (x["arm"], x["seed"]) == (arm, seed)}
            if done.issuperset(TESTS):
                continue
            began = time.process_time()
            folder = run(arm, seed, arguments.path, root, steps)
            seconds = round(time.process_time() - began)
            for test in (test for test in TESTS if test not in done):
                given = [f"config.data.path={arguments.path}", *SEARCH]
                found = evaluate(str(folder), split=test, overrides=given)
                line = dict(arm=arm, seed=seed, test=test, steps=steps, cpu_seconds=seconds)
                lines.append(line | {k: round(v, 4) for k, v in found.items() if k != "step"})
                print(lines[-1], flush=True)
                _write(file, "".join(json.dumps(line) + "\n" for line in lines))
    lines = [line for line in lines if line["seed"] < arguments.seeds]
    _write(arguments.results / "summary.json", json.dumps(summarise(lines), indent=1) + "\n")


def _write(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    os.replace(new, file)


if __name__ == "__main__":
    main()
