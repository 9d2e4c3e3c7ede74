"""Proximal L1 (ISTA; for adaptive optimizers decoupled, as weight decay is): exact zeros.

    chain=("clip", "adam", "lr", "proximal_l1")

After the step, each weight moves towards zero by learning rate x rate and stops there.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from research.arguments import InputError, NonNegative
from research.optim.decay import check_rules
from research.tree import rule_values


def make(rate: NonNegative = 1e-3, rules: tuple = ()) -> optax.GradientTransformationExtraArgs:
    """Soft-thresholds what the update leads to, by learning rate x rate x multiplier; `rules` as in
    decay. Must stand behind `lr`, raises InputError otherwise."""
    check_rules(rules, "proximal_l1")

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params,
        *,
        learning_rate: jax.Array | None = None,
        **_: Any,
    ) -> tuple:
        if learning_rate is None:
            raise InputError("config.optim.chain: proximal_l1 needs a learning rate; put it last")

        def one(u: jax.Array, p: jax.Array, multiplier: Any) -> jax.Array:
            to, threshold = p + u, learning_rate * rate * multiplier
            return jnp.sign(to) * jnp.maximum(jnp.abs(to) - threshold, 0.0) - p

        return jax.tree.map(one, updates, params, rule_values(rules, params, 1.0)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
