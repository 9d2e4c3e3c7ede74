"""AMSGrad (arXiv:1904.09237): Adam whose second moment never falls.

optax's amsgrad corrects the bias first and takes the maximum then, which early values win for good.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.arguments import NonNegative, Rate


class AmsgradState(NamedTuple):
    """Updates so far, both moments, and the largest second moment seen."""

    count: jax.Array
    mu: Any
    nu: Any
    nu_max: Any


def make(
    b1: Rate = 0.9, b2: Rate = 0.999, eps: NonNegative = 1e-8, bias_correction: bool = True
) -> optax.GradientTransformation:
    """Takes the maximum of the raw second moments, then corrects the bias, as torch.

    Without `bias_correction` it is Algorithm 2 of the paper (which has no eps either).
    """

    def init(params: optax.Params) -> AmsgradState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
        return AmsgradState(jnp.zeros((), jnp.int32), zeros(), zeros(), zeros())

    def update(updates: optax.Updates, state: AmsgradState, params: object = None) -> tuple:
        count = state.count + 1
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
        mean, square = mu, nu_max
        if bias_correction:
            mean = optax.tree.bias_correction(mu, b1, count)
            square = optax.tree.bias_correction(nu_max, b2, count)
        changed = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mean, square)
        return changed, AmsgradState(count, mu, nu, nu_max)

    return optax.GradientTransformation(init, update)
