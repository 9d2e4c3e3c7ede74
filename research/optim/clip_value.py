"""Clipping of each gradient element to [-limit, limit]."""

import optax

from research.arguments import Positive


def make(limit: Positive = 1.0) -> optax.GradientTransformation:
    """Clips elements; unlike clipping by a norm it changes the direction."""
    return optax.clip(limit)
