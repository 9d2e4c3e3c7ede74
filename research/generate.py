"""Text from a trained workdir: prompts in, continuations out, jitted and cached."""

import functools
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import jax
import numpy as np

from research import build, workdir
from research import config as config_lib
from research.arguments import Count, InputError, NonNegative, Range, Seed, Size, check
from research.data import tokenizer as tokenizer_lib
from research.decode.sample import decode
from research.evaluate import restore_weights


def generate(
    folder: str,
    prompts: Iterable[str],
    *,
    step: str = "latest",
    weights: str | None = None,
    max_tokens: Count | None = None,
    temperature: NonNegative = 1.0,
    top_k: Size = 0,
    top_p: Annotated[float, Range(0, 1, above=True)] = 1.0,
    seed: Seed = 0,
    batch: int = 16,
    overrides: Sequence[str] = (),
) -> Iterator[dict]:
    """Yields {"prompt", "text", "tokens"} for each prompt, in order.

    A result depends on its prompt, the seed and its place in the order, not on the other prompts.
    A prompt continues inside a text; an empty one begins a text, as documents in training do: after
    an end token. `max_tokens` None: what the context has room for. Raises InputError for a prompt
    that leaves no room, a character the tokenizer does not know, or sampling numbers out of range.
    """
    prompts = list(prompts)
    hints = typing.get_type_hints(generate, include_extras=True)
    numbers = dict(temperature=temperature, top_k=top_k, top_p=top_p)
    for name, value in (numbers | dict(max_tokens=max_tokens, seed=seed)).items():
        check(value, hints[name], f"--{name.replace('_', '-')}")
    config = config_lib.override(workdir.existing_config(folder), overrides)
    run = build.build(config, with_data=False)
    tokenizer = tokenizer_lib.load(workdir.epath.Path(folder) / "tokenizer.json")
    context = config.model.context
    encoded = [ids if len(ids) else np.array([tokenizer.end]) for ids in tokenizer.encode(prompts)]
    for prompt, ids in zip(prompts, encoded, strict=True):
        room = context - len(ids)
        if room < (max_tokens or 1):
            raise InputError(
                f"the prompt {prompt[:40]!r} has {len(ids)} tokens and leaves room for "
                f"{max(room, 0)} in the context of {context}; shorten it, or lower --max-tokens"
            )
    numbers["top_k"] = min(top_k, config.model.vocab_size)
    new = max_tokens or context - min(map(len, encoded), default=0)
    compiled = jax.jit(
        functools.partial(decode, run.model, end=tokenizer.end), static_argnames="max_tokens"
    )
    with jax.set_mesh(run.mesh):
        variables, _ = restore_weights(folder, run, step, weights)
        key = jax.random.key(np.uint32(seed))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(len(prompts)))
        for start in range(0, len(prompts), batch):
            rows = encoded[start : start + batch]
            # Prompts are padded to a power of two: few shapes, few compilations.
            width = min(1 << (max(map(len, rows)) - 1).bit_length(), context)
            padded = np.full((len(rows), width), tokenizer.end, np.int32)
            for row, ids in zip(padded, rows, strict=True):
                row[: len(ids)] = ids
            lengths = np.array([len(ids) for ids in rows], np.int32)
            limits = np.minimum(new, context - lengths)
            inputs = {"tokens": padded, "lengths": lengths, "limits": limits}
            tokens = compiled(
                variables, inputs, keys[start : start + batch], max_tokens=new, **numbers
            )
            for prompt, row in zip(prompts[start : start + batch], np.asarray(tokens), strict=True):
                ended = np.flatnonzero(row == tokenizer.end)
                row = row[: ended[0]] if len(ended) else row
                yield {"prompt": prompt, "text": tokenizer.decode(row), "tokens": len(row)}
