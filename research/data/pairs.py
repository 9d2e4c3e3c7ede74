"""Texts and what they are to become: translation, answers, summaries; for an encoder-decoder.

    data = dict(name="pairs", path="multi30k", source="en", target="de")

The table's forms are those of table.py; the rows are those of corrupt.py's `pair`.
"""

import functools

import numpy as np

from research.arguments import Count, InputError, Size
from research.data import table
from research.data.corrupt import pair
from research.data.order import by_length, refuse_longer
from research.data.readers import Records
from research.data.source import Batch, Source, cache_folder, make_source
from research.data.text import digest, learn_tokenizer
from research.data.tokenizer import Kind, Tokenizer


def make(
    path: str | None = None,
    columns: tuple[str, ...] | None = None,
    source: str = "source",
    target: str = "target",
    tokenizer: Kind = "bpe",
    vocab_size: Count | None = None,
    tokenizer_path: str | None = None,
    context: Count = 64,
    target_context: Count | None = None,
    buckets: tuple[int, ...] = (),
    cut: bool | None = None,
    workers: Size = 0,
    cache: str | None = None,
    *,
    split: str,
    seed: int,
    batch: int,
) -> Source:
    """Returns batches of inputs, input_segments (batch, context) and tokens, targets, segments,
    weight (batch, target_context, None: context). One tokenizer, learned from both sides of the
    train split, serves both. info["cut"] counts the texts that were longer. With `buckets` a batch
    holds pairs both of whose texts fit one of them, the last being `context`, and both sides are as
    wide. `cut` tells whether longer texts are cut (None: without buckets). `gold` are the targets
    as they were."""
    fields = (source, target)
    found = table.read(path, split, columns, fields)
    if not found.rows:
        raise InputError(f"{path} has no rows for split {split}")

    def held(_: str) -> Records:
        train = found if split == "train" else table.read(path, "train", columns, fields)
        return table.texts(train, fields)

    root = cache_folder(cache)
    codec = learn_tokenizer(held, tokenizer, vocab_size, tokenizer_path, root, 0)
    inputs, targets = (codec.encode([row[name] for row in found.rows], True) for name in fields)
    height = target_context or context
    if buckets and height != context:
        raise InputError(
            f"config.data.target_context={height}: with buckets both texts of a pair are as wide; "
            f"leave it out, or set it to the context of {context}"
        )
    row = functools.partial(_row, inputs, targets, codec, context, height)
    lengths = [np.array([len(ids) + 1 for ids in side]) for side in (inputs, targets)]
    for one, room in zip(lengths, (context, height), strict=True):
        refuse_longer(one, found.names.__getitem__, room, buckets, cut)
    order = by_length(np.maximum(*lengths), context, buckets, batch, seed)
    number = sum(len(ids) >= context for ids in inputs) + sum(len(ids) >= height for ids in targets)
    info = dict(vocab_size=codec.vocab_size, tokenizer=codec.kind, cut=number, context=context)
    info["tokenizer_fingerprint"] = codec.fingerprint
    parts = (found.fingerprint, codec.fingerprint, context, height, fields, *buckets)
    info["fingerprint"] = digest(*parts)
    forms = [_form(width, width) for width in buckets] or [_form(context, height)]
    care = dict(split=split, batch=batch, seed=seed, workers=workers, order=order)
    made = make_source(row, len(inputs), forms, info, codec, **care)
    return made._replace(gold=[row[target] for row in found.rows])


def texts(
    split: str,
    path: str | None,
    columns: tuple[str, ...] | None,
    source: str,
    target: str,
    **more: object,
) -> Records:
    """Returns the texts of a split, by arguments of `make`."""
    fields = (source, target)
    return table.texts(table.read(path, split, columns, fields), fields)


def _form(width: int, height: int) -> dict[str, tuple[int, ...]]:
    names = ("tokens", "targets", "segments", "weight")
    return dict(inputs=(width,), input_segments=(width,)) | dict.fromkeys(names, (height,))


def _row(
    inputs: list[np.ndarray],
    targets: list[np.ndarray],
    codec: Tokenizer,
    width: int,
    height: int,
    index: int,
    epoch: int,
    random: np.random.Generator,
) -> Batch:
    return pair(inputs[index], targets[index], codec, width, height)
