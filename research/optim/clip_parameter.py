"""Clipping of each parameter's gradient by its own norm, layer by layer."""

import jax
import jax.numpy as jnp
import optax

from research.arguments import Positive
from research.optim import layerwise


def make(max_norm: Positive = 1.0) -> optax.GradientTransformation:
    """Scales the gradient of each parameter of each layer to a norm of at most `max_norm`."""

    def clip(u: jax.Array) -> jax.Array:
        norm = jnp.sqrt(jnp.sum(u * u))
        return u * jnp.minimum(1.0, max_norm / jnp.maximum(norm, max_norm))

    return layerwise(optax.stateless(lambda updates, _: jax.tree.map(clip, updates)))
