"""The gradient of schedule-free learning (arXiv:2405.15682), between fast and average weights.

Belongs to optim/schedule_free.py, and stands last in the chain: sam moves the weights found here.
"""

from collections.abc import Callable
from typing import Any

import jax

from research.arguments import InputError
from research.gradients import Gradients


def make(grad_fn: Callable) -> Callable:
    """Takes the gradient at y = (1 - b1) z + b1 x, where x are the parameters; z and b1 are the
    optimizer's. Raises InputError when its chain has no `schedule_free`."""

    def at_y(state: Any, batch: dict, key: jax.Array) -> Gradients:
        is_it = lambda node: type(node).__name__ == "ScheduleFreeState"  # noqa: E731
        found = [x for x in jax.tree.leaves(state.opt_state, is_leaf=is_it) if is_it(x)]
        if len(found) != 1:
            raise InputError("config.gradients.chain has schedule_free; add it to optim.chain, too")
        b1, fast = found[0].b1, found[0].z
        between = lambda z, x: ((1 - b1) * z + b1 * x).astype(x.dtype)  # noqa: E731
        y = jax.tree.map(between, fast, state.params)
        return grad_fn(state._replace(params=y), batch, key)

    return at_y
