"""make(grad_fn, **config) -> grad_fn, wrappers applied in order around `plain`.

grad_fn(state, batch, key) -> Gradients: gradients of the loss *sum*, so that they add over
micro-batches; the step divides once by the weight.
"""

from typing import Any, NamedTuple


class Gradients(NamedTuple):
    """Sums over a batch: gradients, loss and weight; model_state and metrics as in a task's Aux."""

    grads: Any
    loss: Any
    weight: Any
    model_state: Any
    metrics: dict[str, tuple[Any, Any]]
    grad_state: Any
