"""Answers from a trained workdir, prompt by prompt: texts are continued or translated, masks
filled, classes named, words tagged, answers and objects found, as answers/ has it for the run's
task."""

import inspect
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import jax
import numpy as np

from research import build, lookup, workdir
from research import config as config_lib
from research.arguments import Count, InputError, NonNegative, Range, Seed, Size, check
from research.data import tokenizer as tokenizer_lib
from research.evaluate import restore_weights

WITHOUT_TOKENS = ("recommend", "image_classification", "detection")  # prompts are no texts


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
    beams: Count | None = None,
    length_penalty: NonNegative | None = None,
    batch: int = 16,
    overrides: Sequence[str] = (),
) -> Iterator[dict]:
    """Yields a dict for each prompt, in order: "prompt" and what a file of answers/ gives to it:

    - causal_lm: "text" behind the prompt, and its number of "tokens"
    - seq2seq: the same, what the prompt becomes
    - masked_lm, pretrain: "text" with each [MASK] filled, and their "candidates"
    - classify: "label" and "probabilities"; a tab separates the sentences of a pair
    - tag: "words", "tags" and "entities"
    - span: of QUESTION, a tab and a PASSAGE the "text" of the answer, its "start" and "score"
    - recommend: of items their next "items"
    - image_classification: of the path of an image its "label" and "probabilities"
    - detection: of the path of an image file the "boxes" in it, and the path of a "picture" of them

    With `beams` texts are what a beam search found, and have their "score" (decode/beam.py;
    `length_penalty` None: 0.6); there is nothing to sample then.
    A result depends on its prompt, the seed and its place in the order, not on the other prompts.
    `max_tokens` None: what the context has room for, and of span the task's max_answer. Raises
    InputError for a prompt that leaves no room, a character or an item that the run does not know,
    numbers out of range, or sampling numbers beside `beams`.
    """
    prompts = list(prompts)
    hints = typing.get_type_hints(generate, include_extras=True)
    numbers = dict(temperature=temperature, top_k=top_k, top_p=top_p)
    others = dict(max_tokens=max_tokens, beams=beams, length_penalty=length_penalty, seed=seed)
    for name, value in (numbers | others).items():
        check(value, hints[name], f"--{name.replace('_', '-')}")
    config = config_lib.override(workdir.existing_config(folder), overrides)
    task = config.task.name
    if task not in (known := lookup.names("answers")):
        raise InputError(f"generate has no answer for task {task!r}; {', '.join(known)} have one")
    _refuse_beams(task, beams, length_penalty, numbers | dict(seed=seed))
    run = build.build(config, with_data=False)
    path = workdir.epath.Path(folder) / "tokenizer.json"
    tokenizer = None if task in WITHOUT_TOKENS else tokenizer_lib.load(path)
    numbers["top_k"] = min(top_k, config.model.get("vocab_size") or top_k)
    if beams is not None:
        penalty = 0.6 if length_penalty is None else length_penalty
        numbers = dict(beams=beams, length_penalty=penalty)
    make = lookup.find("answers", task)
    answer = make(run, tokenizer, prompts, max_tokens, numbers)
    with jax.set_mesh(run.mesh):
        variables, _, info = restore_weights(folder, run, step, weights)
        info = info | {"workdir": folder}
        key = jax.random.key(np.uint32(seed))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(len(prompts)))
    for start in range(0, len(prompts), batch):
        chosen = range(start, min(start + batch, len(prompts)))
        # Nothing is yielded with the mesh set: whoever stops asking would be left with it.
        with jax.set_mesh(run.mesh):
            found = answer(variables, info, chosen, keys[start : start + batch])
        for index, result in zip(chosen, found, strict=True):
            yield {"prompt": prompts[index]} | result


def _refuse_beams(
    task: str, beams: int | None, length_penalty: float | None, sampling: dict
) -> None:
    if beams is None and length_penalty is not None:
        raise InputError(f"--length-penalty={length_penalty} is of a beam search; add --beams=N")
    if beams is not None and task not in ("causal_lm", "seq2seq"):
        raise InputError(f"--beams={beams}: task {task} has one answer to search; leave it out")
    parameters = inspect.signature(generate).parameters
    for name, value in sampling.items() if beams is not None else ():
        if value != parameters[name].default:
            given = f"--{name.replace('_', '-')}={value}"
            raise InputError(f"{given} draws at random, --beams={beams} searches; leave out one")
