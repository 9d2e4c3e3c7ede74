"""Whole runs as `anneal train` makes them, and a file that keeps a line of JSON of each.

runs = Runs(RESULTS / "runs.jsonl", names=("data", "model", "seed"))
if runs.find(data="sst2", model="cnn", seed=0) is None:       # a call that was cut goes on
    runs.add(dict(data="sst2", model="cnn", seed=0) | trained(config, folder, "accuracy"))
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections

from experiments.short_runs import versions
from research import compilation_cache, metrics
from research.train import train


class Runs:
    """Lines of a file, each with its own values of `names`."""

    def __init__(self, file: Path, names: tuple[str, ...]) -> None:
        self.file, self.names = file, names
        file.parent.mkdir(exist_ok=True)

    def read(self) -> list[dict[str, Any]]:
        """Returns all lines."""
        if not self.file.exists():
            return []
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    def find(self, **names: Any) -> dict[str, Any] | None:
        """Returns the line of these names, None if it is not there yet."""
        wanted = [names[name] for name in self.names]
        same = (line for line in self.read() if [line[name] for name in self.names] == wanted)
        return next(same, None)

    def add(self, line: dict[str, Any]) -> None:
        """Writes a line, whole or not at all: other processes may write theirs."""
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(*(line[name] for name in self.names), json.dumps(line), flush=True)


def write_results(folder: Path, head: str, rows: list[str], summary: dict[str, Any]) -> None:
    """Writes table.md, and summary.json with what the numbers depend on."""
    (folder / "table.md").write_text(head + "\n".join(rows) + "\n")
    (folder / "summary.json").write_text(json.dumps(summary | versions(), indent=2) + "\n")


def trained(
    config: ml_collections.FrozenConfigDict, folder: str, metric: str | None
) -> dict[str, Any]:
    """Trains in `folder`, and returns the most of `metric` on the split that the run evaluates, the
    step it was at, and minutes of a core; what the run says is in FOLDER.log. With metric None:
    the last loss there."""
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    with open(f"{folder}.log", "a") as said, contextlib.redirect_stdout(said):
        result = train(config, folder)
    if result.preempted:
        raise SystemExit(75)  # nothing is written of a run that was stopped
    minutes = (time.process_time() - began) / 60
    lines = [x for x in metrics.read(f"{folder}/metrics.jsonl") if x["split"] != "train"]
    best = max(lines, key=lambda x: x[metric]) if metric else lines[-1]
    value = best[metric or "loss"]
    return dict(validation=value, step=best["step"], core_minutes=round(minutes, 2))


def keep_compilations() -> None:
    """Runs of equal shapes compile once, as for the command line."""
    cache = os.environ.get("ANNEAL_CACHE", os.path.expanduser("~/.cache/anneal"))
    compilation_cache.keep(os.environ.get("JAX_COMPILATION_CACHE_DIR", f"{cache}/xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
