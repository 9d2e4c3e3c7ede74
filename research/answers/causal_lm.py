"""Continues texts."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research.answers import decoder, padded
from research.arguments import InputError


def make(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
    """Gives "text" and its number of "tokens", with `beams` among the numbers also its "score". The
    prompt continues inside a text; an empty one begins a text, as documents in training do: after
    an end token."""
    context = run.config.model.context
    encoded = [ids if len(ids) else np.array([tokenizer.end]) for ids in tokenizer.encode(prompts)]
    for prompt, ids in zip(prompts, encoded, strict=True):
        room = context - len(ids)
        if room < (max_tokens or 1):
            raise InputError(
                f"the prompt {prompt[:40]!r} has {len(ids)} tokens and leaves room for "
                f"{max(room, 0)} in the context of {context}; shorten it, or lower --max-tokens"
            )
    new = max_tokens or context - min(map(len, encoded), default=0)
    decode = decoder(run, tokenizer, numbers)

    def answer(variables: dict, info: dict, chosen: range, keys: jax.Array) -> list[dict]:
        rows = [encoded[index] for index in chosen]
        tokens = padded(rows, context, tokenizer.end)
        lengths = np.array([len(ids) for ids in rows], np.int32)
        limits = np.minimum(new, context - lengths)
        inputs = {"tokens": tokens, "lengths": lengths, "limits": limits}
        return decode(variables, inputs, keys, new)

    return answer
