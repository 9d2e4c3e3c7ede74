"""Fills masked places: the likeliest token of each, all at once (BERT, arXiv:1810.04805)."""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def decode(model: Any, variables: dict, inputs: dict[str, Array], top: int) -> tuple[Array, Array]:
    """Returns the `top` likeliest tokens of each position (b, t, top) and their probabilities, for
    tokens and segments (b, t)."""
    logits_btv, _ = model.apply(variables, inputs["tokens"], inputs["segments"])
    if isinstance(logits_btv, tuple):  # with next-sentence prediction
        logits_btv = logits_btv[0]
    probability, token = jax.lax.top_k(jax.nn.softmax(logits_btv), top)
    return token.astype(jnp.int32), probability
