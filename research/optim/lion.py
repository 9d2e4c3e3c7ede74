"""Lion (arXiv:2302.06675): the sign of a momentum; a third of Adam's lr, thrice its decay."""

import optax

from research.arguments import Rate


def make(b1: Rate = 0.9, b2: Rate = 0.99) -> optax.GradientTransformation:
    """Returns the sign of b1 x momentum + (1 - b1) x gradient; the momentum decays with `b2`."""
    return optax.scale_by_lion(b1=b1, b2=b2)
