"""Small runs for faults: what they are made of, and what is read of them."""

import json
import subprocess
import sys
import time

import ml_collections

from research import config as config_lib
from research import manifest


def overrides(text, *more, steps=24):
    return [
        "config.data.name=tests.bad_data",
        f"config.data.path={text}",
        f"config.steps={steps}",
        "config.ema=0.9",
        "config.log.every=4",
        "config.eval.batch=64",
        "config.eval.every=None",
        "config.checkpoint.every=4",
        "config.checkpoint.keep=3",
        "config.log.tensorboard=False",
        *more,
    ]


def load(text, *more, **options):
    config = config_lib.load("configs/nlp/gpt.py:tiny")
    values = config.to_dict() | {"data": {"name": "tests.bad_data", "path": str(text)}}
    return config_lib.override(ml_collections.ConfigDict(values), overrides(text, *more, **options))


def numbers(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def leaves(folder, step):
    """The checksums of everything in a checkpoint."""
    return manifest.read(folder / "checkpoints" / str(step))["leaves"]


def committed(folder):
    steps = [int(p.parent.name) for p in folder.glob("checkpoints/[0-9]*/manifest.json")
             if p.parent.name.isdecimal()]  # fmt: skip
    return max(steps, default=0)


STARTED = []  # what `start` started: a test that fails must leave nothing running (conftest.py)


def start(text, workdir, *more, **options):
    args = ["--" + text for text in overrides(text, *more)]
    code = (
        "import sys, ml_collections; from research import config, train; from pathlib import Path\n"
        "base = config.load('configs/nlp/gpt.py:tiny').to_dict()\n"
        "base['data'] = dict(name='tests.bad_data', path=sys.argv[2])\n"
        "made = config.override(ml_collections.ConfigDict(base), sys.argv[3:])\n"
        "r = train.train(made, sys.argv[1]); sys.exit(75 if r.preempted else 0)\n"
    )
    command = [sys.executable, "-c", code, str(workdir), str(text), *args]
    STARTED.append(
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
        )
    )
    return STARTED[-1]


def until(condition, process, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()  # or its output would have no end to read to
            raise AssertionError(process.stdout.read())
        time.sleep(0.002)
