"""SOAP (arXiv:2409.11321): Adam in the eigenbasis of Shampoo's statistics, layer by layer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.arguments import Count, NonNegative, Rate
from research.optim import as_matrix, is_matrix, layerwise


class SoapState(NamedTuple):
    """Updates so far, and all else by number of layers (optim.layerwise)."""

    count: jax.Array
    layers: Any


class Layer(NamedTuple):
    """The momentum; the second moment in the eigenbasis; per side the averages of G G^T and G^T G
    and their eigenvectors. None: no matrix, or a side larger than `max_dim`."""

    mu: Any
    nu: Any
    statistics: tuple[Any, Any]
    bases: tuple[Any, Any]


def make(
    b1: Rate = 0.95,
    b2: Rate = 0.95,
    shampoo_decay: Rate = 0.95,
    eps: NonNegative = 1e-8,
    frequency: Count = 10,
    max_dim: Count = 10_000,
) -> optax.GradientTransformation:
    """Scales the bias-corrected momentum as Adam, in a basis of slow change.

    The first update is zero: its gradient only makes the bases, as in the authors' code. They are
    refreshed by one step of power iteration and QR every `frequency` updates. A side longer than
    `max_dim` keeps the identity, and what is no matrix goes through plain Adam.
    """

    def sides(path: str, p: jax.Array) -> tuple[int | None, int | None]:
        turns = is_matrix(path, p)
        small = lambda size: size if turns and size <= max_dim else None  # noqa: E731
        inputs, outputs = as_matrix(path, p)
        return small(inputs), small(outputs)

    def squares(make_: Any, params: Any) -> tuple[Any, Any]:
        def side(which: int) -> Any:
            def one(path: str, p: jax.Array) -> Any:
                size = sides(path, p)[which]
                return None if size is None else make_(size, p.dtype)

            return tree.map_named(one, params)

        return side(0), side(1)

    def init(params: Any) -> Layer:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
        statistics = squares(lambda n, dtype: jnp.zeros((n, n), dtype), params)
        return Layer(
            zeros(), zeros(), statistics, squares(lambda n, dtype: jnp.eye(n, dtype=dtype), params)
        )

    def step(updates: Any, state: Layer, params: Any, *, count: jax.Array, **_: Any) -> tuple:
        begins = count == 0  # of no layer in particular: the branches below stay branches

        def turned(path: str, x: jax.Array, left: Any, right: Any) -> jax.Array:
            m = _times(left, x.reshape(as_matrix(path, x)), right)
            return m.reshape(x.shape)

        def statistic(which: int) -> Any:
            def one(path: str, g: jax.Array, old: Any) -> Any:
                if old is None:
                    return None
                m = g.reshape(as_matrix(path, g))
                new = _product(m, m.T) if which == 0 else _product(m.T, m)
                return shampoo_decay * old + (1 - shampoo_decay) * new

            return tree.map_named(one, updates, state.statistics[which])

        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        inside = tree.map_named(turned, updates, *state.bases)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, inside)
        mu, nu = jax.tree.map(lambda new, old: jnp.where(begins, old, new), (mu, nu), state[:2])
        steps = jnp.maximum(count, 1)
        mean, square = (optax.tree.bias_correction(x, b, steps) for x, b in ((mu, b1), (nu, b2)))
        mean = tree.map_named(turned, mean, *state.bases)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mean, square)
        scaled = jax.tree.map(lambda u: jnp.where(begins, 0.0, u).astype(u.dtype), scaled)
        flipped = [jax.tree.map(lambda q: q.T, basis) for basis in state.bases]
        changed = tree.map_named(turned, scaled, *flipped)

        statistics = (statistic(0), statistic(1))

        def begin(statistics: Any, bases: Any, nu: Any) -> tuple:
            return jax.tree.map(lambda s: jnp.linalg.eigh(s)[1][:, ::-1], statistics), nu

        def refresh(statistics: Any, bases: Any, nu: Any) -> tuple:
            # The largest first: from any other order, QR would turn the basis over.
            order = jax.tree.map(_order, statistics, bases)
            sort = lambda s, q, o: jnp.linalg.qr(_product(s, q[:, o]))[0]  # noqa: E731
            return jax.tree.map(sort, statistics, bases, order), tree.map_named(
                permuted, nu, *order
            )

        def permuted(path: str, v: jax.Array, left: Any, right: Any) -> jax.Array:
            m = v.reshape(as_matrix(path, v))
            m = m if left is None else m[left]
            return (m if right is None else m[:, right]).reshape(v.shape)

        keep = lambda statistics, bases, nu: (bases, nu)  # noqa: E731
        which = jnp.where(begins, 0, jnp.where(count % frequency == 0, 1, 2))
        bases, nu = jax.lax.switch(which, [begin, refresh, keep], statistics, state.bases, nu)
        return changed, Layer(mu, nu, statistics, bases)

    inner = layerwise(optax.GradientTransformationExtraArgs(init, step))

    def start(params: optax.Params) -> SoapState:
        return SoapState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates: optax.Updates, state: SoapState, params: optax.Params) -> tuple:
        changed, layers = inner.update(updates, state.layers, params, count=state.count)
        return changed, SoapState(state.count + 1, layers)

    return optax.GradientTransformation(start, update)


def _order(statistic: jax.Array, basis: jax.Array) -> jax.Array:
    """Returns the columns of a basis by how much of the statistic they hold, the most first."""
    return jnp.argsort(-jnp.sum(basis * _product(statistic, basis), axis=0))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")


def _times(left: Any, x: jax.Array, right: Any) -> jax.Array:
    """Returns left^T x right; None is the identity."""
    x = x if left is None else _product(left.T, x)
    return x if right is None else _product(x, right)
