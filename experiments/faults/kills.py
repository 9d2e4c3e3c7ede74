"""SIGKILL at random moments: is the final state that of the run that was never cut, to the bit?

    python -m experiments.faults.kills --count=200

Runs a small training in its own process over and over. Half of the kills come at a random time
after the start (imports, restore and the first step included), half soon after a checkpoint folder
appeared or changed (saves, deletions). After each kill the same command goes on. When a run has
come to its end, everything is compared with the uninterrupted run: every array of the last
checkpoint (parameters, optimizer, average, guard), every number of metrics.jsonl outside "time/",
and the names of all files in the workdir. Then a new run begins, until all kills are done.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from research import manifest, metrics

RESULTS = Path(__file__).parent / "results"
STEPS, EVERY = 120, 10
# A save as often as every 10 steps of a few milliseconds: most kills meet one.
OVERRIDES = (
    f"steps={STEPS}",
    f"checkpoint.every={EVERY}",
    "checkpoint.keep=2",
    "eval.every=60",
    "log.every=1",
    "log.tensorboard=False",
    "ema=0.99",
    "model.dropout=0.1",
)


def command(workdir: Path) -> list[str]:
    """Returns the command that trains, or goes on."""
    overrides = [f"--config.{text}" for text in OVERRIDES]
    return [sys.executable, "-m", "research", "train", "--config=configs/nlp/gpt.py:tiny",
            f"--workdir={workdir}", *overrides]  # fmt: skip


def numbers(workdir: Path) -> list[dict]:
    """Returns the lines of metrics.jsonl without what depends on the clock."""
    lines = metrics.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def outcome(workdir: Path) -> dict:
    """Returns all that must be equal: checksums of every array, numbers, names of files."""
    checkpoints = sorted(workdir.glob("checkpoints/*"))
    return {
        "arrays": {p.name: manifest.read(p)["leaves"] for p in checkpoints},
        "numbers": numbers(workdir),
        "names": sorted(p.name for p in workdir.iterdir()) + [p.name for p in checkpoints],
    }


def committed(workdir: Path) -> int:
    """Returns the newest step with a manifest under its final name."""
    names = (p.parent.name for p in workdir.glob("checkpoints/*/manifest.json"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def newest_change(workdir: Path) -> float:
    """Returns when a checkpoint was last begun, committed or deleted; 0 before the first."""
    folder = workdir / "checkpoints"
    return folder.stat().st_mtime if folder.exists() else 0.0


def run_and_kill(workdir: Path, log: Path, rng: random.Random, seconds: float) -> dict:
    """Starts the command and kills it; returns what was there, or that it came to its end."""
    with log.open("a") as output:
        process = subprocess.Popen(command(workdir), stdout=output, stderr=subprocess.STDOUT)
        at_save = rng.random() < 0.5
        wait = rng.uniform(0, 0.25) if at_save else rng.uniform(0.1, seconds)
        changes, wanted = newest_change(workdir), rng.randrange(1, 6)
        start = time.monotonic()
        while process.poll() is None:
            now = newest_change(workdir)
            if at_save and now != changes:
                changes, wanted = now, wanted - 1
                if not wanted:
                    time.sleep(wait)
                    break
            elif not at_save and time.monotonic() - start > wait:
                break
            time.sleep(0.001)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        code = process.wait()
    lines = metrics.read(workdir / "metrics.jsonl") if (workdir / "metrics.jsonl").exists() else []
    return {
        "exit": code,
        "moment": "save or deletion" if at_save else "any",
        "after_s": round(time.monotonic() - start, 3),
        "step": max((line["step"] for line in lines), default=0),
        "committed": committed(workdir),
        "remains": sorted(p.name for p in workdir.glob("checkpoints/*") if not p.name.isdecimal()),
    }


def main() -> None:
    """Measures, prints and writes results/kills.jsonl."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, kills, runs, equal, lost, remains = random.Random(arguments.seed), 0, 0, 0, [], 0
    with tempfile.TemporaryDirectory() as temporary, (RESULTS / "kills.jsonl").open("w") as file:
        whole = Path(temporary, "whole")
        for _ in range(2):  # the second one has everything compiled
            start = time.monotonic()
            subprocess.run(["rm", "-rf", str(whole)], check=True)
            subprocess.run(command(whole), check=True, capture_output=True)
            seconds = time.monotonic() - start
        truth = outcome(whole)
        while kills < arguments.count:
            workdir, before = Path(temporary, f"run{runs}"), 0
            while True:
                # The last run goes on undisturbed once all kills are done.
                if kills < arguments.count:
                    found = run_and_kill(workdir, Path(temporary, "log"), rng, seconds)
                else:
                    done = subprocess.run(command(workdir), capture_output=True)
                    found = {"exit": done.returncode}
                if found["exit"] == -signal.SIGKILL:
                    kills += 1
                    remains += bool(found["remains"])
                    lost.append(found["step"] - found["committed"])
                    found["went_back"] = found["committed"] < before
                    before = found["committed"]
                    print(json.dumps({"kill": kills, "run": runs} | found), file=file, flush=True)
                    continue
                break
            if found["exit"] != 0:
                print(Path(temporary, "log").read_text()[-3000:])
                raise SystemExit(f"run {runs} ended with exit code {found['exit']}")
            ended = outcome(workdir)
            same = {name: ended[name] == truth[name] for name in truth}
            equal += all(same.values())
            runs += 1
            line = {"run": runs - 1, "equal": same, "names": ended["names"]}
            print(json.dumps(line), file=file, flush=True)
        summary = {
            "kills": kills,
            "runs": runs,
            "runs_equal_to_the_bit": equal,
            "most_steps_lost": max(lost),
            "interval": EVERY,
            "kills_that_left_remains": remains,
        }
        print(json.dumps(summary), file=file)
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
