"""Tags words."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research.data import tags
from research.tasks import tag


def make(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
    """Gives "words", what stands between spaces, and their "tags"; where those are of entities,
    each of these: its "text", "type", and "words", the first one and the one behind it."""
    context = run.config.data.context
    split = [prompt.split() for prompt in prompts]
    apply = jax.jit(lambda v, *inputs: run.model.apply(v, *inputs)[0].argmax(-1))

    def label(variables: dict, info: dict, words: list[str]) -> dict:
        parts, _ = tags.divide([words], context, tokenizer)
        names = []
        for part in parts:  # one at a time: one shape, one compilation
            row = tags.fill(part, context)
            best = np.asarray(apply(variables, row["tokens"][None], row["segments"][None]))[0]
            names += [info["classes"][i] for i in best[part.places]]
        result = {"words": words, "tags": names}
        if tag.mark_entities(info["classes"]):
            result["entities"] = [
                {"text": " ".join(words[a:b]), "type": kind, "words": [a, b]}
                for a, b, kind in tag.entities(names)
            ]
        return result

    def answer(variables: dict, info: dict, chosen: range, keys: jax.Array) -> list[dict]:
        return [label(variables, info, split[index]) for index in chosen]

    return answer
