"""make(grad_fn, **config) -> grad_fn, wrappers applied in order around `plain`.

grad_fn(state, batch, key) -> Gradients: gradients of the loss *sum*, so that they add over
micro-batches; the step divides once by the weight. A wrapper that remembers something keeps it in
state.grad_state under its own name, and its file has init(**config) -> that state beside `make`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Gradients(NamedTuple):
    """Sums over a batch: gradients, loss and weight; model_state and metrics as in a task's Aux."""

    grads: Any
    loss: Any
    weight: Any
    model_state: Any
    metrics: dict[str, tuple[Any, Any]]
    grad_state: Any


def widen(x: jax.Array) -> jax.Array:
    """Returns a gradient in float32 at least, for sums and norms."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
