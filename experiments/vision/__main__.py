"""What do the configs of vision reach? MNIST, CIFAR-10 shortened, blood cells, 32 images by heart.

    python -m experiments.vision --path=DATA [--only=mnist,bccd] [--seeds=1] [--config.steps=N ...]

DATA holds mnist/, cifar10_jpeg/cifar10_jpeg.tar.xz, bccd/ and coco128/. A run is judged as its
config says: where there is a validation split, by the checkpoint that is best there, on test, once;
where there is none, by its last weights. Writes results/runs.jsonl as it goes (a second call goes
on), results/table.md and results/summary.json; workdirs stay in --workdir, pictures among them.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

from experiments.short_runs import interval, shown
from experiments.vision.by_heart import write_coco
from experiments.whole_runs import Runs, keep_compilations, trained, write_results
from research import config
from research.evaluate import evaluate

RESULTS = Path(__file__).parent / "results"
COMMAND = "python -m experiments.vision --path=DATA"
# Of each: the config, its path below DATA, the metric, the split that counts, what is not as there.
RUNS: dict[str, tuple[str, str, str, str, list[str]]] = {
    "mnist": ("mnist", "mnist", "accuracy", "test", []),
    # A tenth of the paper's 64,000 steps, everything in proportion: what fits into an hour.
    "cifar": (
        "resnet_cifar:resnet20", "cifar10_jpeg/cifar10_jpeg.tar.xz", "accuracy", "test", [
            "config.data.reader=folder", "config.steps=6400", "config.eval.every=800",
            "config.optim.lr.boundaries=(3200, 4800)", "config.checkpoint.every=800",
        ],
    ),
    # Half an hour of two cores, as is what follows.
    "bccd": (
        "yolo_voc:n", "bccd", "map", "test", [
            "config.data.size=256", "config.data.max_boxes=60", "config.data.workers=0",
            "config.data.crop.min_area=0.5", "config.batch=8", "config.steps=2000",
            "config.data.mosaic_stop=1600", "config.optim.lr.warmup=100", "config.ema=0.99",
            "config.precision=fp32", "config.eval.every=250", "config.eval.batch=12",
            "config.checkpoint.every=250", "config.checkpoint.best=map",
            "config.checkpoint.best_mode=max", "config.log.every=20",
        ],
    ),
    # Nothing is changed at random, and nothing holds the weights back: they are to know 32 images.
    "coco128": (
        "yolo_coco:n", "coco128", "ap50", "validation", [
            "config.data.size=320", "config.data.workers=0", "config.data.mosaic=0.0",
            "config.data.pipeline=('letterbox',)", "config.batch=8", "config.steps=400",
            "config.data.mosaic_stop=None", "config.optim.lr.warmup=50", "config.ema=None",
            "config.optim.decay.rate=0.0", "config.precision=fp32", "config.eval.every=100",
            "config.eval.batch=8", "config.checkpoint.every=100", "config.log.every=20",
        ],
    ),
}  # fmt: skip
METRICS = ("accuracy", "top5", "ece", "map", "ap50", "ap75")


def main() -> None:
    """Runs what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="a folder with mnist/, bccd/, ...")
    parser.add_argument("--workdir", default="runs/vision", help="a folder for the runs")
    parser.add_argument("--only", default=",".join(RUNS), help="e.g. mnist,bccd")
    parser.add_argument("--seeds", type=int, default=1)
    arguments, overrides = parser.parse_known_args()
    only = arguments.only.split(",")
    if unknown := set(only) - set(RUNS):
        parser.error(f"--only={','.join(unknown)}; there are {', '.join(RUNS)}")
    runs = Runs(RESULTS / "runs.jsonl", names=("run", "seed", "given"))
    keep_compilations()
    for name in only:
        for seed in range(arguments.seeds):
            names = dict(run=name, seed=seed, given=overrides)
            if runs.find(**names) is None:
                more = [f"-{one.lstrip('-')}".replace("/", "_") for one in overrides]
                folder = f"{arguments.workdir}/{name}-{seed}{''.join(more)}"
                runs.add(names | one(name, seed, arguments.path, folder, overrides))
    if runs.read():
        write_table(runs.read())


def one(name: str, seed: int, path: str, folder: str, overrides: list[str]) -> dict[str, Any]:
    """Trains and judges one model."""
    file, below, metric, split, given = RUNS[name]
    where = f"{path}/{below}"
    if name == "coco128":
        where = write_coco(where, f"{folder}-data", images=32)
    file, _, variant = file.partition(":")
    spec = f"configs/vision/{file}.py" + (f":{variant}" if variant else "")
    given = [f"config.data.path={where}", f"config.seed={seed}", *given, *overrides]
    settings = config.load(spec, given)
    whole = not Path(folder).exists()  # else the times are of its last part
    began = time.perf_counter()
    line = trained(settings, folder, metric)
    minutes = (time.perf_counter() - began) / 60
    step = "best" if settings.checkpoint.best else "latest"
    found = evaluate(folder, step=step, split=split)
    line |= {f"test_{key}": found[key] for key in METRICS if key in found}
    cores = len(os.sched_getaffinity(0))
    if not whole:
        minutes = line["core_minutes"] = float("nan")
    return line | dict(steps=settings.steps, batch=settings.batch, cores=cores,
                       minutes=round(minutes, 2), split=split)  # fmt: skip


def write_table(lines: list[dict[str, Any]]) -> None:
    """Writes table.md and summary.json."""
    table, summary = [], {"command": COMMAND, "found": []}
    groups = {(x["run"], tuple(x["given"])): [] for x in lines}
    for line in lines:
        groups[line["run"], tuple(line["given"])].append(line)
    for (name, given), group in groups.items():
        first, numbers = group[0], {}
        for key in METRICS:
            if f"test_{key}" in first:
                numbers[key] = interval([100 * x[f"test_{key}"] for x in group])
        texts = ", ".join(f"{key} {shown(one, 2)}" for key, one in numbers.items())
        minutes = statistics.mean(x["core_minutes"] for x in group)
        wall = statistics.mean(x["minutes"] for x in group)
        table.append(
            f"| {' '.join([name, *given])} | {texts} | {first['split']} | {len(group)} | "
            f"{first['steps']:,} of {first['batch']} | {wall:.1f} on {first['cores']} | "
            f"{minutes:.1f} |"
        )
        summary["found"].append(dict(run=name, given=given, seeds=len(group), **numbers))
    head = (
        "| run | percent | split | seeds | steps | minutes, with evaluations, on cores | "
        "core-minutes |\n|---|---|---|---|---|---|---|\n"
    )
    write_results(RESULTS, head, table, summary)


if __name__ == "__main__":
    main()
