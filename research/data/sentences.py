"""Sentences, or pairs of them, with a class each: sentiment, acceptability, entailment.

    data = dict(name="sentences", path="sst2", columns=("sentence", "label"))

A row is tokenizer.first, the sentence, `end`, and of a pair the second sentence and another `end`,
whose `types` are 1. The table's forms are those of table.py.
"""

import functools
import sys
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from research.arguments import Count, InputError, Size
from research.data import corrections as corrections_lib
from research.data import table
from research.data.order import by_length, refuse_longer
from research.data.readers import Records
from research.data.source import Batch, Source, cache_folder, make_source
from research.data.text import digest, learn_tokenizer
from research.data.tokenizer import Kind, Tokenizer


def make(
    path: str | None = None,
    columns: tuple[str, ...] | None = None,
    text: str = "sentence",
    pair: str | None = None,
    label: str = "label",
    tokenizer: Kind = "bpe",
    vocab_size: Count | None = None,
    tokenizer_path: str | None = None,
    context: Count = 64,
    corrections: str | None = None,
    buckets: tuple[int, ...] = (),
    cut: bool | None = None,
    workers: Size = 0,
    cache: str | None = None,
    *,
    split: str,
    seed: int,
    batch: int,
) -> Source:
    """Returns batches of tokens, segments, types (batch, context) and labels (batch,) int32, and
    weight (batch,) float32. `columns` names those of a file without a header line; `text`, `pair`
    and `label` are columns. With `buckets` a batch holds rows that fit one of them, the last being
    `context`, and is as wide. `cut` tells whether longer texts are cut, the longer sentence of a
    pair first (None: without buckets). `corrections` is a file of other labels (corrections.py).

    info: labels, their number, and classes, their names in the order of their numbers, both of the
    train split, and corrected, how many rows have another label or none. Raises InputError for
    a label that the train split does not have.
    """
    fields = (text, label) if pair is None else (text, pair, label)
    found = table.read(path, split, columns, fields)
    train = found if split == "train" else table.read(path, "train", columns, fields)
    if context < 4:
        raise InputError(f"context={context} has no room for a text; expected at least 4")
    if not found.rows or not train.rows:
        raise InputError(f"{path} has no rows for split {split}")
    classes = sorted({row[label] for row in train.rows}, key=_order)
    number = {name: index for index, name in enumerate(classes)}
    names, changed, wanted = [row[label] for row in found.rows], 0, ()
    if corrections is not None:
        splits = _keys(found, train, path, columns, fields)
        names, changed, wanted = corrections_lib.correct(corrections, classes, splits)
        print(f"{corrections}: {changed} labels of split {split} corrected", file=sys.stderr)
        kept = [at for at, name in enumerate(names) if name is not None]
        found = found._replace(
            rows=[found.rows[at] for at in kept], names=[found.names[at] for at in kept]
        )
        names = [names[at] for at in kept]
        if not kept:
            raise InputError(f"{corrections} leaves out every row of split {split}")
    for name, where in zip(names, found.names, strict=True):
        if name not in number:
            raise InputError(
                f"{where}: label {name!r} is not among those of the train split: "
                + ", ".join(classes)
            )
    root = cache_folder(cache)
    held = table.texts(train, fields[:-1])
    codec = learn_tokenizer(lambda _: held, tokenizer, vocab_size, tokenizer_path, root, 0)
    first = codec.encode([row[text] for row in found.rows], bare=True)
    second = codec.encode([row[pair] for row in found.rows], bare=True) if pair else None
    labels = np.array([number[name] for name in names], np.int32)
    make_row = functools.partial(_row, first, second, labels, context, codec)
    lengths = np.array([len(ids) + 2 for ids in first])
    lengths += np.array([len(ids) + 1 for ids in second]) if pair else 0
    refuse_longer(lengths, found.names.__getitem__, context, buckets, cut)
    order = by_length(lengths, context, buckets, batch, seed)
    info = dict(labels=len(classes), classes=classes, context=context, corrected=changed)
    info["num_types"] = 1 if pair is None else 2
    info |= dict(vocab_size=codec.size_with(codec.mask, codec.first), tokenizer=codec.kind)
    info["tokenizer_fingerprint"] = codec.fingerprint
    parts = (found.fingerprint, codec.fingerprint, context, fields, classes, *buckets)
    # All corrections: those of another split too are part of the run.
    info["fingerprint"] = digest(*parts, *([] if corrections is None else [wanted]))
    wide = lambda size: dict.fromkeys(("tokens", "segments", "types"), (size,))  # noqa: E731
    forms = [wide(size) | dict(labels=(), weight=()) for size in buckets or (context,)]
    care = dict(split=split, batch=batch, seed=seed, workers=workers, order=order)
    made = make_source(make_row, len(labels), forms, info, codec, **care)
    return made._replace(gold=_examples(found, fields, labels))


