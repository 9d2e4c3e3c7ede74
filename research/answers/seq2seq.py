"""What a text becomes: its translation, its answer, its lost spans."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research.answers import decoder
from research.arguments import InputError
from research.data.corrupt import pair, span_shapes


def make(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
    """Gives the same as causal_lm; lost spans stand each behind the <extra_id_0>, <extra_id_1> ...
    that stands for it in the prompt."""
    data = run.config.data
    context, new = data.context, max_tokens or data.get("target_context") or data.context
    spans, count = data.get("objective") == "spans", 0
    if spans:
        count = span_shapes(context, data.mask_rate, data.span_length)[2]
    encoded = [tokenizer.encode_prompt(prompt, sentinels=count) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) >= context:
            raise InputError(
                f"the prompt {prompt[:40]!r} has {len(ids)} tokens, and {context - 1} have room; "
                "shorten it"
            )
    decode = decoder(run, tokenizer, numbers, spans)

    def answer(variables: dict, info: dict, chosen: range, keys: jax.Array) -> list[dict]:
        rows = [pair(encoded[i], encoded[i][:0], tokenizer, context, 1) for i in chosen]
        names = ("inputs", "input_segments")
        inputs = {name: np.stack([row[name] for row in rows]) for name in names}
        inputs["tokens"] = np.full((len(rows), 1), tokenizer.start, np.int32)
        inputs["lengths"] = np.ones(len(rows), np.int32)
        return decode(variables, inputs, keys, new)

    return answer
