"""The gradient of a loss sum: the innermost grad_fn, which the others wrap."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from research.gradients import Gradients


def make(loss: Callable) -> Callable:
    """Turns `loss(variables, batch, key) -> (loss_sum, weight), Aux` into a grad_fn."""

    def grad_fn(state: Any, batch: dict, key: jax.Array) -> Gradients:
        def loss_sum(params: Any) -> tuple[jax.Array, Any]:
            variables = {
                "params": params, "model_state": state.model_state, "frozen": state.frozen
            }  # fmt: skip
            (total, weight), aux = loss(variables, batch, key)
            return total, (weight, aux)

        total, backward, (weight, aux) = jax.vjp(loss_sum, state.params, has_aux=True)
        # A scaled loss without the scaled loss: the backward pass starts with the scale.
        kept = state.grad_state.get("loss_scale")
        seed = jnp.ones_like(total) if kept is None else kept.value.astype(total.dtype)
        (grads,) = backward(seed)
        return Gradients(grads, total, weight, aux.model_state, aux.metrics, state.grad_state)

    return grad_fn