def _examples(
    found: table.Table, fields: tuple[str, ...], labels: np.ndarray
) -> corrections_lib.Examples:
    *texts, label = fields

    def shown(index: int) -> dict[str, str]:
        return dict(zip(("text", "pair"), (found.rows[index][one] for one in texts), strict=False))

    given = lambda index: found.rows[index][label]  # noqa: E731
    return corrections_lib.Examples(labels, given, shown, found.names.__getitem__)


def texts(
    split: str,
    path: str | None,
    columns: tuple[str, ...] | None,
    text: str,
    pair: str | None,
    label: str,
    **more: object,
) -> Records:
    """Returns the texts of a split, by arguments of `make`."""
    fields = (text, label) if pair is None else (text, pair, label)
    return table.texts(table.read(path, split, columns, fields), fields[:-1])


def _keys(
    found: table.Table,
    train: table.Table,
    path: str | None,
    columns: tuple[str, ...] | None,
    fields: tuple[str, ...],
) -> Iterator[list[corrections_lib.Key]]:
    """Yields what corrections know the rows of a split by: of `found`, and then of others."""

    def keys(rows: list[dict[str, str]]) -> list[corrections_lib.Key]:
        *texts, label = fields
        return [(corrections_lib.digest([row[name] for name in texts]), row[label]) for row in rows]

    yield keys(found.rows)
    yield keys(train.rows)
    for split in ("validation", "test"):
        with suppress(InputError):  # there need not be one
            yield keys(table.read(path, split, columns, fields).rows)


def _order(name: str) -> tuple:
    """Numbers as numbers: 2 before 10."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


def encode(
    first: np.ndarray, second: np.ndarray | None, context: int, codec: Tokenizer
) -> dict[str, np.ndarray]:
    """Returns tokens, segments and types (context,) of a sentence or a pair."""
    room = context - 2 - (second is not None)
    if second is not None:  # the longer one gives way
        short = min(len(first), len(second))
        keep = max(room // 2, room - short)
        first, second = first[:keep], second[:keep]
        second = second[: room - len(first)]
    parts = [[codec.first], first[:room], [codec.end]]
    parts += [] if second is None else [second, [codec.end]]
    ids = np.concatenate(parts).astype(np.int32)
    row = {name: np.zeros(context, np.int32) for name in ("tokens", "segments", "types")}
    row["tokens"][: len(ids)] = ids
    row["segments"][: len(ids)] = 1
    if second is not None:
        row["types"][len(ids) - len(second) - 1 : len(ids)] = 1
    return row


def _row(
    first: list[np.ndarray],
    second: list[np.ndarray] | None,
    labels: np.ndarray,
    context: int,
    codec: Tokenizer,
    index: int,
    epoch: int,
    random: np.random.Generator,
) -> Batch:
    row = encode(first[index], second[index] if second else None, context, codec)
    return row | {"labels": labels[index], "weight": np.float32(1)}
