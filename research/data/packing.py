"""Which documents share a row: spans of predictions, planned from the lengths alone.

- documents: whole documents, the longer ones in pieces, packed by best fit (arXiv:2404.10830).
- none: one document a row, cut at `context`.
"""

import bisect
from pathlib import Path

import numpy as np


def write_plan(offsets: Path, context: int, packing: str, folder: Path) -> None:
    """Writes spans.npy (start, length) of predictions, and rows.npy, where each row begins in them.

    `offsets` is a file with the position of each document's first token, and of the array's end.
    """
    first = np.load(offsets)
    lengths = np.diff(first)
    if packing == "none":
        starts, sizes = first[:-1] - 1, np.minimum(lengths, context)
        row_of = np.arange(len(lengths))
    else:
        pieces = -(-lengths // context)
        document = np.repeat(np.arange(len(lengths)), pieces)
        skip = (np.arange(len(document)) - (np.cumsum(pieces) - pieces)[document]) * context
        starts = first[document] - 1 + skip
        sizes = np.minimum(lengths[document] - skip, context)
        row_of = best_fit(sizes, context)
    order = np.argsort(row_of, kind="stable")
    np.save(folder / "spans.npy", np.stack([starts, sizes], axis=1)[order])
    np.save(folder / "rows.npy", np.append(0, np.cumsum(np.bincount(row_of))))


def best_fit(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Returns the row of each piece: the longest first, each into the fullest row with room."""
    row_of = np.empty(len(sizes), np.int64)
    rows: dict[int, list[int]] = {}  # space left -> rows
    spaces: list[int] = []  # the keys of `rows`, sorted
    num_rows = 0
    for piece in np.argsort(-sizes, kind="stable"):
        at = bisect.bisect_left(spaces, sizes[piece])
        if at < len(spaces):
            space = spaces[at]
            row_of[piece] = rows[space].pop()
            if not rows[space]:
                del rows[space], spaces[at]
        else:
            space = capacity
            row_of[piece], num_rows = num_rows, num_rows + 1
        if space := space - int(sizes[piece]):
            if space not in rows:
                bisect.insort(spaces, space)
            rows.setdefault(space, []).append(row_of[piece])
    return row_of
