"""Answers from a trained workdir, prompt by prompt, jitted: texts are continued, answered or
translated, masks filled, classes named, words tagged, answers found in passages, as the run's task
has it."""

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any

import jax
import numpy as np

from research import build, workdir
from research import config as config_lib
from research.arguments import Count, InputError, NonNegative, Range, Seed, Size, check
from research.data import interactions, questions, sentences, tags
from research.data import tokenizer as tokenizer_lib
from research.data.corrupt import pair
from research.data.tokenizer import MASK
from research.decode import beam, fill, sample, until
from research.evaluate import restore_weights
from research.tasks import recommend, span, tag

WINDOWS = 8  # of a passage at a time


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
    """Yields a dict for each prompt, in order: "prompt" and

    - causal_lm: "text" and its number of "tokens". The prompt continues inside a text; an empty one
      begins a text, as documents in training do: after an end token.
    - seq2seq: the same, what the prompt becomes: its translation, its answer, its lost spans, each
      behind the <extra_id_0>, <extra_id_1> ... that stands for it in the prompt.
      With `beams` both are what a beam search found, and have its "score" (decode/beam.py;
      `length_penalty` None: 0.6); there is nothing to sample then.
    - masked_lm, pretrain: "text" with each [MASK] filled, and for each the five likeliest
      "candidates".
    - classify: "label" and "probabilities"; the sentences of a pair are separated by a tab.
    - tag: "words", what stands between spaces, and their "tags"; where those are of entities, each
      of these: its "text", "type", and "words", the first one and the one behind it.
    - span: QUESTION, a tab and a PASSAGE give the "text" of the answer there, the character at
      which it has its "start", and as "score" how far its logits are above those of no answer;
      without an answer "text" is empty and "start" None.
    - recommend: items separated by spaces, or by tabs where their names have spaces, give the
      task's `top` next "items", each with its probability.

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
    if task not in ANSWERS:
        raise InputError(f"generate has no answer for task {task!r}; {', '.join(ANSWERS)} have one")
    _refuse_beams(task, beams, length_penalty, numbers | dict(seed=seed))
    run = build.build(config, with_data=False)
    path = workdir.epath.Path(folder) / "tokenizer.json"
    tokenizer = None if task == "recommend" else tokenizer_lib.load(path)
    numbers["top_k"] = min(top_k, config.model.get("vocab_size") or top_k)
    if beams is not None:
        penalty = 0.6 if length_penalty is None else length_penalty
        numbers = dict(beams=beams, length_penalty=penalty)
    answer = ANSWERS[task](run, tokenizer, prompts, max_tokens, numbers)
    with jax.set_mesh(run.mesh):
        variables, _, info = restore_weights(folder, run, step, weights)
        key = jax.random.key(np.uint32(seed))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(len(prompts)))
        for start in range(0, len(prompts), batch):
            chosen = range(start, min(start + batch, len(prompts)))
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


def _continued(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
    context = run.config.model.context
    encoded = [ids if len(ids) else np.array([tokenizer.end]) for ids in tokenizer.encode(prompts)]
    for prompt, ids in zip(prompts, encoded, strict=True):
        room = context - len(ids)
        if room < (max_tokens or 1):
            raise InputError(
                f"the prompt {prompt[:40]!r} has {len(ids)} tokens and leaves room for "
                f"{max(room, 0)} in the context of {context}; shorten it, or lower --max-tokens"
            )
    new = max_tokens or context - min(map(len, encoded), default=0)
    decode = _decoder(run, tokenizer, numbers)

    def answer(variables: dict, info: dict, chosen: range, keys: jax.Array) -> list[dict]:
        rows = [encoded[index] for index in chosen]
        padded = _padded(rows, context, tokenizer.end)
        lengths = np.array([len(ids) for ids in rows], np.int32)
        limits = np.minimum(new, context - lengths)
        inputs = {"tokens": padded, "lengths": lengths, "limits": limits}
        return decode(variables, inputs, keys, new)

    return answer


def _answered(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
    data = run.config.data
    context, new = data.context, max_tokens or data.get("target_context") or data.context
    encoded = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    spans, size = data.get("objective") == "spans", run.config.model.vocab_size
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) and ids.max() >= size:
            raise InputError(
                f"the prompt {prompt[:40]!r} names a special token that the model does not have"
            )
        if len(ids) >= context:
            raise InputError(
                f"the prompt {prompt[:40]!r} has {len(ids)} tokens, and {context - 1} have room; "
                "shorten it"
            )
    decode = _decoder(run, tokenizer, numbers, spans)

    def answer(variables: dict, info: dict, chosen: range, keys: jax.Array) -> list[dict]:
        rows = [pair(encoded[i], encoded[i][:0], tokenizer, context, 1) for i in chosen]
        names = ("inputs", "input_segments")
        inputs = {name: np.stack([row[name] for row in rows]) for name in names}
        inputs["tokens"] = np.full((len(rows), 1), tokenizer.start, np.int32)
        inputs["lengths"] = np.ones(len(rows), np.int32)
        return decode(variables, inputs, keys, new)

    return answer


def _filled(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
    context, mask = run.config.model.context, tokenizer.mask
    encoded = []
    before = tokenizer.encode([""])[0]  # of a package: [CLS], and then [SEP] behind
    if run.config.task.name == "pretrain":  # which has seen no text without
        before = [tokenizer.first]
    behind = [tokenizer.end] if len(before) else []
    for prompt in prompts:
        parts = before, tokenizer.encode_prompt(prompt), behind
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
        tokens, results = _padded(rows, context, tokenizer.end), []
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


def _classified(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
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


def _tagged(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
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


def _found(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
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


def _recommended(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
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

    def answer(variables: dict, info: dict, chosen: range, keys: jax.Array) -> list[dict]:
        number = {name: index for index, name in enumerate(info["items"])}
        rows = [row(prompts[index], number) for index in chosen]
        batch = {name: np.stack([one[name] for one in rows]) for name in rows[0]}
        results = []
        for chances, ids in zip(*map(np.asarray, search(variables, batch)), strict=True):
            pairs = zip(ids, chances, strict=True)
            found = {info["items"][i]: float(chance) for i, chance in pairs if chance > 0}
            results.append({"items": found})
        return results

    return answer


ANSWERS = {
    "causal_lm": _continued,
    "seq2seq": _answered,
    "masked_lm": _filled,
    "pretrain": _filled,
    "classify": _classified,
    "tag": _tagged,
    "span": _found,
    "recommend": _recommended,
}


def _decoder(run: Any, tokenizer: Any, numbers: dict, sentinels: bool = False) -> Callable:
    """Returns a function of variables, inputs, keys and the number of new tokens: an answer for
    each row, drawn, or with `beams` among the numbers searched for."""
    end, static = tokenizer.end, ("max_tokens",)
    draw = functools.partial(sample.decode, run.model, end=end)
    draw = jax.jit(draw, static_argnames=static)
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


def _padded(rows: list[np.ndarray], context: int, end: int) -> np.ndarray:
    """Prompts are padded to a power of two: few shapes, few compilations."""
    width = min(1 << (max(map(len, rows)) - 1).bit_length(), context)
    padded = np.full((len(rows), width), end, np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded
