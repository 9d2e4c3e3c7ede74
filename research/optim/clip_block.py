"""Clipping of each parameter's gradient or update by its root mean square (arXiv:1804.04235)."""

import optax

from research.arguments import Positive
from research.optim import layerwise


def make(limit: Positive = 1.0) -> optax.GradientTransformation:
    """Scales what has an RMS above `limit`, each parameter of each layer by itself."""
    return layerwise(optax.clip_by_block_rms(limit))
