"""Fills each [MASK] of a text."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research.answers import padded
from research.arguments import InputError
from research.data.tokenizer import MASK
from research.decode import fill


def make(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
    """Gives "text" with each [MASK] filled, and for each the five likeliest "candidates"."""
    context, mask = run.config.model.context, tokenizer.mask
    encoded = []
    before = tokenizer.encode([""])[0]  # of a package: [CLS], and then [SEP] behind
    if run.config.task.name == "pretrain":  # which has seen no text without
        before = [tokenizer.first]
    behind = [tokenizer.end] if len(before) else []
    for prompt in prompts:
        parts = before, tokenizer.encode_prompt(prompt, mask=True), behind
        encoded.append(np.concatenate(parts).astype(np.int32))
        if not (encoded[-1] == mask).any():
            raise InputError(f"the prompt {prompt[:40]!r} has no {MASK} to fill")
        if len(encoded[-1]) > context:
            raise InputError(
                f"the prompt {prompt[:40]!r} has {len(encoded[-1])} tokens, and {context} have "
                "room; shorten it"
            )
    compiled = jax.jit(functools.partial(fill.decode, run.model, top=5))

    def answer(variables: dict, info: dict, chosen: range, keys: jax.Array) -> list[dict]:
        rows = [encoded[index] for index in chosen]
        tokens, results = padded(rows, context, tokenizer.end), []
        segments = np.stack([np.arange(tokens.shape[1]) < len(row) for row in rows])
        inputs = {"tokens": tokens, "segments": segments.astype(np.int32)}
        best, chance = map(np.asarray, compiled(variables, inputs))
        for row, ids, probability in zip(rows, best, chance, strict=True):
            places = np.flatnonzero(row == mask)
            filled = row.copy()
            filled[places] = ids[places, 0]
            candidates = [
                {tokenizer.decode([i]): round(float(p), 4) for i, p in zip(*pair_, strict=True)}
                for pair_ in zip(ids[places], probability[places], strict=True)
            ]
            results.append({"text": tokenizer.decode(filled), "candidates": candidates})
        return results

    return answer
