"""RMSProp (Hinton's lecture 6e; centered: arXiv:1308.0850): gradients over their running RMS."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.arguments import Positive, Rate


class RmspropState(NamedTuple):
    """Averages of the squared gradient, and of the gradient where it is centered (else None)."""

    nu: Any
    mu: Any


def make(
    decay: Rate = 0.9, eps: Positive = 1e-8, eps_in_sqrt: bool = False, centered: bool = False
) -> optax.GradientTransformation:
    """Scales by 1 / (root + eps) as torch, or by 1 / root(. + eps) as TensorFlow.

    `centered` divides by the standard deviation instead. Momentum is the part `momentum` behind it.
    """

    def init(params: optax.Params) -> RmspropState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
        return RmspropState(zeros(), zeros() if centered else None)

    def scaled(g: jax.Array, square: jax.Array, mean: jax.Array) -> jax.Array:
        spread = jnp.maximum(square - mean * mean, 0.0)  # rounding may make it negative: NaN
        return g / (jnp.sqrt(spread + eps) if eps_in_sqrt else jnp.sqrt(spread) + eps)

    def update(updates: optax.Updates, state: RmspropState, params: object = None) -> tuple:
        nu = optax.tree.update_moment(updates, state.nu, decay, 2)
        mu = optax.tree.update_moment(updates, state.mu, decay, 1) if centered else None
        means = mu if centered else jax.tree.map(jnp.zeros_like, nu)
        return jax.tree.map(scaled, updates, nu, means), RmspropState(nu, mu)

    return optax.GradientTransformation(init, update)
