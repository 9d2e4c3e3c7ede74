"""Texts and what they are to become: translation, answers, summaries; for an encoder-decoder.

    data = dict(name="pairs", path="multi30k", source="en", target="de")

The table's forms are those of table.py; the rows are those of corrupt.py's `pair`.
"""

import functools
import os
from pathlib import Path

import numpy as np

from research.arguments import Count, InputError, Size
from research.data import table
from research.data.corrupt import pair
from research.data.readers import Records
from research.data.source import Batch, Source, make_batches
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
    workers: Size = 0,
    cache: str | None = None,
    *,
    split: str,
    seed: int,
    batch: int,
) -> Source:
    """Returns batches of inputs, input_segments (batch, context) and tokens, targets, segments,
    weight (batch, target_context, None: context). One tokenizer, learned from both sides of the
    train split, serves both. info["cut"] counts the texts that were longer; `gold` are the targets
    as they were."""
    import jax

    fields = (source, target)
    found = table.read(path, split, columns, fields)
    if not found.rows:
        raise InputError(f"{path} has no rows for split {split}")

    def held(_: str) -> Records:
        train = found if split == "train" else table.read(path, "train", columns, fields)
        texts = [row[name] for row in train.rows for name in fields]
        return Records(len(texts), str, texts.__getitem__, digest(train.fingerprint, fields))

    root = Path(cache or os.environ.get("ANNEAL_CACHE") or "~/.cache/anneal").expanduser()
    codec = learn_tokenizer(held, tokenizer, vocab_size, tokenizer_path, root, 0)
    inputs, targets = (codec.encode([row[name] for row in found.rows], True) for name in fields)
    height = target_context or context
    row = functools.partial(_row, inputs, targets, codec, context, height)
    shapes = dict(inputs=context, input_segments=context)
    shapes |= dict(tokens=height, targets=height, segments=height, weight=height)
    kind = lambda name: np.float32 if name == "weight" else np.int32  # noqa: E731
    spec = {name: jax.ShapeDtypeStruct((batch, n), kind(name)) for name, n in shapes.items()}
    order = dict(seed=seed, shuffle=split == "train", repeat=split == "train", workers=workers)
    batches, rows = make_batches(row, len(inputs), spec=spec, batch=batch, **order)
    cut = sum(len(ids) >= context for ids in inputs) + sum(len(ids) >= height for ids in targets)
    info = dict(vocab_size=codec.vocab_size, tokenizer=codec.kind, cut=cut, context=context)
    info["tokenizer_fingerprint"] = codec.fingerprint
    info["fingerprint"] = digest(found.fingerprint, codec.fingerprint, context, height, fields)
    gold = [row[target] for row in found.rows]
    return Source(spec, info, -(-len(inputs) // batch), batches, rows, codec, gold)


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
