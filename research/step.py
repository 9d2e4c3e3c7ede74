"""One update, as a pure function. The three seams of a training system meet here: the loss (inside
`grad_fn`), the gradient (`grad_fn`) and the optimizer (`tx`).

    train_step(state, batch) -> state, metrics
    eval_step(variables, batch) -> {name: (sum, weight)}
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research import guard as guard_lib
from research.guard import Guard

ROUNDING = 2**31 - 1  # the number of the key that rounds: micro-batches and layers count from 0


class TrainState(NamedTuple):
    """All that a run carries from one step to the next. Shapes never depend on the step."""

    step: jax.Array  # global batches consumed
    params: Any
    frozen: Any  # a teacher, or the base under LoRA: an argument, never a compiled constant
    model_state: Any  # batch statistics
    opt_state: Any
    grad_state: Any  # of the gradient wrappers: a loss scale
    # {"params", "model_state"} averaged over updates (ema), or over steps and their "count" (swa)
    ema: Any
    guard: Guard  # of the losses so far: which update counts


def init_state(
    variables: dict,
    tx: optax.GradientTransformation,
    average: str | None = None,
    window: int = 64,
    grad_state: dict | None = None,
) -> TrainState:
    """Returns the state of step 0 for `variables` as a model's `init` makes them, with an `average`
    "ema", "swa" or None."""
    params, model_state = variables["params"], variables["model_state"]
    ema = None
    if average is not None:
        # Copies: the step donates its state, and one buffer cannot be given away twice. Float32,
        # also of bfloat16 parameters: their average moves by less than their spacing.
        wide = lambda x: jnp.array(x, jnp.promote_types(x.dtype, jnp.float32))  # noqa: E731
        ema = jax.tree.map(wide, {"params": params, "model_state": model_state})
    if average == "swa":
        ema["count"] = jnp.zeros((), jnp.int32)
    frozen = variables.get("frozen", {})
    step = jnp.zeros((), jnp.int32)
    opt_state, guard = tx.init(params), guard_lib.init(window)
    return TrainState(step, params, frozen, model_state, opt_state, grad_state or {}, ema, guard)


def make_train_step(
    grad_fn: Callable,
    tx: optax.GradientTransformation,
    *,
    seed: int | jax.Array,
    ema: float | None = None,
    swa: tuple[int, int] | None = None,
    spike: float | None = None,
    refuse_spikes: bool = False,
) -> Callable:
    """Returns train_step. Its metrics are scalars: loss, grad_norm, learning_rate where the
    optimizer has one, those of the guard (`refused`: 1 when the update was not applied), and the
    task's. `ema` is the decay of an average over updates; `swa` = (start, every) averages the
    weights at those steps equally instead (arXiv:1803.05407), until `start` it follows them.
    `spike` and `refuse_spikes` are the guard's.

    An update whose loss or gradient is not finite is refused: parameters, model_state,
    optimizer and ema stay as they were; `step` moves on, so that the bad batch is not met again,
    and so does grad_state, so that a loss scale can fall.
    """
    tx = optax.with_extra_args_support(tx)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        sums = grad_fn(state, batch, key)
        scale = 1.0 / jnp.maximum(sums.weight, jnp.finfo(jnp.float32).tiny)
        grads = jax.tree.map(lambda g: g * scale, sums.grads)
        loss = sums.loss * scale
        extra = {"value": loss, "key": jax.random.fold_in(key, ROUNDING)}
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **extra)
        new = {
            "params": optax.apply_updates(state.params, updates),
            "model_state": sums.model_state,
            "opt_state": opt_state,
            "ema": state.ema,
        }
        if ema is not None:
            new["ema"] = mix(state.ema, new, 1 - ema)

        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & (sums.weight > 0)
        # Of gradients alone, so that the choice below is part of the one pass over the state that
        # updates it. Should the optimizer itself make a NaN, the next loss shows it, the run goes
        # back to a good checkpoint, and no checkpoint ever holds it.
        excused = getattr(sums.grad_state.get("loss_scale"), "fell", False)
        accepted, guard, judged = guard_lib.judge(
            state.guard, loss, finite, spike, refuse_spikes, excused
        )
        old = {name: getattr(state, name) for name in new}
        new = jax.tree.map(lambda n, o: jnp.where(accepted, n, o), new, old)
        if swa is not None:
            # Counted, not worked out from the step: a rollback leaves steps out.
            start, every = swa
            since = state.step + 1 - start
            count = state.ema["count"] + (since >= 0)
            averaged = lambda: mix(state.ema, new, 1 / jnp.maximum(count, 1)) | {"count": count}  # noqa: E731
            due = (since < 0) | (since % every == 0)
            new["ema"] = jax.lax.cond(due, averaged, lambda: state.ema)

        metrics = {"loss": loss, "grad_norm": grad_norm, "weight": sums.weight}
        metrics |= {name: total / weight for name, (total, weight) in sums.metrics.items()}
        rate = optax.tree.get(opt_state, "learning_rate", None)
        if rate is not None:
            metrics["learning_rate"] = rate
        state = state._replace(step=state.step + 1, grad_state=sums.grad_state, guard=guard, **new)
        return state, metrics | judged

    return train_step


def mix(average: dict, live: dict, share: jax.Array | float) -> dict:
    """Moves an average of weights and model state by `share` of the way to `live`."""
    move = lambda a, x: (a + share * (x - a)).astype(a.dtype)  # noqa: E731
    return {n: jax.tree.map(move, average[n], live[n]) for n in ("params", "model_state")}


def make_eval_step(model: Any, task: Any) -> Callable:
    """Returns eval_step: sums that add exactly over batches."""

    def eval_step(variables: dict, batch: dict) -> dict[str, tuple[jax.Array, jax.Array]]:
        (total, weight), aux = task.loss(model, variables, batch, None, False)
        return {"loss": (total, weight)} | aux.metrics

    return eval_step
