"""Muon (kellerjordan.github.io/posts/muon; at scale: arXiv:2502.16982): momentum, orthogonalised.

    muon = dict(scale="rms")    # Adam's learning rate and decay fit all parameters (Moonlight)
    muon = dict(rest_rate=0.015)   # lr 0.02 for matrices, 3e-4 for the rest (Keller Jordan)

The rest, whatever is no matrix between hidden layers, goes through Adam.
"""

import re
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.arguments import Count, InputError, NonNegative, Positive, Rate
from research.optim import NOT_HIDDEN, as_matrix, layerwise

# An odd polynomial, five times over, that takes singular values to between 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class MuonState(NamedTuple):
    """Updates so far, the momentum of everything, and Adam's second moment of the rest."""

    count: jax.Array
    mu: Any
    nu: Any


def make(
    momentum: Rate = 0.95,
    nesterov: bool = True,
    steps: Count = 5,
    scale: Literal["spectral", "rms", "none"] = "spectral",
    compute: Literal["fp32", "bf16"] = "fp32",
    eps: Positive = 1e-7,
    rest: tuple = (NOT_HIDDEN,),
    rest_rate: NonNegative = 1.0,
    b1: Rate = 0.9,
    b2: Rate = 0.95,
    rest_eps: NonNegative = 1e-8,
) -> optax.GradientTransformation:
    """Orthogonalises the momentum of each layer's matrices by `steps` of Newton and Schulz.

    `scale` multiplies by sqrt(max(1, outputs / inputs)), or by 0.2 sqrt(max(inputs, outputs)): an
    RMS of 0.2, as Adam's. `compute` "bf16" does the products in bfloat16. What has one axis, or a
    path that a regex of `rest` finds, goes through Adam (`b1`, `b2`, `rest_eps`), times
    `rest_rate`. Raises InputError for a regex that finds some layers of a stacked parameter only.
    """

    tree.check_patterns(rest, "config.optim.muon.rest")

    def is_rest(path: str, p: jax.Array) -> bool:
        names = tree.unrolled_paths(path, p)
        hits = [any(re.search(pattern, name) for pattern in rest) for name in names]
        if any(hits) and not all(hits):
            raise InputError(
                f"config.optim.muon.rest finds some layers of {path} only; name all of them"
            )
        return all(hits) or p.ndim - tree.stacked_axes(path) < 2

    def init(params: optax.Params) -> MuonState:
        second = lambda path, p: jnp.zeros_like(p) if is_rest(path, p) else None  # noqa: E731
        mu = jax.tree.map(jnp.zeros_like, params)
        return MuonState(jnp.zeros((), jnp.int32), mu, tree.map_named(second, params))

    def update(updates: optax.Updates, state: MuonState, params: optax.Params) -> tuple:
        count = state.count + 1
        others = {path for path, p in tree.flatten(params).items() if is_rest(path, p)}

        def first(path: str, g: jax.Array, m: jax.Array) -> jax.Array:
            decay = b1 if path in others else momentum
            return decay * m + (1 - decay) * g

        def second(path: str, g: jax.Array, v: Any) -> Any:
            return b2 * v + (1 - b2) * g * g if path in others else None

        def direction(path: str, g: jax.Array, m: jax.Array, v: Any) -> jax.Array:
            if path not in others:
                return momentum * m + (1 - momentum) * g if nesterov else m
            mean, square = m / (1 - b1**count), v / (1 - b2**count)
            return (rest_rate * mean / (jnp.sqrt(square) + rest_eps)).astype(g.dtype)

        def finish(path: str, u: jax.Array) -> jax.Array:
            if path in others:
                return u
            inputs, outputs = as_matrix(path, u)
            factor = {
                "spectral": max(1, outputs / inputs) ** 0.5,
                "rms": 0.2 * max(inputs, outputs) ** 0.5,
                "none": 1.0,
            }[scale]
            narrow = jnp.bfloat16 if compute == "bf16" else u.dtype
            return factor * orthogonalise(u.reshape(inputs, outputs), steps, eps, narrow).reshape(
                u.shape
            )

        mu = tree.map_named(first, updates, state.mu)
        nu = tree.map_named(second, updates, state.nu)
        ahead = tree.map_named(direction, updates, mu, nu)
        whole = layerwise(optax.stateless(lambda u, _: tree.map_named(finish, u)))
        changed, _ = whole.update(ahead, whole.init(params), params)
        return changed, MuonState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def orthogonalise(x: jax.Array, steps: int, eps: float, dtype: Any) -> jax.Array:
    """Returns about U V^T of x = U S V^T, by Newton-Schulz with factors in `dtype`."""

    def product(left: jax.Array, right: jax.Array) -> jax.Array:
        left, right = left.astype(dtype), right.astype(dtype)
        return jnp.matmul(left, right, precision="highest", preferred_element_type=x.dtype)

    # Sums in the type of x: in bfloat16 the coefficients would all be off to one side.
    a, b, c = COEFFICIENTS
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / jnp.maximum(jnp.linalg.norm(x), eps)
    for _ in range(steps):
        gram = product(x, x.T)
        x = a * x + product(b * gram + c * product(gram, gram), x)
    return x.T if is_tall else x
