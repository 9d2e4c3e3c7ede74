"""Soft orthogonality (arXiv:1810.09102): the gradient of rate / 4 x |W^T W - I|^2 of matrices."""

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.arguments import NonNegative
from research.optim import as_matrix, is_hidden, layerwise


def make(rate: NonNegative = 1e-4) -> optax.GradientTransformation:
    """Adds rate x W (W^T W - I) to the gradient of each hidden matrix, of whose two Gram matrices
    the smaller is meant."""

    def add(path: str, u: jax.Array, p: jax.Array) -> jax.Array:
        if not is_hidden(path, p):
            return u
        w = p.reshape(as_matrix(path, p))
        w = w if w.shape[0] >= w.shape[1] else w.T
        pull = w @ (w.T @ w - jnp.eye(w.shape[1], dtype=w.dtype))
        rows, columns = as_matrix(path, p)
        pull = pull if rows >= columns else pull.T
        return u + rate * pull.reshape(p.shape)

    return layerwise(optax.stateless(lambda updates, params: tree.map_named(add, updates, params)))
