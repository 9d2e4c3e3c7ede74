"""Decoupled weight decay (arXiv:1711.05101) by rules over parameter paths."""

from collections.abc import Callable

import jax
import optax

from research.arguments import InputError, NonNegative
from research.tree import check_patterns, rule_values


def make(rate: NonNegative = 0.1, rules: tuple = ()) -> optax.GradientTransformation:
    """Adds rate x multiplier x parameter to the update, before `lr` scales it.

    `rules` is an ordered tuple of (regex over the path, multiplier); no match means 1. Layers are
    addressed as `layers/3/attention/q`, scanned or not.
    """
    return penalty(lambda p: rate * p, rules, "decay")


def penalty(gradient: Callable, rules: tuple, name: str) -> optax.GradientTransformation:
    """Adds gradient(parameter) x multiplier to each update."""
    check_rules(rules, name)

    def update(updates: optax.Updates, state: optax.EmptyState, params: optax.Params) -> tuple:
        multipliers = rule_values(rules, params, 1.0)
        add = lambda u, p, m: u + (m * gradient(p)).astype(u.dtype)  # noqa: E731
        return jax.tree.map(add, updates, params, multipliers), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def check_rules(rules: tuple, name: str) -> None:
    """Raises InputError for what is no tuple of (regex, number)."""
    for rule in rules:
        is_pair = isinstance(rule, tuple | list) and len(rule) == 2
        if not is_pair or not isinstance(rule[0], str) or isinstance(rule[1], str):
            raise InputError(f"{name}.rules holds {rule!r}; expected (regex, multiplier)")
    check_patterns((pattern for pattern, _ in rules), f"{name}.rules")
