"""Adadelta (arXiv:1212.5701): steps as long as the last ones; usual with a learning rate of 1."""

import optax

from research.arguments import Positive, Rate


def make(rho: Rate = 0.9, eps: Positive = 1e-6) -> optax.GradientTransformation:
    """Scales by the RMS of earlier updates over that of gradients, both averaged with `rho`."""
    return optax.scale_by_adadelta(rho=rho, eps=eps)
