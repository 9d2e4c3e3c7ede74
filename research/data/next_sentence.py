"""Pairs of segments for BERT's two losses (arXiv:1810.04805, section 3.1): masked tokens, and
whether the second segment follows the first.

    data = dict(name="next_sentence", reader="files", path="texts", context=512)

A row is tokenizer.first, segment A, `end`, and with `types` 1 segment B and another `end`. Segments
are whole sentences: those of A follow each other in a document, and those of B follow A there
(`labels` 0) or each other in another document (1). Which of the two, where A ends, the other
document and the masks are drawn anew in each epoch, by the generator of the row.

A sentence ends with a line, or a space behind . ! ?; one longer than half a row is cut. So each
document is planned once as chunks of two sentences or more that fill a row. Of a chunk whose B
comes from elsewhere the rest is not seen in that epoch, a quarter of the text.
"""

import functools
import json
import re
import sys
from pathlib import Path
from typing import Annotated

import numpy as np

from research.arguments import Count, InputError, Range, Size
from research.data.corrupt import mask, mask_count
from research.data.readers import Records
from research.data.source import Batch, Source, cache_folder, cached, make_source
from research.data.text import digest, learn_tokenizer, open_array
from research.data.tokenizer import Kind, Tokenizer
from research.lookup import find

FORMAT = 1  # of the cache: raise it when what is written changes
DRAWS = 10  # of another sentence, until one has room
SENTENCE = re.compile(r".+?(?:[.!?]\s+|\n+|\Z)", re.S)


def make(
    reader: str = "stdlib",
    path: str | None = None,
    field: str = "text",
    tokenizer: Kind = "bpe",
    vocab_size: Count | None = None,
    tokenizer_path: str | None = None,
    context: Count = 128,
    mask_rate: Annotated[float, Range(0, 1, above=True, below=True)] = 0.15,
    whole_words: bool = False,
    workers: Size = 0,
    cache: str | None = None,
    *,
    split: str,
    seed: int,
    batch: int,
) -> Source:
    """Returns batches of tokens, targets, segments, types (batch, context) int32, weight (batch,
    context) float32, 1 on the `mask_rate` of the tokens that is masked, and labels (batch,) int32.

    "train" is shuffled without end; any other split is one pass with the same pairs and masks every
    time. `reader`, `path`, `field` and `cache` are those of text.py. info counts documents, those
    of them with a single sentence, which serve as another document only (`alone`), and sentences.
    Raises InputError for text without two documents, and RecordError for a corrupt one.
    """
    if context < 8:
        raise InputError(f"context={context} has no room for two segments; expected at least 8")
    read = functools.cache(lambda name: find("data.readers", reader)(path, name, field))
    root = cache_folder(cache)
    codec = learn_tokenizer(read, tokenizer, vocab_size, tokenizer_path, root, 0)
    key = digest(FORMAT, read(split).fingerprint, codec.fingerprint, context)
    store = cached(root / f"pairs-{key}", lambda to: _write(read(split), codec, context - 3, to))
    info = json.loads((store / "info.json").read_text())
    if info["documents"] < 2 or not info["pairs"]:
        raise InputError(
            f"split {split} has {info['documents']} documents with text, {info['alone']} of them of"
            " a single sentence; pairs need two documents, one with two sentences: give a folder "
            "of files, or a reader of many documents"
        )
    tokens = next(store.glob("tokens.*"))
    row = functools.partial(_row, tokens, store, codec, context, mask_rate, whole_words)
    names = ("tokens", "targets", "segments", "types", "weight")
    form, care = dict.fromkeys(names, (context,)), dict(batch=batch, seed=seed, workers=workers)
    info |= dict(
        vocab_size=codec.size_with(codec.mask, codec.first), context=context, tokenizer=codec.kind
    )
    info |= dict(num_types=2, predictions=mask_count(context - 3, mask_rate))
    info["tokenizer_fingerprint"] = codec.fingerprint
    info["fingerprint"] = digest(key, mask_rate, whole_words)
    return make_source(
        row, info["pairs"], [form | dict(labels=())], info, codec, split=split, **care
    )


