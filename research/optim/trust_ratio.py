"""Trust ratios: LAMB (arXiv:1904.00962) behind Adam, LARS (arXiv:1708.03888) before momentum.

LAMB: chain=("adam", "decay", "trust_ratio", "lr")
LARS: chain=("trust_ratio", "lr", "momentum"), trust_ratio=dict(coefficient=1e-3, decay=1e-4)
"""

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.arguments import NonNegative, Positive
from research.optim.decay import check_rules


def make(
    coefficient: Positive = 1.0, eps: NonNegative = 0.0, decay: NonNegative = 0.0, rules: tuple = ()
) -> optax.GradientTransformation:
    """Scales the update of each parameter of each layer by coefficient |p| / (|u| + eps).

    `decay` is LARS's: the update becomes u + decay p, and its length counts as |u| + decay |p|.
    `rules` is an ordered tuple of (regex, 0 or 1); what has 0 (gains and biases in both papers) is
    neither scaled nor decayed. The ratio is 1 where a length is 0.
    """
    check_rules(rules, "trust_ratio")

    def one(path: str, u: jax.Array, p: jax.Array, chosen: object) -> jax.Array:
        axes = tuple(range(tree.stacked_axes(path), u.ndim))
        norm = lambda x: jnp.sqrt(jnp.sum(x * x, axes, keepdims=True))  # noqa: E731
        length, own = norm(p), norm(u) + decay * norm(p)
        known = (length > 0) & (own > 0)
        ratio = jnp.where(known, coefficient * length / jnp.where(known, own + eps, 1.0), 1.0)
        return jnp.where(chosen, ratio * (u + decay * p), u).astype(u.dtype)

    def update(updates: optax.Updates, params: optax.Params) -> optax.Updates:
        return tree.map_named(one, updates, params, tree.rule_values(rules, params, 1))

    return optax.stateless(update)
