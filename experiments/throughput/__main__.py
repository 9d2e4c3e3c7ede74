"""Step time of Anneal's GPT beside the same GPT from the `transformers` package in torch.

    python -m experiments.throughput --size=cpu            # 2 CPU cores
    python -m experiments.throughput --size=124m           # a GPU: GPT-2 124M, bf16, 1024 tokens

The steps are interleaved (ours, torch eager, torch compiled, ours, ...), so that a drifting machine
slows all alike; what counts are the ratios of neighbours. Needs `pip install torch transformers`;
a peer that is missing or fails is a row that says so.
"""

import argparse
import gc
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from research import build, config, flops

# One GPT-2 shape: layers, heads, width, context, batch, vocabulary, precision.
SIZES = {
    "tiny": dict(layers=2, heads=2, width=64, context=64, batch=4, vocab=256, precision="fp32"),
    "cpu": dict(layers=6, heads=6, width=384, context=256, batch=12, vocab=256, precision="fp32"),
    "small": dict(layers=4, heads=4, width=128, context=64, batch=12, vocab=128, precision="fp32"),
    "124m": dict(
        layers=12, heads=12, width=768, context=1024, batch=32, vocab=50304, precision="bf16"
    ),
}
LEARNING_RATE = 3e-4


def ours(size: dict, unroll: int) -> Callable[[np.ndarray], float]:
    """Returns a function that takes one training step and waits for it."""
    values = config.resolve(
        dict(
            steps=1_000_000,
            batch=size["batch"],
            precision=size["precision"],
            model=dict(
                name="gpt",
                num_layers=size["layers"],
                num_heads=size["heads"],
                width=size["width"],
                context=size["context"],
                vocab_size=size["vocab"],
                unroll=unroll,
            ),
            task=dict(name="causal_lm", vocab_size=size["vocab"]),
            data=dict(name="text"),
            optim=dict(
                chain=("adam", "decay", "lr"),
                decay=dict(rate=0.1),
                lr=dict(peak=LEARNING_RATE, schedule="constant"),
            ),
        )
    )
    run = build.build(values, jax.devices()[:1], with_data=False)
    state = build.init(run)
    step = build.jit_train_step(run)

    def call(tokens: np.ndarray) -> float:
        nonlocal state
        batch = {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "weight": np.ones(tokens[:, 1:].shape, np.float32),
        }
        state, metrics = step(state, build.put(run, batch))
        return float(metrics["loss"])  # waits: the loss is the last thing computed but the update

    return call


def torch_peer(size: dict, compiled: bool) -> Callable[[np.ndarray], float]:
    """Returns the same for transformers' GPT2LMHeadModel with fused AdamW."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest" if size["precision"] == "fp32" else "high")
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size["vocab"],
            n_positions=size["context"],
            n_embd=size["width"],
            n_layer=size["layers"],
            n_head=size["heads"],
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="sdpa",
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.1, fused=True
    )
    forward = torch.compile(model) if compiled else model

    def call(tokens: np.ndarray) -> float:
        ids = torch.from_numpy(tokens).to(device).long()
        with torch.autocast(device, torch.bfloat16, enabled=size["precision"] == "bf16"):
            logits = forward(ids[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), ids[:, 1:].flatten()
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return call


def measure(contestants: dict[str, Callable], size: dict, passes: int, warmup: int) -> dict:
    """Returns seconds of every counted step of every contestant, taken in turn."""
    rng = np.random.default_rng(0)
    shape = (size["batch"], size["context"] + 1)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(warmup + passes):
        tokens = rng.integers(0, size["vocab"], shape).astype(np.int32)
        # Reversed every other turn: none always follows the same neighbour.
        for name in names if turn % 2 else names[::-1]:
            gc.collect()
            start = time.perf_counter()
            contestants[name](tokens)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Returns minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def main() -> int:
    """Measures, prints a table and writes results/<size>-<device>.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--passes", type=int, default=11)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--unroll", type=int, default=1, help="layers unrolled in the scan")
    parser.add_argument("--no-compiled", action="store_true", help="leave torch.compile out")
    parser.add_argument("--output", help="default: results/ beside this file")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]

    makers = {"anneal": lambda: ours(size, arguments.unroll)}
    makers["torch eager"] = lambda: torch_peer(size, False)
    if not arguments.no_compiled:
        makers["torch compiled"] = lambda: torch_peer(size, True)
    contestants, failures = {}, {}
    for name, make in makers.items():
        try:
            contestants[name] = make()
            contestants[name](np.zeros((size["batch"], size["context"] + 1), np.int32))
        except Exception as error:  # noqa: BLE001  a peer that fails is a row, not the end
            failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            contestants.pop(name, None)
    if "anneal" in failures:
        raise SystemExit(f"anneal failed: {failures['anneal']}")

    seconds = measure(contestants, size, arguments.passes, arguments.warmup)
    device = jax.devices()[0]
    tokens = size["batch"] * size["context"]
    rows = {}
    for name, values in seconds.items():
        rows[name] = {
            "ms": spread([1e3 * v for v in values]),
            "tokens_per_s": tokens / statistics.median(values),
        }
        if name != "anneal":  # above 1: ours is faster
            rows[name]["anneal_speedup"] = spread(
                [theirs / mine for theirs, mine in zip(values, seconds["anneal"], strict=True)]
            )
    result = {
        "size": arguments.size,
        **size,
        "unroll": arguments.unroll,
        "device": device.device_kind,
        "platform": platform.platform(),
        "versions": versions(),
        "passes": arguments.passes,
        "rows": rows,
        "failures": failures,
    }
    if peak := flops.peak(device):
        result["mfu_note"] = f"peak {peak:.3g} FLOP/s"
    print(table(result))
    name = f"{arguments.size}-{device.device_kind.replace(' ', '_')}.json"
    path = Path(arguments.output or Path(__file__).parent / "results") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def versions() -> dict[str, str | None]:
    """Returns what was compared."""
    found = {}
    for package in ("jax", "jaxlib", "flax", "optax", "torch", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def table(result: dict) -> str:
    """Returns the rows as markdown."""
    lines = [
        f"{result['size']} on {result['device']}, {result['precision']}",
        "",
        "| | ms a step, min / median / max | tokens/s | anneal's speed over it |",
        "|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        ms, ratio = row["ms"], row.get("anneal_speedup")
        against = (
            f"{ratio['min']:.2f} / {ratio['median']:.2f} / {ratio['max']:.2f}" if ratio else ""
        )
        lines.append(
            f"| {name} | {ms['min']:.1f} / {ms['median']:.1f} / {ms['max']:.1f} "
            f"| {row['tokens_per_s']:,.0f} | {against} |"
        )
    lines += [f"| {name} | FAILED: {why} | | |" for name, why in result["failures"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
