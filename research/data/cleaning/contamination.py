"""Overlap with evaluation sets: word n-grams in common, as for GPT-3 (arXiv:2005.14165, app. C).

    steps = ("unicode", "contamination", ...), contamination = dict(path="evaluation/")

- drop: a document with such an n-gram goes (the n-gram of 13 words of GPT-3).
- cut: the n-grams go, with `margin` characters on both sides, and pieces below `margin` characters;
  more than `max_pieces` pieces, or none, and the document goes. What is left is joined by an empty
  line (GPT-3 made documents of the pieces).

An evaluation text of `min_ngram` words or more, but fewer than `ngram`, is looked for as a whole.
"""

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Literal

import numpy as np

from research.arguments import Count, InputError, Size
from research.data.cleaning import Cleaned, Step, remove
from research.data.shingles import ngrams, words
from research.lookup import find


def make(
    path: str | None = None,
    reader: str = "files",
    field: str = "text",
    ngram: Count = 13,
    min_ngram: Count = 8,
    action: Literal["drop", "cut"] = "drop",
    margin: Size = 200,
    max_pieces: Count = 10,
) -> Step:
    """Returns the step. `path` holds the evaluation texts, all of them (both splits), as `reader`
    reads them. Raises InputError if there are none that are long enough."""
    if path is None:
        raise InputError("contamination.path is missing; give the evaluation texts")
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    texts, fingerprint = _texts(path, reader, field)
    for text in texts:
        hashes = words(text).hashes
        if len(hashes) >= min(min_ngram, ngram):
            size = min(len(hashes), ngram)
            found[size].append(ngrams(hashes, size))
    if not found:
        given = f"contamination.path={path!r} has {len(texts)} texts, none of {min_ngram} words"
        raise InputError(f"{given}; set a smaller contamination.min_ngram")
    known = {size: np.unique(np.concatenate(found[size])) for size in sorted(found)}

    def clean(text: str) -> Cleaned:
        hashes, starts, ends = words(text)
        spans = []
        for size, grams in known.items():
            at = np.flatnonzero(_isin(ngrams(hashes, size), grams))
            spans += zip(starts[at].tolist(), ends[at + size - 1].tolist(), strict=True)
        if not spans:
            return Cleaned(text)
        if action == "drop":
            return remove("overlap")
        pieces = _pieces(text, sorted(spans), margin)
        if not 0 < len(pieces) <= max_pieces:
            return remove("overlap_in_many_places" if pieces else "overlap")
        return Cleaned("\n\n".join(pieces), {"overlap_cut": len(spans)})

    return Step(clean, fingerprint=fingerprint)


def _texts(path: str, reader: str, field: str) -> tuple[list[str], str]:
    texts, prints, errors = [], [], []
    root = Path(path).expanduser()
    # Every file, whatever split its name says: a test set is what this is for.
    lines = sorted(root.glob("*.jsonl")) if reader == "jsonl" and root.is_dir() else []
    for place, split in itertools.product(lines or [path], ("train", "validation")):
        try:
            records = find("data.readers", reader)(str(place), split, field)
        except InputError as error:  # a small set may have no text of one of them
            errors.append(error)
            continue
        texts += [records.read(index) for index in range(records.count)]
        prints.append(records.fingerprint)
    if not prints:
        raise InputError(f"contamination.path: {errors[0]}")
    return texts, " ".join(prints)


def _isin(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    # np.isin sorts both, where one is sorted already and much the longer.
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values


def _pieces(text: str, spans: list[tuple[int, int]], margin: int) -> list[str]:
    pieces, begin = [], 0
    for start, end in [*spans, (len(text) + margin, 0)]:
        piece = text[begin : max(start - margin, begin)].strip()
        if len(piece) >= max(margin, 1):
            pieces.append(piece)
        begin = max(begin, end + margin)
    return pieces
