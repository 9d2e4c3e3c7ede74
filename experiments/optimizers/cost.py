"""What does an update cost, in time and bytes, beside plain optax on the same tree?

    python -m experiments.optimizers.cost [--layers=8] [--width=256] [--rounds=10]

Times `tx.update` alone on the stacked parameters of a GPT, ours and optax's in turns, and counts
the bytes of the optimizer's state for each parameter. A ratio above 1 means that ours is slower.
optax's Adafactor, LAMB and LARS see a stacked leaf as one matrix, which is less work and another
algorithm: their ratio says what it costs to be right. Its Muon is told which axes are a layer's
matrix. Writes results/cost.json and cost.md.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import optax

from experiments.optimizers.chains import DIRECTIONS, sections
from experiments.short_runs import load, versions
from research import build, optim, tree
from research.models import gpt


def matrices(params: Any) -> Any:
    """Returns for optax's Muon the axes in and out of each hidden matrix, layers apart."""

    def axes(path: str, leaf: jax.Array) -> Any:
        if not path.startswith("layers/") or not optim.is_hidden(path, leaf[0]):
            return None
        split = 1 + tree.input_axes(path, leaf.ndim - 1)
        inputs, outputs = tuple(range(1, split)), tuple(range(split, leaf.ndim))
        return optax.contrib.MuonDimensionNumbers(inputs, outputs)

    return tree.map_named(axes, params)


PLAIN: dict[str, Any] = {
    "sgd": optax.sgd(1e-3),
    "momentum": optax.sgd(1e-3, 0.9),
    "nesterov": optax.sgd(1e-3, 0.9, nesterov=True),
    "adagrad": optax.adagrad(1e-3),
    "rmsprop": optax.rmsprop(1e-3, eps_in_sqrt=False),
    "rmsprop, centred, momentum": optax.rmsprop(1e-3, centered=True, momentum=0.9),
    "adadelta": optax.adadelta(1.0),
    "adam": optax.adam(1e-3),
    "amsgrad": optax.amsgrad(1e-3),
    "adamax": optax.adamax(1e-3),
    "nadam": optax.nadam(1e-3),
    "radam": optax.radam(1e-3),
    "adamw": optax.adamw(1e-3),
    "adafactor": optax.adafactor(1e-3, min_dim_size_to_factor=32),
    "lion": optax.lion(1e-3),
    "lamb": optax.lamb(1e-3),
    "lars": optax.lars(1e-3),
    "ademamix": optax.contrib.ademamix(1e-3),
    "schedule-free adam": optax.contrib.schedule_free_adamw(1e-3, warmup_steps=10),
    "muon": optax.contrib.muon(1e-3, muon_weight_dimension_numbers=matrices),
    "soap": None,
}


def main() -> None:
    """Measures each optimizer, and the ways to store Adam's state."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    model = gpt.make(
        vocab_size=2_048, context=256, num_layers=arguments.layers, num_heads=8,
        width=arguments.width,
    )  # fmt: skip
    params = model.init(jax.random.key(0))["params"]
    gradients = jax.tree.map(
        lambda p: 1e-2 * jax.random.normal(jax.random.key(p.size), p.shape), params
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    rows = {}
    for name in DIRECTIONS:
        rows[name] = measure(ours(name), PLAIN[name], params, gradients, arguments.rounds)
    for kind in ("bf16", "fp8"):
        rows[f"adam, state in {kind}"] = measure(
            ours("adam", kind), PLAIN["adam"], params, gradients, arguments.rounds
        )
    for name, row in rows.items():
        row["bytes_per_parameter"] = round(row.pop("bytes") / count, 2)
        print(name, row, flush=True)
    found = {"parameters": count, "optimizers": rows, **versions()}
    folder = Path(__file__).parent / "results"
    (folder / "cost.json").write_text(json.dumps(found, indent=2) + "\n")
    (folder / "cost.md").write_text(table(rows))


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Returns the measured rows as a table."""
    lines = ["| optimizer | ms an update | over optax's in the same round, median (range) | "
             "bytes of state a parameter |", "|---|---|---|---|"]  # fmt: skip
    for name, row in rows.items():
        low, high = row.get("range", (0, 0))
        ratio = f"{row['over_optax']:.2f} ({low:.2f} to {high:.2f})" if "range" in row else ""
        lines.append(f"| {name} | {row['ms']:.1f} | {ratio} | {row['bytes_per_parameter']:.2f} |")
    return "\n".join(lines) + "\n"


def ours(name: str, state_dtype: str = "fp32") -> optax.GradientTransformation:
    """Returns our optimizer without clipping, at a constant rate."""
    given = sections(name, 0)["optim"]
    given["chain"] = given["chain"][1:]
    given["lr"] = {"peak": 1e-3, "schedule": "constant"}
    given.pop("clip")
    free = ("schedule_free",) if "schedule_free" in given["chain"] else ()
    config = load("configs/nlp/gpt.py:tiny", [], optim=given | {"state_dtype": state_dtype},
                  gradients={"chain": free})  # fmt: skip
    return build.make_step(config, None, None)[0]


def measure(tx: Any, plain: Any, params: Any, gradients: Any, rounds: int) -> dict[str, Any]:
    """Returns ms of an update, its ratio to optax's in the same round, and bytes of state."""

    def prepare(tx: Any) -> Any:
        @jax.jit
        def update(state: Any, params: Any, gradients: Any) -> Any:
            extra = {"value": 1.0, "key": jax.random.key(0)}
            tx_ = optax.with_extra_args_support(tx)
            updates, state = tx_.update(gradients, state, params, **extra)
            return state, optax.apply_updates(params, updates)

        held = [jax.jit(tx.init)(params), params]

        def once() -> float:
            start = time.perf_counter()
            for _ in range(3):
                held[:] = update(*held, gradients)
            jax.block_until_ready(held)
            return (time.perf_counter() - start) / 3

        once()
        return once, sum(leaf.nbytes for leaf in jax.tree.leaves(held[0]))

    once, held = prepare(tx)
    if plain is None:
        times = [once() for _ in range(rounds)]
        return {"ms": round(1e3 * statistics.median(times), 2), "bytes": held}
    other, other_bytes = prepare(plain)
    times = [(once(), other()) for _ in range(rounds)]
    ratios = [a / b for a, b in times]
    return {
        "ms": round(1e3 * statistics.median(a for a, _ in times), 2),
        "over_optax": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
        "bytes": held,
        "optax_bytes": other_bytes,
    }


if __name__ == "__main__":
    main()
