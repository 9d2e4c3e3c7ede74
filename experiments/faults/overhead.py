"""What does the safety cost? Guard and checksums beside a step, verification beside a restore.

    python -m experiments.faults.overhead

A GPT of 12 million parameters with 4,096 tokens a step, which takes more than 100 ms on a CPU. Each
round times, in an order that changes, the step as it is, a step without a guard (no comparison, no
selection, nothing remembered), and the checksums of the whole state; ratios are taken round by
round. The checksums run at each save, so their share is that of one in `INTERVAL` steps. Reopening,
verifying and restoring is timed on a state of 100 MB.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from research import build, config
from research.checkpoint import Checkpoints
from research.checksum import checksums
from research.step import TrainState
from research.workdir import environment

ROUNDS, STEPS, INTERVAL = 16, 1, 100
BATCH, CONTEXT = 16, 256
MODEL = dict(name="gpt", num_layers=6, num_heads=6, width=384, context=CONTEXT, unroll=6)


def build_run() -> build.Run:
    """Returns a run on one device, with the optimizer and average of a real one."""
    values = dict(
        steps=1_000_000,
        batch=BATCH,
        ema=0.999,
        model=MODEL | dict(vocab_size=2_048),
        task=dict(name="causal_lm", vocab_size=2_048),
        data=dict(name="text"),
        optim=dict(chain=("clip", "adam", "decay", "lr"), lr=dict(schedule="constant")),
    )
    return build.build(config.resolve(values), jax.devices()[:1], with_data=False)


def bare_step(run: build.Run) -> Callable:
    """Returns the same step without a guard: every update counts."""
    from research.gradients import plain

    def loss(variables: dict, batch: dict, key: jax.Array) -> tuple:
        return run.task.loss(run.model, variables, batch, key, True)

    grad_fn, tx = plain.make(loss), optax.with_extra_args_support(run.tx)

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        sums = grad_fn(state, batch, jax.random.fold_in(jax.random.key(0), state.step))
        scale = 1.0 / jnp.maximum(sums.weight, jnp.finfo(jnp.float32).tiny)
        grads, value = jax.tree.map(lambda g: g * scale, sums.grads), sums.loss * scale
        updates, opt_state = tx.update(grads, state.opt_state, state.params, value=value)
        params = optax.apply_updates(state.params, updates)
        live = {"params": params, "model_state": sums.model_state}
        ema = jax.tree.map(lambda a, x: a + (1 - 0.999) * (x - a), state.ema, live)
        metrics = {"loss": value, "grad_norm": optax.global_norm(grads), "weight": sums.weight}
        metrics |= {name: total / weight for name, (total, weight) in sums.metrics.items()}
        state = state._replace(
            step=state.step + 1, params=params, opt_state=opt_state, ema=ema,
            model_state=sums.model_state,
        )  # fmt: skip
        return state, metrics

    where = jax.tree.map(lambda leaf: leaf.sharding, run.abstract)
    return jax.jit(step, in_shardings=(where, None), out_shardings=(where, None), donate_argnums=0)


def steps_ms(step: Callable, state: TrainState, batch: dict) -> tuple[float, TrainState]:
    """Returns milliseconds a step, and the state after."""
    start = time.perf_counter()
    for _ in range(STEPS):
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
    return 1e3 * (time.perf_counter() - start) / STEPS, state


def costs() -> dict:
    """Returns the time of a step and of checksums, and the ratios round by round."""
    run = build_run()
    tokens = np.random.default_rng(0).integers(0, 2_048, (BATCH, CONTEXT + 1))
    tokens, weight = tokens.astype(np.int32), np.ones((BATCH, CONTEXT), np.float32)
    batch = build.put(run, dict(tokens=tokens[:, :-1], targets=tokens[:, 1:], weight=weight))
    forms = {"guarded": build.jit_train_step(run), "bare": bare_step(run)}
    times, ratios = {"guarded": [], "bare": [], "checksums": []}, []
    with jax.set_mesh(run.mesh):
        states = {name: build.init(run) for name in forms}
        for round_number in range(ROUNDS + 1):
            order = list(forms) if round_number % 2 else list(forms)[::-1]
            found = {}
            for name in order:
                found[name], states[name] = steps_ms(forms[name], states[name], batch)
            start = time.perf_counter()
            checksums(states["guarded"])
            found["checksums"] = 1e3 * (time.perf_counter() - start)
            if round_number:  # the first one compiles
                ratios.append(found["guarded"] / found["bare"])
                for name, value in found.items():
                    times[name].append(value)
    medians = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(states["guarded"]))
    return medians | {
        "state_mb": size / 1e6,
        "guarded_over_bare": {
            "median": statistics.median(ratios), "min": min(ratios), "max": max(ratios),
        },
        "checksum_share_of_step_time": medians["checksums_ms"]
        / (INTERVAL * medians["guarded_ms"]),
        "interval": INTERVAL,
    }  # fmt: skip


def reopen_seconds() -> dict:
    """Returns seconds to open, verify and restore 100 MB in a fresh Checkpoints, three times."""
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    rng = np.random.default_rng(0)
    state = {f"w{i}": jnp.asarray(rng.standard_normal(3_125_000, np.float32)) for i in range(8)}
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(1, state)
        for _ in range(3):
            start = time.perf_counter()
            with Checkpoints(folder) as checkpoints:
                restored = checkpoints.restore(checkpoints.newest(), abstract)
            jax.block_until_ready(restored)
            times.append(time.perf_counter() - start)
    return {"state_mb": sum(x.nbytes for x in state.values()) / 1e6, "seconds": times}


def main() -> None:
    """Measures, prints and writes results/overhead.json."""
    result = {"step": costs(), "reopen_verify_restore": reopen_seconds()}
    found = environment()
    result |= {key: found[key] for key in ("python", "platform", "packages", "devices")}
    text = json.dumps(result, indent=2)
    print(text)
    (Path(__file__).parent / "results" / "overhead.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
