"""decode(model, variables, inputs, key, **config) -> predictions; a search needs no key."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Advance = Callable[[Array, Array, Any], tuple[Array, Any]]


def begin(
    model: Any, variables: dict, inputs: dict[str, Array], max_tokens: int
) -> tuple[Array, Any, Advance]:
    """Reads the prompts. Returns the logits (b, v) of what follows each, a cache with room for
    `max_tokens` more, whose leaves are (layers, b, ...), and advance(token_b, position_b, cache),
    which returns the logits behind a token and the cache with it.

    inputs: tokens (b, p), padded on the right with anything, and lengths (b,), each at least 1; for
    an encoder-decoder also inputs and input_segments (b, s).
    """
    prompt_bp, lengths_b = inputs["tokens"], inputs["lengths"]
    batch, width = prompt_bp.shape
    memory = ()
    if "inputs" in inputs:
        source = inputs["inputs"], inputs["input_segments"]
        memory = model.apply(variables, *source, method="encode")[0], source[1]
    cache, _ = model.apply(variables, batch, width + max_tokens, *memory, method="empty_cache")

    def logits_at(tokens: Array, positions: Array, cache: Any, last_b: Array) -> tuple[Array, Any]:
        (hidden, cache), _ = model.apply(variables, tokens, positions, cache, method="decode_step")
        hidden = jnp.take_along_axis(hidden, last_b[:, None, None], axis=1)
        logits, _ = model.apply(variables, hidden, method="logits")
        return logits[:, 0], cache

    def advance(token_b: Array, position_b: Array, cache: Any) -> tuple[Array, Any]:
        return logits_at(token_b[:, None], position_b[:, None], cache, jnp.zeros_like(position_b))

    # The padding's keys land in slots behind a row's own text; each is overwritten by a new token
    # before any query may see it.
    positions = jnp.broadcast_to(jnp.arange(width), prompt_bp.shape)
    logits_bv, cache = logits_at(prompt_bp, positions, cache, lengths_b - 1)
    return logits_bv, cache, advance


def until(row: np.ndarray, end: int) -> np.ndarray:
    """Returns the tokens of a decoded row before its first `end`."""
    ended = np.flatnonzero(row == end)
    return row[: ended[0]] if len(ended) else row
