"""Sharpness-aware minimisation (arXiv:2010.01412): the gradient is taken where the loss is worst in
a ball around the parameters. Each update costs two gradients.

    gradients=dict(chain=("accumulate", "sam"))     # one ball for the batch; the other order: one
                                                    # for each micro-batch (m-SAM)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from research.arguments import NonNegative
from research.gradients import Gradients, widen


def make(grad_fn: Callable, rho: NonNegative = 0.05, adaptive: bool = False) -> Callable:
    """Moves by `rho` along the gradient and takes the gradient there. `adaptive` measures the ball
    in units of the weights (ASAM, arXiv:2102.11600). Loss, metrics and model state are those of the
    parameters themselves."""

    def sharp(state: Any, batch: dict, key: jax.Array) -> Gradients:
        here = grad_fn(state, batch, key)
        size = lambda p: jnp.abs(p) if adaptive else jnp.ones((), p.dtype)  # noqa: E731
        along = jax.tree.map(lambda g, p: widen(g) * size(p), here.grads, state.params)
        scale = rho / jnp.maximum(optax.global_norm(along), 1e-12)
        move = lambda p, g: (p + scale * size(p) * g).astype(p.dtype)  # noqa: E731
        worst = jax.tree.map(move, state.params, along)
        there = grad_fn(state._replace(params=worst, grad_state=here.grad_state), batch, key)
        return here._replace(grads=there.grads, grad_state=there.grad_state)

    return sharp
