"""Coupled L1: the subgradient of rate x |parameter|_1 joins the loss gradient.

Pulls weights towards zero but seldom onto it; `proximal_l1` does.
"""

import jax.numpy as jnp
import optax

from research.arguments import NonNegative
from research.optim.decay import penalty


def make(rate: NonNegative = 1e-5, rules: tuple = ()) -> optax.GradientTransformation:
    """Adds rate x multiplier x sign(parameter); `rules` as in decay."""
    return penalty(lambda p: rate * jnp.sign(p), rules, "l1")
