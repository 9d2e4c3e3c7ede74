"""NAdam (Dozat, ICLR 2016 workshop): Adam with Nesterov's momentum, which rises over the updates.

optax's nadam keeps the momentum constant and is another algorithm from the first update on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.arguments import NonNegative, Rate


class NadamState(NamedTuple):
    """Updates so far, the product of their momenta, and Adam's moments."""

    count: jax.Array
    product: jax.Array
    mu: Any
    nu: Any


def make(
    b1: Rate = 0.9, b2: Rate = 0.999, eps: NonNegative = 1e-8, momentum_decay: NonNegative = 4e-3
) -> optax.GradientTransformation:
    """Uses the momentum b1 (1 - 0.96^(t momentum_decay) / 2) at update t, as Dozat and torch."""

    def momentum(count: jax.Array) -> jax.Array:
        return b1 * (1 - 0.5 * 0.96 ** (count * momentum_decay))

    def init(params: optax.Params) -> NadamState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
        return NadamState(jnp.zeros((), jnp.int32), jnp.ones(()), zeros(), zeros())

    def update(updates: optax.Updates, state: NadamState, params: object = None) -> tuple:
        count = state.count + 1
        now, ahead = momentum(count), momentum(count + 1)
        product = (state.product * now).astype(state.product.dtype)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        own, next_ = (1 - now) / (1 - product), ahead / (1 - product * ahead)

        def changed(g: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            step = own.astype(g.dtype) * g + next_.astype(g.dtype) * m
            return step / (jnp.sqrt(v) + eps)

        square = optax.tree.bias_correction(nu, b2, count)
        return jax.tree.map(changed, updates, mu, square), NadamState(count, product, mu, nu)

    return optax.GradientTransformation(init, update)
