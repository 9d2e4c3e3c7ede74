"""Adaptive gradient clipping (arXiv:2102.06171): a unit's gradient is small beside its weights."""

import re

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.arguments import Positive
from research.optim import as_matrix, is_matrix, layerwise


def make(
    limit: Positive = 0.01, epsilon: Positive = 1e-3, skip: tuple = (r"(^|/)head$",)
) -> optax.GradientTransformation:
    """Scales the gradient of each unit, the weights into one output, to a norm of at most `limit` x
    the norm of those weights (at least `epsilon`). Paths that match `skip` are left alone, as the
    paper does with the last layer (a tied one is `embed`); vectors are one unit."""
    tree.check_patterns(skip, "config.optim.agc.skip")

    def clip(path: str, u: jax.Array, p: jax.Array) -> jax.Array:
        if any(re.search(pattern, path) for pattern in skip):
            return u
        shape = as_matrix(path, u) if is_matrix(path, u) else (u.size, 1)
        norm = lambda x: jnp.sqrt(jnp.sum(x.reshape(shape) ** 2, 0))  # noqa: E731
        allowed = limit * jnp.maximum(norm(p), epsilon)
        scale = jnp.minimum(1.0, allowed / jnp.maximum(norm(u), 1e-12))
        return (u.reshape(shape) * scale).reshape(u.shape)

    return layerwise(optax.stateless(lambda updates, params: tree.map_named(clip, updates, params)))
