"""Learning rates of their own for parameters, by rules over their paths.

    chain=("clip", "adam", "multiply", "decay", "lr"), multiply=dict(rules=(("embed$", 0.1),))

In front of `decay` it leaves the decay alone. 0 stops a parameter, but keeps its optimizer state:
`config.freeze` drops both.
"""

import jax
import optax

from research.optim.decay import check_rules
from research.tree import rule_values


def make(rules: tuple = ()) -> optax.GradientTransformation:
    """Multiplies each update by the value of the first rule (regex, multiplier) that matches; no
    match means 1. Layers are addressed as `layers/3/attention/q`, scanned or not."""
    check_rules(rules, "multiply")

    def update(updates: optax.Updates, state: optax.EmptyState, params: object = None) -> tuple:
        values = rule_values(rules, updates, 1.0)
        return jax.tree.map(lambda u, m: (u * m).astype(u.dtype), updates, values), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
