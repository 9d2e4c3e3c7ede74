"""Spectral norm regularisation (arXiv:1705.10941): the gradient of rate / 2 x (largest singular
value)^2 of every hidden matrix, by one power iteration an update.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.arguments import NonNegative
from research.optim import as_matrix, is_hidden, layerwise


class SpectralState(NamedTuple):
    """The right singular vector of each matrix, found over the updates."""

    vectors: Any


def make(rate: NonNegative = 1e-3) -> optax.GradientTransformation:
    """Adds rate x s u v^T to the gradient of each hidden matrix of singular value s."""

    def start(path: str, p: jax.Array) -> jax.Array:
        size = as_matrix(path, p)[1] if is_hidden(path, p) else 0
        v = jax.random.normal(tree.key_of(jax.random.key(0), path), (size,), p.dtype)
        return v / jnp.maximum(jnp.linalg.norm(v), 1e-12)

    def one(path: str, update: jax.Array, p: jax.Array, v: jax.Array) -> tuple:
        if not is_hidden(path, p):
            return update, v
        w = p.reshape(as_matrix(path, p))
        u = w @ v
        u = u / jnp.maximum(jnp.linalg.norm(u), 1e-12)
        v = w.T @ u  # its length is the singular value
        pull = jnp.outer(u, v).reshape(p.shape)
        return update + rate * pull, v / jnp.maximum(jnp.linalg.norm(v), 1e-12)

    def init(params: optax.Params) -> SpectralState:
        return SpectralState(tree.map_named(start, params))

    def update(updates: optax.Updates, state: SpectralState, params: optax.Params) -> tuple:
        pairs = tree.map_named(one, updates, params, state.vectors)
        changed, vectors = jax.tree.transpose(jax.tree.structure(updates), None, pairs)
        return changed, SpectralState(vectors)

    return layerwise(optax.GradientTransformation(init, update))
