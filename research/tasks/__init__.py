"""make(**config) -> Task(loss, report).

loss(model, variables, batch, key, train) -> (loss_sum, weight), Aux(model_state, metrics)
report(totals, info) -> numbers of a whole split, from summed metrics and what the data says of it

A loss and every metric is a (sum, weight) pair: pairs add exactly over micro-batches, devices,
hosts and evaluation batches.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Aux(NamedTuple):
    """What a loss returns beside its (sum, weight)."""

    model_state: Any
    metrics: dict[str, tuple[Any, Any]]


class Task(NamedTuple):
    """Two pure functions; see the module's docstring for their signatures."""

    loss: Callable
    report: Callable