def _write(records: Records, codec: Tokenizer, room: int, folder: Path) -> None:
    """Writes the tokens; where each sentence begins in them; which sentence each document begins
    with; first sentence of each chunk and the one behind it."""
    dtype = "uint16" if codec.vocab_size <= 1 << 16 else "uint32"
    sizes, documents, chunks, alone = [], [0], [], 0
    with open(folder / f"tokens.{dtype}", "wb") as file:
        for index in range(records.count):
            found = [text for text in SENTENCE.findall(records.read(index)) if text.strip()]
            parts = [
                part for ids in codec.encode(found, bare=True) for part in _cut(ids, room // 2)
            ]
            for part in parts:
                part.astype(dtype).tofile(file)
            chunks += [(a + len(sizes), b + len(sizes)) for a, b in _chunks(parts, room)]
            sizes += map(len, parts)
            documents += [len(sizes)] if parts else []
            alone += len(parts) == 1
    np.save(folder / "sentences.npy", np.cumsum([0, *sizes]))
    np.save(folder / "documents.npy", np.array(documents))
    np.save(folder / "chunks.npy", np.array(chunks, np.int64).reshape(-1, 2))
    info = dict(pairs=len(chunks), documents=len(documents) - 1, alone=alone, sentences=len(sizes))
    (folder / "info.json").write_text(json.dumps(info))
    print(f"tokenised {info['documents']} documents: {sum(sizes)} tokens", file=sys.stderr)


def _cut(ids: np.ndarray, longest: int) -> list[np.ndarray]:
    return np.array_split(ids, -(-len(ids) // longest)) if len(ids) else []


def _chunks(parts: list[np.ndarray], room: int) -> list[tuple[int, int]]:
    """Returns chunks of a document's sentences, of which two always have room. A last one that
    would be alone is with the one before it, a second time."""
    found, first, held = [], 0, 0
    for index, part in enumerate(parts):
        if held + len(part) > room:
            found.append((first, index))
            first, held = index, 0
        held += len(part)
    return found + ([(min(first, len(parts) - 2), len(parts))] if len(parts) > 1 else [])


def _pair(
    file: Path,
    store: Path,
    codec: Tokenizer,
    width: int,
    index: int,
    epoch: int,
    random: np.random.Generator,
) -> Batch:
    """A row without its first token, for mask()."""
    names = ("sentences", "documents", "chunks")
    sentences, documents, chunks = (open_array(store / f"{name}.npy") for name in names)
    first, last = chunks[index]
    cut, label = random.integers(first + 1, last), random.integers(2)
    room = width - 2 - (sentences[cut] - sentences[first])
    begin, stop = sentences[cut], sentences[last]
    if label:
        own = np.searchsorted(documents, first, "right") - 1
        for _ in range(DRAWS):
            other = random.integers(len(documents) - 2)
            other += other >= own
            start, behind = random.integers(*documents[other : other + 2]), documents[other + 1]
            begin = sentences[start]
            # Whole sentences, as of a B that follows: its length must not give it away.
            fits = np.searchsorted(sentences[start : behind + 1], begin + room, "right") - 1
            stop = sentences[start + fits]
            if fits:
                break
        else:
            stop = begin + room
    tokens, end = open_array(file), [codec.end]
    a, b = tokens[sentences[first] : sentences[cut]], tokens[begin:stop]
    whole = np.concatenate([a, end, b, end])
    row = {name: np.zeros(width, np.int32) for name in ("tokens", "segments", "types")}
    row["tokens"][: len(whole)] = whole
    row["segments"][: len(whole)] = 1
    row["types"][len(a) + 1 : len(whole)] = 1
    return row | dict(weight=row["segments"].astype(np.float32), labels=np.int32(label))


def _row(
    file: Path,
    store: Path,
    codec: Tokenizer,
    context: int,
    rate: float,
    whole_words: bool,
    index: int,
    epoch: int,
    random: np.random.Generator,
) -> Batch:
    pair = functools.partial(_pair, file, store, codec, context - 1)
    row = mask(pair, codec, rate, whole_words, index, epoch, random)
    first = codec.first
    before = dict(tokens=first, targets=first, segments=1, types=0, weight=0)
    return row | {name: np.append(value, row[name]) for name, value in before.items()}
