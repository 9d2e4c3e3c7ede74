"""Finds the answer to a question in a passage."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research.arguments import InputError
from research.data import questions
from research.tasks import span

WINDOWS = 8  # of a passage at a time


def make(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
    """Gives, to QUESTION, a tab and a PASSAGE, the "text" of the answer there, the character at
    which it has its "start", and as "score" how far its logits are above those of no answer;
    without an answer "text" is empty and "start" None."""
    data, task = run.config.data, run.config.task
    pairs = [prompt.split("\t", 1) for prompt in prompts]
    for prompt, pair_ in zip(prompts, pairs, strict=True):
        if len(pair_) < 2 or not pair_[1].strip():
            raise InputError(f"the prompt {prompt[:40]!r} is not QUESTION, a tab and a PASSAGE")
    asked, passages = [one[0] for one in pairs], [one[1] for one in pairs]
    sizes, each = (data.context, data.stride, data.max_question), list(range(len(pairs)))
    texts, _ = questions.tokenise(passages, asked, each, *sizes, tokenizer)
    names, longest = ("tokens", "segments", "types"), max_tokens or task.max_answer

    @jax.jit
    def search(variables: dict, row: dict) -> jax.Array:
        inputs = (row["tokens"], row["segments"], None, row["types"])
        logits = run.model.apply(variables, *inputs)[0]
        return span.search(logits, row["types"], longest)

    def answer(variables: dict, info: dict, chosen: range, keys: jax.Array) -> list[dict]:
        results = []
        for question in chosen:
            starts = texts.starts(question)
            found = []
            for begin in range(0, len(starts), WINDOWS):
                rows = [texts.row(question, at) for at in starts[begin : begin + WINDOWS]]
                rows += rows[-1:] * (WINDOWS - len(rows))  # one shape, one compilation
                stacked = {name: np.stack([row[name] for row in rows]) for name in names}
                found.append(np.asarray(search(variables, stacked)))
            row, start, end, score = span.choose(np.concatenate(found)[: len(starts)])
            text, at = texts.text(question, starts[row], start, end)
            if task.unanswerable and score < -task.threshold:
                text, at = "", None
            results.append({"text": text, "start": at, "score": score})
        return results

    return answer
