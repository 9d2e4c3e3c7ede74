"""Text for language models: read, tokenised once into a cache, cut into rows.

    data = dict(name="text", reader="files", path="input.txt", tokenizer="characters", context=256)

On disk a split is one array of ids: `end`, then every document and an `end` after it. Prediction j
goes from token j to token j + 1, so each document is predicted from its first token to its `end`.
A row of any packing is a choice of spans of predictions:

- stream: windows of `context` over the whole array. Training shifts the cuts each epoch.
- documents, none: see packing.py (and for the `buckets` of none, order.py). `segments` (1, 2, ...
  in a row, 0 is padding) and `positions` keep the documents of a row apart.

What is to be predicted is the `objective`: each next token, masked ones, or spans (corrupt.py).
"""

import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from research.arguments import Count, InputError, Range, Size
from research.data import tokenizer as tokenizers
from research.data.corrupt import mask, mask_count, span_shapes, spans
from research.data.order import by_length, refuse_longer
from research.data.readers import Records
from research.data.source import (
    Batch,
    RecordError,
    Source,
    cache_folder,
    cached,
    make_source,
    skip_record,
)
from research.data.tokenizer import Kind, Tokenizer
from research.lookup import find

FORMAT = 1  # of the cache: raise it when what is written changes


def make(
    reader: str = "stdlib",
    path: str | None = None,
    field: str = "text",
    tokenizer: Kind = "bpe",
    vocab_size: Count | None = None,
    tokenizer_path: str | None = None,
    context: Count = 128,
    packing: Literal["stream", "documents", "none"] = "stream",
    objective: Literal["next", "masked", "spans"] = "next",
    mask_rate: Annotated[float, Range(0, 1, above=True, below=True)] = 0.15,
    whole_words: bool = False,
    span_length: Annotated[float, Range(1)] = 3.0,
    buckets: tuple[int, ...] = (),
    cut: bool | None = None,
    workers: Size = 0,
    skip_budget: Size = 0,
    cache: str | None = None,
    *,
    split: str,
    seed: int,
    batch: int,
) -> Source:
    """Returns batches of tokens, targets (batch, context) int32 and weight float32 (0 is padding),
    with packing "documents" or "none" also segments and positions (batch, context) int32.
    Objective "masked": targets are the tokens themselves and weight is 1 on the `mask_rate` of them
    that is masked; "spans": inputs, input_segments (batch, s), tokens, targets, segments and weight
    (batch, t), where s and t follow from `context`. Both add ids behind the tokenizer's own. With
    `buckets` a batch holds documents that fit one of them, the last being `context`, and is as
    wide. `cut` tells whether packing "none" cuts longer documents (None: without buckets).

    "train" is shuffled without end; any other split is one pass that predicts every token once.
    `reader` is a file of data/readers, `path` where its text lies, `field` the text's name in a
    record. The tokenizer is learned from the train split, or read from `tokenizer_path`. Up to
    `skip_budget` corrupt documents are left out, and listed in info["skipped"]. `cache` holds ids
    and tokenizers (None: $ANNEAL_CACHE, else ~/.cache/anneal).

    info["num_tokens"] are the predictions of one pass, info["num_bytes"] the UTF-8 bytes they spell
    (None when packing "none" cuts documents short, or the tokenizer loses spaces).
    Raises InputError for text that cannot be used, RecordError for a corrupt document.
    """
    read = functools.cache(lambda name: texts(name, reader, path, field))
    root = cache_folder(cache)
    codec = learn_tokenizer(read, tokenizer, vocab_size, tokenizer_path, root, skip_budget)
    key = digest(FORMAT, read(split).fingerprint, codec.fingerprint, split)
    store = root / f"tokens-{key}"
    cached(store, lambda to: _tokenise(read(split), codec, skip_budget, to))
    tokens, info = next(store.glob("tokens.*")), json.loads((store / "info.json").read_text())
    num_tokens, skipped = info["num_tokens"], set()
    for error in info["skipped"]:
        skip_record(error, skipped, skip_budget)
    if len(open_array(tokens)) != num_tokens + 1:
        raise InputError(f"the cache {store} is damaged; delete it")
    if num_tokens < (needed := 1 if packing == "none" else context):
        advice = "set a smaller context, or give more text"
        raise InputError(f"split {split} has {num_tokens} tokens, a row needs {needed}; {advice}")
    if buckets and packing != "none":
        raise InputError(f"config.data.buckets={buckets} need packing=none, not {packing}")
    names, by_bucket = ["tokens", "targets", "weight"], None
    if packing == "stream":
        num_rows = -(-num_tokens // context)
        row = functools.partial(_window, tokens, context, seed if split == "train" else None)
    else:
        from research.data.packing import write_plan

        plan = root / f"rows-{digest(FORMAT, key, packing, context)}"
        cached(plan, lambda to: write_plan(store / "offsets.npy", context, packing, to))
        num_rows = len(open_array(plan / "rows.npy")) - 1
        row = functools.partial(_packed, tokens, context, plan)
        if packing == "none":
            lengths = np.diff(open_array(store / "offsets.npy"))
            name = lambda index: read(split).name(index)  # noqa: E731
            refuse_longer(lengths, name, context, buckets, cut)
            by_bucket = by_length(lengths, context, buckets, batch, seed)
        names += ["segments", "positions"]
        info["num_tokens"] = int(open_array(plan / "spans.npy")[:, 1].sum())
        info["num_bytes"] = info["num_bytes"] if info["num_tokens"] == num_tokens else None
    info["num_bytes"] = info["num_bytes"] if codec.lossless else None
    special: list[int] = []
    if objective == "masked":
        # `first` too: the model may judge sentences later.
        row, special = functools.partial(mask, row, codec, mask_rate, whole_words), [codec.mask]
        special += [codec.first]
        names += ["segments", "positions"]
        info |= dict(predictions=mask_count(context, mask_rate), num_bytes=None)
    shapes = lambda width: dict.fromkeys(names, (width,))  # noqa: E731
    if objective == "spans":
        if packing == "documents":
            raise InputError("spans are cut from one text a row; set packing=stream or none")
        row = functools.partial(spans, row, codec, context, mask_rate, span_length)
        special = list(codec.sentinels(span_shapes(context, mask_rate, span_length)[2]))
        shapes = functools.partial(_span_shapes, mask_rate, span_length)
        info["num_bytes"] = None
    info |= dict(vocab_size=codec.size_with(*special), context=context, tokenizer=codec.kind)
    info["tokenizer_fingerprint"] = codec.fingerprint
    corruption = () if objective == "next" else (objective, mask_rate, whole_words, span_length)
    info["fingerprint"] = digest(key, packing, context, *corruption, *buckets)
    forms = [shapes(width) for width in buckets or (context,)]
    care = dict(workers=workers, skip_budget=skip_budget, order=by_bucket)
    supplied = dict(split=split, seed=seed, batch=batch)
    return make_source(row, num_rows, forms, info, codec, **supplied, **care)


def texts(split: str, reader: str, path: str | None, field: str, **more: object) -> Records:
    """Returns the texts of a split, by arguments of `make`."""
    return find("data.readers", reader)(path, split, field)


def _span_shapes(rate: float, mean: float, context: int) -> dict[str, tuple[int]]:
    width, height, _ = span_shapes(context, rate, mean)
    names = ("tokens", "targets", "segments", "weight")
    return dict(inputs=(width,), input_segments=(width,)) | dict.fromkeys(names, (height,))


def digest(*parts: object) -> str:
    """Returns a name for what is made of `parts`."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _texts(records: Records, budget: int, skipped: set[str]) -> Iterator[str | None]:
    for index in range(records.count):
        try:
            yield records.read(index)
        except RecordError as error:
            skip_record(str(error), skipped, budget)
            yield None


def learn_tokenizer(
    read: Callable[[str], Records],
    kind: str,
    vocab_size: int | None,
    saved: str | None,
    root: Path,
    budget: int,
) -> Tokenizer:
    """Returns the saved tokenizer, or the one learned from the train split, once."""
    if saved or kind == "bytes":
        return tokenizers.load(saved) if saved else tokenizers.train(kind, [], vocab_size)

    def write(folder: Path) -> None:
        texts = (text for text in _texts(read("train"), budget, set()) if text is not None)
        tokenizers.train(kind, texts, vocab_size).save(folder / "tokenizer.json")

    key = digest(FORMAT, read("train").fingerprint, kind, vocab_size)
    return tokenizers.load(cached(root / f"tokenizer-{key}", write) / "tokenizer.json")


def _tokenise(records: Records, codec: Tokenizer, budget: int, folder: Path) -> None:
    """Writes the ids, where each document begins in them, and what was counted."""
    dtype = "uint16" if codec.vocab_size <= 1 << 16 else "uint32"
    skipped: set[str] = set()
    texts = _texts(records, budget, skipped)
    lengths, num_bytes = [1], 0
    with open(folder / f"tokens.{dtype}", "wb") as file:
        np.array([codec.end], dtype).tofile(file)
        while chunk := list(itertools.islice(texts, 64)):
            num_bytes += sum(len(text.encode()) for text in chunk if text is not None)
            for text, ids in zip(chunk, codec.encode([text or "" for text in chunk]), strict=True):
                # A corrupt document stays in place, with no tokens at all.
                ids = np.append(ids, codec.end) if text is not None else ids
                ids.astype(dtype).tofile(file)
                lengths.append(len(ids))
    offsets = np.cumsum(lengths)
    np.save(folder / "offsets.npy", offsets)
    info = dict(num_tokens=int(offsets[-1]) - 1, num_bytes=num_bytes, num_documents=records.count)
    (folder / "info.json").write_text(json.dumps(info | dict(skipped=sorted(skipped))))
    print(f"tokenised {records.count} documents: {info['num_tokens']} tokens", file=sys.stderr)


@functools.lru_cache(maxsize=16)
def open_array(file: Path) -> np.ndarray:
    """Returns the array in a .npy, or in a file whose suffix is its type; it is not read whole."""
    # By name, not by value, so that a worker process maps the file instead of receiving it.
    if file.suffix == ".npy":
        return np.load(file, mmap_mode="r").view(np.ndarray)
    return np.memmap(file, file.suffix[1:], mode="r").view(np.ndarray)


@functools.lru_cache(maxsize=4)
def _phase(seed: int, epoch: int, context: int) -> int:
    return int(np.random.default_rng((seed, epoch, 0, 1)).integers(context))


def _window(
    file: Path, context: int, seed: int | None, index: int, epoch: int, random: np.random.Generator
) -> Batch:
    """Row `index` of the stream, a circle: the array ends in the `end` that it begins with."""
    tokens = open_array(file)
    total = len(tokens) - 1
    length = min(context, total - index * context)
    start = (index * context + (0 if seed is None else _phase(seed, epoch, context))) % total
    before = min(length, total - start)
    return _fill(tokens, [(start, before), (0, length - before)], context)


def _packed(
    file: Path, context: int, plan: Path, index: int, epoch: int, random: np.random.Generator
) -> Batch:
    first, last = open_array(plan / "rows.npy")[index : index + 2]
    return _fill(open_array(file), open_array(plan / "spans.npy")[first:last].tolist(), context)


def _fill(tokens: np.ndarray, spans: list[tuple[int, int]], context: int) -> Batch:
    """Returns the predictions of `spans` one after another, each a segment of its own."""
    names = ("tokens", "targets", "segments", "positions")
    row = {name: np.zeros(context, np.int32) for name in names}
    row["weight"] = np.zeros(context, np.float32)
    at = 0
    for number, (start, length) in enumerate(spans, 1):
        to = slice(at, at + length)
        row["tokens"][to] = tokens[start : start + length]
        row["targets"][to] = tokens[start + 1 : start + length + 1]
        row["weight"][to] = 1
        row["segments"][to] = number
        row["positions"][to] = np.arange(length)
        at += length
    return row
