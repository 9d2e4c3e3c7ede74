"""Text for language models: read, tokenised once into a cache, cut into rows.

    data = dict(name="text", reader="files", path="input.txt", tokenizer="characters", context=256)

On disk a split is one array of ids: `end`, then every document and an `end` after it. Prediction j
of a split goes from token j to token j + 1, so each document is predicted from its first token to its
end, and every packing is a choice of spans of predictions:

- stream: windows of `context` over the whole array. Training shifts the cuts each epoch.
- documents: whole documents, the longer ones in pieces, packed by best fit (arXiv:2404.10830).
  `segments` (1, 2, ... in a row, 0 is padding) and `positions` keep them apart.
- none: the first `context` predictions of one document a row.
"""

import bisect
import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from research.arguments import Count, InputError, Size
from research.data import tokenizer as tokenizers
from research.data.readers import Records
from research.data.source import Batch, RecordError, Source, cached, make_batches, skip_record
from research.lookup import find

FORMAT = 1  # of the cache: raise it when what is written changes


def make(
    reader: str = "stdlib",
    path: str | None = None,
    field: str = "text",
    tokenizer: Literal["bytes", "characters", "bpe"] = "bpe",
    vocab_size: Count | None = None,
    tokenizer_path: str | None = None,
    context: Count = 128,
    packing: Literal["stream", "documents", "none"] = "stream",
    workers: Size = 0,
    skip_budget: Size = 0,
    cache: str | None = None,
    *,
    split: str,
    seed: int,
    batch: int,
) -> Source:
    """Returns batches of tokens, targets (batch, context) int32 and weight float32 (0 for padding).

    Packings "documents" and "none" add segments and positions (batch, context) int32. "train" is
    shuffled without end; any other split is one pass in order that predicts every token once.

    reader, path, field: a file of data/readers, where the text lies, the name of the text in a record.
    tokenizer, vocab_size: learned from the train split. tokenizer_path: a saved one instead.
    skip_budget: corrupt documents to leave out (0: the first is an error).
    cache: a folder for the ids (None: $ANNEAL_CACHE, else ~/.cache/anneal).

    info: num_tokens are the predictions of one pass, num_bytes the UTF-8 bytes they spell (None if
    packing "none" cut documents short), `skipped` the corrupt documents.
    Raises InputError for unusable text, RecordError for a corrupt document.
    """
    read = functools.partial(find("data.readers", reader), path, field=field)
    records = read(split=split)
    root = Path(cache or os.environ.get("ANNEAL_CACHE") or "~/.cache/anneal").expanduser()
    if tokenizer_path:
        codec = tokenizers.load(tokenizer_path)
        if vocab_size not in (None, codec.vocab_size):
            raise InputError(f"vocab_size={vocab_size}, but {tokenizer_path} has {codec.vocab_size}")
    elif tokenizer == "bytes":
        codec = tokenizers.train("bytes", [], vocab_size)
    else:
        source = records if split == "train" else read(split="train")
        codec = _learned(source, tokenizer, vocab_size, root, skip_budget)
    key = _digest(FORMAT, records.fingerprint, codec.fingerprint, split)
    store = cached(root / f"tokens-{key}", lambda to: _tokenise(records, codec, skip_budget, to))
    info = json.loads((store / "info.json").read_text())
    skipped: set[str] = set()
    for error in info["skipped"]:
        skip_record(error, skipped, skip_budget)
    tokens = next(store.glob("tokens.*"))
    num_tokens = len(_open(tokens)) - 1
    if num_tokens != info["num_tokens"]:
        raise InputError(f"the cache {store} is damaged; delete it")
    if num_tokens < (needed := 1 if packing == "none" else context):
        raise InputError(
            f"split {split} has {num_tokens} tokens, a row needs {needed}; give more text or set a "
            "smaller context"
        )
    train = split == "train"
    if packing == "stream":
        num_rows = -(-num_tokens // context)
        row = functools.partial(_window, tokens, context, seed if train else None)
    else:
        plan = cached(
            root / f"rows-{_digest(FORMAT, key, packing, context)}",
            lambda to: _plan(np.load(store / "offsets.npy"), context, packing, to),
        )
        num_rows = len(_open(plan / "rows.npy")) - 1
        row = functools.partial(_packed, tokens, context, plan)
        info["num_tokens"] = int(_open(plan / "spans.npy")[:, 1].sum())
        if info["num_tokens"] < num_tokens:
            info["num_bytes"] = None
    info |= dict(vocab_size=codec.vocab_size, context=context, tokenizer=codec.kind)
    info["fingerprint"] = _digest(key, packing, context)
    names = ["tokens", "targets", "weight", "segments", "positions"]
    spec = {
        name: jax.ShapeDtypeStruct((batch, context), np.float32 if name == "weight" else np.int32)
        for name in (names[:3] if packing == "stream" else names)
    }
    rule = dict(seed=seed, shuffle=train, repeat=train, workers=workers, skip_budget=skip_budget)
    batches = make_batches(row, num_rows, spec=spec, batch=batch, **rule)
    return Source(spec, info, -(-num_rows // batch), batches, codec)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _texts(records: Records, budget: int, skipped: set[str]) -> Iterator[str | None]:
    for index in range(records.count):
        try:
            yield records.read(index)
        except RecordError as error:
            skip_record(str(error), skipped, budget)
            yield None


def _learned(
    records: Records, kind: str, vocab_size: int | None, root: Path, budget: int
) -> tokenizers.Tokenizer:
    def write(folder: Path) -> None:
        texts = (text for text in _texts(records, budget, set()) if text is not None)
        tokenizers.train(kind, texts, vocab_size).save(folder / "tokenizer.json")

    key = _digest(FORMAT, records.fingerprint, kind, vocab_size)
    return tokenizers.load(cached(root / f"tokenizer-{key}", write) / "tokenizer.json")


def _tokenise(
    records: Records, codec: tokenizers.Tokenizer, budget: int, folder: Path
) -> None:
    """Writes the ids, where each document begins (its `end` included), and what was counted.

    A corrupt document stays in place with no tokens at all.
    """
    dtype = "uint16" if codec.vocab_size <= 1 << 16 else "uint32"
    skipped: set[str] = set()
    lengths, num_bytes = [np.ones(1, np.int64)], 0
    texts = _texts(records, budget, skipped)
    with open(folder / f"tokens.{dtype}", "wb") as file:
        np.array([codec.end], dtype).tofile(file)
        while chunk := list(itertools.islice(texts, 64)):
            ...
