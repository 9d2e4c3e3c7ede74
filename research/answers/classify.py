"""Names the class of a text."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research.data import sentences


def make(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
    """Gives "label" and "probabilities"; the sentences of a pair are separated by a tab."""
    context = run.config.data.context
    apply = jax.jit(lambda v, *inputs: jax.nn.softmax(run.model.apply(v, *inputs)[0]))

    def row(prompt: str) -> dict[str, np.ndarray]:
        first, *second = tokenizer.encode(prompt.split("\t", 1), bare=True)
        return sentences.encode(first, second[0] if second else None, context, tokenizer)

    rows = [row(prompt) for prompt in prompts]

    def answer(variables: dict, info: dict, chosen: range, keys: jax.Array) -> list[dict]:
        names = ("tokens", "segments", "types")
        tokens, segments, types = (np.stack([rows[i][n] for i in chosen]) for n in names)
        chances = np.asarray(apply(variables, tokens, segments, None, types))
        named = [dict(zip(info["classes"], map(float, row), strict=True)) for row in chances]
        return [{"label": max(one, key=one.get), "probabilities": one} for one in named]

    return answer
