"""Names the likeliest next items."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research.arguments import InputError
from research.data import interactions
from research.tasks import recommend


def make(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
    """Gives the `top` next "items", each with its probability, to items separated by spaces, or
    by tabs where their names have spaces."""
    context, task = run.config.data.context, run.config.task

    @jax.jit
    def search(variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        inputs = (batch[name] for name in ("tokens", "segments", "positions"))
        hidden, head = run.model.apply(variables, *inputs, method="encode")[0]
        where = (recommend.last(batch["segments"] > 0), task.vocab_size, task.exclude_history)
        scores = recommend.score(hidden, head, batch, *where)
        return jax.lax.top_k(jax.nn.softmax(scores), min(task.top, task.vocab_size))

    def row(prompt: str, number: dict[str, int]) -> dict[str, np.ndarray]:
        names = prompt.split("\t") if "\t" in prompt else prompt.split()
        for name in names:
            if name not in number:
                raise InputError(
                    f"the item {name!r} of the prompt {prompt[:40]!r} is not among the "
                    f"{len(number)} that the run was trained with; leave it out"
                )
        if not names:
            raise InputError(f"the prompt {prompt[:40]!r} has no items; name some")
        return interactions.encode(np.array([number[name] for name in names]), context)

    rows: list[dict[str, np.ndarray]] = []

    def answer(variables: dict, info: dict, chosen: range, keys: jax.Array) -> list[dict]:
        if not rows:  # all of them, before the first answer is given
            number = {name: index for index, name in enumerate(info["items"])}
            rows.extend(row(prompt, number) for prompt in prompts)
        batch = {name: np.stack([rows[i][name] for i in chosen]) for name in rows[0]}
        results = []
        for chances, ids in zip(*map(np.asarray, search(variables, batch)), strict=True):
            pairs = zip(ids, chances, strict=True)
            found = {info["items"][i]: float(chance) for i, chance in pairs if chance > 0}
            results.append({"items": found})
        return results

    return answer
