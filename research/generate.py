"""Text from a trained workdir: prompts in, continuations out, jitted and cached."""

import functools
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from research import build, workdir
from research.arguments import InputError
from research.data import tokenizer as tokenizer_lib
from research.decode.sample import decode
from research.evaluate import restore_weights


def generate(
    folder: str,
    prompts: Iterable[str],
    *,
    step: str = "latest",
    weights: str | None = None,
    max_tokens: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch: int = 16,
) -> Iterator[dict]:
    """Yields {"prompt", "text", "tokens"} for each prompt, in order.

    `max_tokens` None: what the context has room for. Raises InputError for a prompt that leaves no
    room, a character the tokenizer does not know, or sampling numbers out of range.
    """
    prompts = list(prompts)
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0 or (max_tokens or 1) < 1:
        raise InputError(
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}, max_tokens={max_tokens}: "
            "expected temperature >= 0, top_k >= 0, 0 < top_p <= 1, max_tokens >= 1"
        )
    config = workdir.existing_config(folder)
    run = build.build(config, with_data=False)
    tokenizer = tokenizer_lib.load(workdir.epath.Path(folder) / "tokenizer.json")
    context = config.model.context
    # A text starts after an end token, in training as here.
    encoded = [ids if len(ids) else np.array([tokenizer.end]) for ids in tokenizer.encode(prompts)]
    for prompt, ids in zip(prompts, encoded, strict=True):
        room = context - len(ids)
        if room < (max_tokens or 1):
            raise InputError(
                f"the prompt {prompt[:40]!r} has {len(ids)} tokens and leaves room for "
                f"{max(room, 0)} in the context of {context}; shorten it, or lower --max-tokens"
            )
    numbers = dict(temperature=temperature, top_k=top_k, top_p=top_p)
    compiled = jax.jit(
        functools.partial(decode, run.model, end=tokenizer.end), static_argnames="max_tokens"
    )
    with jax.set_mesh(run.mesh):
        variables, _ = restore_weights(folder, run, step, weights)
        key = jax.random.key(seed)
        for start in range(0, len(prompts), batch):
            rows = encoded[start : start + batch]
            new = max_tokens or context - max(map(len, rows))
            # Prompts are padded to a power of two: few shapes, few compilations.
            width = min(1 << (max(map(len, rows)) - 1).bit_length(), context)
            padded = np.full((len(rows), width), tokenizer.end, np.int32)
            for row, ids in zip(padded, rows, strict=True):
                row[: len(ids)] = ids
            inputs = {"tokens": padded, "lengths": np.array([len(ids) for ids in rows], np.int32)}
            tokens = compiled(
                variables, inputs, jax.random.fold_in(key, start), max_tokens=new, **numbers
            )
            for prompt, row in zip(prompts[start : start + batch], np.asarray(tokens), strict=True):
                ended = np.flatnonzero(row == tokenizer.end)
                row = row[: ended[0]] if len(ended) else row
                yield {"prompt": prompt, "text": tokenizer.decode(row), "tokens": len(row)}
