"""What Python costs: dispatch of a step, and the time from the command to the first step.

    python -m experiments.dispatch

Dispatch is the time until the call returns, with the device idle before it: medians over many
calls of a 12-layer GPT so narrow that the arithmetic is nothing. The start is that of a fresh
process that trains one step of configs/nlp/gpt.py:tiny, its compilation cached by a run before.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from research import build, config
from research.workdir import environment


def median_ms(call: Callable[[], object], calls: int = 300) -> float:
    """Returns the median time until `call` returns, in milliseconds."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        output = call()
        times.append(time.perf_counter() - start)
        jax.block_until_ready(output)
    return 1e3 * statistics.median(times[calls // 10 :])


def dispatch() -> dict[str, float]:
    """Returns milliseconds for a jitted identity of the state, and for the train step."""
    model = dict(name="gpt", num_layers=12, num_heads=2, width=16, context=8, vocab_size=128)
    values = config.resolve(
        dict(
            steps=1_000_000,
            batch=8,
            model=model,
            task=dict(name="causal_lm", vocab_size=128),
            data=dict(name="text"),
            optim=dict(chain=("clip", "adam", "decay", "lr"), lr=dict(schedule="constant")),
        )
    )
    run = build.build(values, jax.devices()[:1], with_data=False)
    state = build.init(run)
    identity = jax.jit(lambda state: state, donate_argnums=0)
    step = build.jit_train_step(run)
    tokens = np.zeros((8, 8), np.int32)
    batch = build.put(run, dict(tokens=tokens, targets=tokens, weight=np.ones((8, 8), np.float32)))

    def call_identity() -> object:
        nonlocal state
        state = identity(state)
        return state

    def call_step() -> object:
        nonlocal state
        state, _ = step(state, batch)
        return state

    with jax.set_mesh(run.mesh):
        return {
            "leaves": len(jax.tree.leaves(state)),
            "identity_ms": median_ms(call_identity),
            "train_step_ms": median_ms(call_step),
        }


def start_seconds() -> list[float]:
    """Returns the wall time of three processes that train one step, after one that compiled."""
    times = []
    for _ in range(4):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "research", "train", "--stop-after=1"]
            command += ["--config=configs/nlp/gpt.py:tiny", f"--workdir={folder}/run"]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
    return times[1:]


def main() -> None:
    """Measures, prints and writes results/dispatch.json."""
    result = dispatch() | {"process_with_one_step_s": start_seconds()}
    found = environment()
    result |= {key: found[key] for key in ("python", "platform", "packages", "devices")}
    text = json.dumps(result, indent=2)
    print(text)
    (Path(__file__).parent / "results" / "dispatch.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
