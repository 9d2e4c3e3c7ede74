"""Heavy-ball and Nesterov momentum; with `lr` behind it in the chain: SGD with momentum."""

import optax

from research.arguments import Rate


def make(decay: Rate = 0.9, nesterov: bool = False) -> optax.GradientTransformation:
    """Adds `decay` times the last update, as torch.optim.SGD without dampening."""
    return optax.trace(decay=decay, nesterov=nesterov)
