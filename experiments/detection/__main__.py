"""What do the head without suppression, mosaics and several sizes bring? Scenes of digits.

    python -m experiments.detection [--seeds=5] [--only=plain,mosaic] [--config.steps=N ...]

Small detectors learn 512 scenes of several digits and find those of 128 others: as they are, with
mosaics until a fifth before the end, at one of three sizes, and with both. Each is judged by both
of its heads, the one-to-many one by suppression. All runs have the same number of steps and
images; a seed is the same first weights and order in all. Writes results/runs.jsonl as it goes (a
second call goes on), results/table.md and results/summary.json.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from experiments.short_runs import interval, shown
from experiments.whole_runs import Runs, keep_compilations, trained, write_results
from research import config
from research.evaluate import evaluate

RESULTS = Path(__file__).parent / "results"
COMMAND = "python -m experiments.detection"
SPEC, STEPS = "configs/vision/yolo_coco.py:tiny", 1_500
MOSAIC = ["config.data.mosaic=0.5", f"config.data.mosaic_stop={STEPS * 4 // 5}"]
SCALES = ["config.data.scales=(48, 64, 80)"]
ARMS = {"plain": [], "mosaic": MOSAIC, "scales": SCALES, "both": MOSAIC + SCALES}
GIVEN = [
    f"config.steps={STEPS}", "config.batch=16", "config.optim.lr.warmup=100", "config.ema=0.99",
    f"config.eval.every={STEPS}",
    f"config.checkpoint.every={STEPS}", "config.checkpoint.best=None", "config.log.every=100",
    "config.log.tensorboard=False", "config.optim.lr.final=0.05",
]  # fmt: skip
HEADS = ("one_to_one", "one_to_many")


def main() -> None:
    """Runs what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default=",".join(ARMS), help="e.g. plain,mosaic")
    arguments, overrides = parser.parse_known_args()
    only = arguments.only.split(",")
    if unknown := set(only) - set(ARMS):
        parser.error(f"--only={','.join(unknown)}; there are {', '.join(ARMS)}")
    runs = Runs(RESULTS / "runs.jsonl", names=("arm", "seed", "given"))
    keep_compilations()
    with tempfile.TemporaryDirectory() as place:
        for seed in range(arguments.seeds):
            for arm in only:
                names = dict(arm=arm, seed=seed, given=overrides)
                if runs.find(**names) is None:
                    given = [*GIVEN, *ARMS[arm], f"config.seed={seed}", *overrides]
                    settings, folder = config.load(SPEC, given), f"{place}/{arm}-{seed}"
                    line = trained(settings, folder, "map")
                    for head in HEADS:
                        found = evaluate(folder, overrides=[f"config.task.head={head}"])
                        line |= {f"{head}/{key}": found[key] for key in ("map", "ap50")}
                    runs.add(names | line)
    lines = [line for line in runs.read() if not line["given"]]
    if lines:
        write_table(lines)


def write_table(lines: list[dict[str, Any]]) -> None:
    """Writes table.md and summary.json."""
    tests = {
        (arm, head): {x["seed"]: 100 * x[f"{head}/map"] for x in lines if x["arm"] == arm}
        for arm in ARMS
        for head in HEADS
    }
    tests = {key: found for key, found in tests.items() if found}
    table, summary = [], {"command": COMMAND, "ap": {}, "differences": {}}
    for (arm, head), found in tests.items():
        group = [x for x in lines if x["arm"] == arm]
        one = summary["ap"][f"{arm} {head}"] = interval(list(found.values()))
        half = statistics.mean(100 * x[f"{head}/ap50"] for x in group)
        minutes = statistics.mean(x["core_minutes"] for x in group)
        numbers = f"{shown(one, 2)} | {half:.1f} | {len(found)} | {minutes:.1f}"
        table.append(f"| {arm} | {head} | {numbers} |")
    table += ["", "| paired difference in AP, same seeds | 95 % t interval |", "|---|---|"]
    pairs = [((arm, HEADS[0]), (arm, HEADS[1])) for arm in ARMS]
    pairs += [((arm, HEADS[0]), ("plain", HEADS[0])) for arm in ("mosaic", "scales", "both")]
    for first, second in pairs:
        if first in tests and second in tests:
            both = sorted(tests[first].keys() & tests[second].keys())
            gaps = [tests[first][seed] - tests[second][seed] for seed in both]
            name = f"{' '.join(first)} less {' '.join(second)}"
            one = summary["differences"][name] = interval(gaps)
            table.append(f"| {name} | {shown(one, 2)} |")
    head = (
        "| images | head | AP .5:.95, percent, 95 % t interval | AP50 | seeds | core-minutes a run "
        "|\n|---|---|---|---|---|---|\n"
    )
    write_results(RESULTS, head, table, summary)


if __name__ == "__main__":
    main()
