"""Clipping by the global norm of all gradients (arXiv:1211.5063)."""

import optax

from research.arguments import Positive


def make(max_norm: Positive = 1.0) -> optax.GradientTransformation:
    """Scales the gradients so that their global norm is at most `max_norm`."""
    return optax.clip_by_global_norm(max_norm)
