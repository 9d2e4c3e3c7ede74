"""What does each precision cost in loss? 500 steps of nanoGPT's CPU setting, each mode, 3 seeds.

    python -m experiments.precision --path=input.txt [--seeds=3] [--only=bf16,fp8]

Writes results/results.json: for each mode the validation loss of every seed and the gap to fp32,
seed by seed (same weights, same batches), with its 95 % t interval. A CPU computes float8 and int8
exactly as it is told, only slower: the losses are those of any device, times are not shown.
"""

import argparse
import json
from pathlib import Path

from experiments.short_runs import ShortRuns, interval, versions
from research import config

MODES = {
    "fp32": [],
    "bf16": ["config.precision=bf16"],
    "bf16_params": ["config.precision=bf16_params"],
    "bf16_params, state in bf16": ["config.precision=bf16_params", "config.optim.state_dtype=bf16"],
    "fp16": ["config.precision=fp16"],
    "int8": ["config.precision=int8"],
    "fp8": ["config.precision=fp8"],
    "state in bf16": ["config.optim.state_dtype=bf16"],
    "state in fp8": ["config.optim.state_dtype=fp8"],
}
RESULTS = Path(__file__).parent / "results" / "results.json"


def main() -> None:
    """Runs every mode, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="tinyshakespeare's input.txt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--only", default=",".join(MODES))
    arguments = parser.parse_args()
    losses: dict[str, list[float]] = {}
    for mode in ("fp32", *(m for m in MODES if m != "fp32" and m in arguments.only)):
        given = [f"config.data.path={arguments.path}", f"config.steps={arguments.steps}"]
        runs = ShortRuns(
            config.load("configs/nlp/gpt.py:shakespeare", [*given, *MODES[mode]]), names=()
        )
        losses[mode] = [runs.train(seed, {})["loss"] for seed in range(arguments.seeds)]
        gaps = [a - b for a, b in zip(losses[mode], losses["fp32"], strict=True)]
        print(mode, losses[mode], interval(gaps), flush=True)
    table = {
        mode: {
            "loss": found,
            "gap": interval([a - b for a, b in zip(found, losses["fp32"], strict=True)]),
        }
        for mode, found in losses.items()
    }
    RESULTS.parent.mkdir(exist_ok=True)
    text = json.dumps({"steps": arguments.steps, "modes": table, **versions()}, indent=2)
    RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
