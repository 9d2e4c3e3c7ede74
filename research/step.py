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


class TrainState(NamedTuple):
    """All that a run carries from one step to the next. Shapes never depend on the step."""

    step: jax.Array  # global batches consumed
    params: Any
    frozen: Any  # a teacher, or the base under LoRA: an argument, never a compiled constant
    model_state: Any  # batch statistics
    opt_state: Any
    grad_state: Any  # of the gradient wrappers: a loss scale
    ema: Any  # {"params", "model_state"} averaged over updates, or None
    guard: Guard  # of the losses so far: which update counts


def init_state(
    variables: dict, tx: optax.GradientTransformation, ema: float | None, window: int = 64
) -> TrainState:
    """Returns the state of step 0 for `variables` as a model's `init` makes them."""
    params, model_state = variables["params"], variables["model_state"]
    average = None
    if ema is not None:
        # Copies: the step donates its state, and one buffer cannot be given away twice.
        average = jax.tree.map(jnp.copy, {"params": params, "model_state": model_state})
    frozen = variables.get("frozen", {})
    step = jnp.zeros((), jnp.int32)
    guard = guard_lib.init(window)
    return TrainState(step, params, frozen, model_state, tx.init(params), {}, average, guard)


def make_train_step(
    grad_fn: Callable,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    ema: float | None = None,
    spike: float | None = None,
    refuse_spikes: bool = False,
) -> Callable:
    """Returns train_step. Its metrics are scalars: loss, grad_norm, learning_rate where the
    optimizer has one, those of the guard (`refused`: 1 when the update was not applied), and the
    task's. `spike` and `refuse_spikes` are the guard's.

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
        updates, opt_state = tx.update(grads, state.opt_state, state.params, value=loss)
        new = {
            "params": optax.apply_updates(state.params, updates),
            "model_state": sums.model_state,
            "opt_state": opt_state,
            "ema": state.ema,
        }
        if ema is not None:
            live = {"params": new["params"], "model_state": new["model_state"]}
            new["ema"] = jax.tree.map(lambda a, x: a + (1 - ema) * (x - a), state.ema, live)

        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & (sums.weight > 0)
        # Of gradients alone, so that the choice below is part of the one pass over the state that
        # updates it. Should the optimizer itself make a NaN, the next loss shows it, the run goes
        # back to a good checkpoint, and no checkpoint ever holds it.
        accepted, guard, judged = guard_lib.judge(state.guard, loss, finite, spike, refuse_spikes)
        old = {name: getattr(state, name) for name in new}
        new = jax.tree.map(lambda n, o: jnp.where(accepted, n, o), new, old)

        metrics = {"loss": loss, "grad_norm": grad_norm, "weight": sums.weight}
        metrics |= {name: total / weight for name, (total, weight) in sums.metrics.items()}
        rate = optax.tree.get(opt_state, "learning_rate", None)
        if rate is not None:
            metrics["learning_rate"] = rate
        state = state._replace(step=state.step + 1, grad_state=sums.grad_state, guard=guard, **new)
        return state, metrics | judged

    return train_step


def make_eval_step(model: Any, task: Any) -> Callable:
    """Returns eval_step: sums that add exactly over batches."""

    def eval_step(variables: dict, batch: dict) -> dict[str, tuple[jax.Array, jax.Array]]:
        (total, weight), aux = task.loss(model, variables, batch, None, False)
        return {"loss": (total, weight)} | aux.metrics

    return eval_step
