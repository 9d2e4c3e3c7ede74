"""make(run, tokenizer, prompts, max_tokens, numbers) -> answer(variables, info, chosen, keys)

What a model of the task of that name answers: a dict for each of the `chosen` prompts (a range of
places), each with its key. `numbers` are those of sampling, or beams and length_penalty; `info` is
that of the run's data, and its `workdir`. `make` raises InputError for a prompt that the model
cannot use.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research.decode import beam, sample, until


def decoder(run: Any, tokenizer: Any, numbers: dict, sentinels: bool = False) -> Callable:
    """Returns a function of variables, inputs, keys and the number of new tokens: an answer for
    each row, drawn, or with `beams` among the numbers searched for."""
    end, static = tokenizer.end, ("max_tokens",)
    draw = functools.partial(sample.decode, run.model, end=end)
    draw = jax.jit(draw, static_argnames=(*static, "top_k", "top_p"))
    search = functools.partial(beam.decode, run.model, end=end)
    search = jax.jit(search, static_argnames=(*static, "beams"))

    def text(row: np.ndarray) -> dict[str, Any]:
        row = until(row, end)
        return {"text": tokenizer.decode(row, sentinels), "tokens": len(row)}

    def decode(variables: dict, inputs: dict, keys: jax.Array, new: int) -> list[dict]:
        if "beams" not in numbers:
            tokens = draw(variables, inputs, keys, max_tokens=new, **numbers)
            return [text(row) for row in np.asarray(tokens)]
        found = map(np.asarray, search(variables, inputs, max_tokens=new, **numbers))
        return [text(row) | {"score": float(score)} for row, score in zip(*found, strict=True)]

    return decode


def padded(rows: list[np.ndarray], context: int, end: int) -> np.ndarray:
    """Prompts are padded to a power of two: few shapes, few compilations."""
    width = min(1 << (max(map(len, rows)) - 1).bit_length(), context)
    padded = np.full((len(rows), width), end, np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded
