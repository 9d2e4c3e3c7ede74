"""Adam's moments (arXiv:1412.6980); with `decay` behind it in the chain: AdamW (1711.05101)."""

import optax

from research.arguments import NonNegative, Rate


def make(
    b1: Rate = 0.9, b2: Rate = 0.999, eps: NonNegative = 1e-8, nesterov: bool = False
) -> optax.GradientTransformation:
    """Scales by bias-corrected moments; `lr` must follow in the chain."""
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps, nesterov=nesterov)
