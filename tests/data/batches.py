"""A small source, and programs to run beside the tests."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

import research
from research.data.source import RecordError, make_batches

SPEC = {
    "index": jax.ShapeDtypeStruct((4, 3), np.int32),
    "draw": jax.ShapeDtypeStruct((4,), np.float32),
    "weight": jax.ShapeDtypeStruct((4,), np.float32),
}


def source(num_rows=10, corrupt=(), repeat=True, **options):
    def row(index, epoch, random):
        if index in corrupt:
            raise RecordError(f"record {index} is broken")
        return {
            "index": np.full(3, index + 1, np.int32),
            "draw": np.float32(random.random()),
            "weight": np.float32(1),
        }

    options = dict(spec=SPEC, batch=4, seed=3, shuffle=repeat, repeat=repeat) | options
    return make_batches(row, num_rows, **options)[0]


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def start(script, *arguments, **options):
    environment = dict(os.environ, PYTHONPATH=str(Path(research.__file__).parents[1]))
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **options)
