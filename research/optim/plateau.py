"""Reduce on plateau: the update shrinks when the training loss has not improved for a while.

    chain=("clip", "adam", "decay", "lr", "plateau"), plateau=dict(window=100, patience=5)

The optimizer sees the loss of its own batches only, so `window` of them are averaged first.
"""

from typing import Annotated

import optax

from research.arguments import Count, Fraction, NonNegative, Range, Size

Factor = Annotated[float, Range(0, 1, above=True, below=True)]


def make(
    window: Count = 100,
    patience: Count = 10,
    factor: Factor = 0.5,
    threshold: NonNegative = 1e-4,
    cooldown: Size = 0,
    lowest: Fraction = 0.0,
) -> optax.GradientTransformation:
    """Multiplies updates by a scale that starts at 1 and is multiplied by `factor` after `patience`
    windows whose mean loss is not below the best one by the part `threshold`; then waits `cooldown`
    windows, and never falls below `lowest`. The metric `learning_rate` is that of `lr`, without
    this scale."""
    return optax.contrib.reduce_on_plateau(
        factor=factor,
        patience=patience,
        rtol=threshold,
        cooldown=cooldown,
        accumulation_size=window,
        min_scale=lowest,
    )
