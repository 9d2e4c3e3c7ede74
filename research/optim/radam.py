"""RAdam (arXiv:1908.03265): Adam that warms up by itself, as far as its variance is known."""

import optax

from research.arguments import NonNegative, Rate


def make(
    b1: Rate = 0.9, b2: Rate = 0.999, eps: NonNegative = 1e-8, threshold: NonNegative = 5.0
) -> optax.GradientTransformation:
    """Scales as Adam times the rectification; momentum alone while its length is below
    `threshold`."""
    return optax.scale_by_radam(b1=b1, b2=b2, eps=eps, threshold=threshold)
