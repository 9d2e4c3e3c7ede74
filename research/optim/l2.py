"""Coupled L2: the gradient of rate / 2 x |parameter|^2 joins the loss gradient, before any moments.

`decay` behind the direction is the decoupled form (arXiv:1711.05101), mostly the better one.
"""

import optax

from research.arguments import NonNegative
from research.optim import decay


def make(rate: NonNegative = 1e-4, rules: tuple = ()) -> optax.GradientTransformation:
    """Adds rate x multiplier x parameter; `rules` as in decay."""
    return decay.make(rate, rules)
