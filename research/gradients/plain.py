"""The gradient of a loss sum: the innermost grad_fn, which the others wrap."""

from collections.abc import Callable
from typing import Any

import jax

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

        (total, (weight, aux)), grads = jax.value_and_grad(loss_sum, has_aux=True)(state.params)
        return Gradients(grads, total, weight, aux.model_state, aux.metrics, state.grad_state)

    return grad_fn
