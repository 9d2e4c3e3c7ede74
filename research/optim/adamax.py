"""Adamax (arXiv:1412.6980, section 7.1): Adam with the largest gradient as its second moment."""

import optax

from research.arguments import Positive, Rate


def make(b1: Rate = 0.9, b2: Rate = 0.999, eps: Positive = 1e-8) -> optax.GradientTransformation:
    """Scales the bias-corrected mean by 1 / the largest |gradient| + eps, which decays with b2."""
    return optax.scale_by_adamax(b1=b1, b2=b2, eps=eps)
