"""Who took what, and when: sequences of items, each to be continued (SASRec, arXiv:1808.09781).

    data = dict(name="interactions", path="ratings.csv", columns=("user", "item", "rating", "time"))

One file, an interaction a line: TSV, CSV, or MovieLens' `1::1193::5::978300760`; it may be a .gz.
Users and items with fewer than `core` interactions are left out, again and again until there are
none. Of each user's items, in the order of their times (and, where these are equal, of the file),
the last is the test, the one before it the validation, the rest is learned from.
path="synthetic" needs no file: a Markov chain of 60 items, the same every time.
"""

import csv
import functools
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.arguments import Count, InputError, Size
from research.data.readers import decode
from research.data.source import Batch, Source, make_source
from research.data.table import read_bytes
from research.data.text import digest

HELD = {"train": 2, "validation": 1, "test": 0}  # of a user's last items, how many a split leaves


class Sequences(NamedTuple):
    """The items of all users, one user after the other, each in the order of time."""

    ids: np.ndarray  # int32
    starts: np.ndarray  # where each user's begin, and the end
    names: list[str]  # of the items, in the order of their ids


def make(
    path: str | None = None,
    columns: tuple[str, ...] | None = None,
    user: str = "user",
    item: str = "item",
    time: str = "time",
    core: Count = 5,
    context: Count = 200,
    workers: Size = 0,
    *,
    split: str,
    seed: int,
    batch: int,
) -> Source:
    """Returns batches of tokens, targets, segments, positions (batch, context) int32 and weight
    float32: a row is a user's last `context` items and what followed each. The weight is 1 at what
    is to be predicted: in "train" every item, in "validation" and "test" the one that is held out.
    Positions end at context - 1, so that the last item always has the same. `columns` names those
    of a file without a header line; `user`, `item` and `time` are columns.

    info: vocab_size, the number of items, and items, their names in the order of their numbers.
    Raises InputError for lines that do not fit, and for data of which nothing is left.
    """
    if split not in HELD:
        raise InputError(f"split={split!r} is not known here; expected {', '.join(HELD)}")
    users, items, times = (
        _synthetic() if path == "synthetic" else _read(path, columns, user, item, time)
    )
    found = sequences(users, items, times, core)
    lengths = np.diff(found.starts)
    # Two items make a prediction; who has fewer than three is learned from, and not judged by.
    kept = np.where(lengths < 3, lengths if split == "train" else 0, lengths - HELD[split])
    chosen = np.flatnonzero(kept >= 2)
    if not len(chosen):
        raise InputError(f"{path}: with core={core} no user is left for split {split}; lower it")
    row = functools.partial(_row, found.ids, found.starts[chosen], kept[chosen], context, split)
    names = ("tokens", "targets", "segments", "positions", "weight")
    info = dict(vocab_size=len(found.names), context=context, items=found.names)
    info |= dict(users=len(lengths), interactions=len(found.ids))
    content = (found.ids.tobytes(), found.starts.tobytes(), found.names)
    info["fingerprint"] = digest(*content, context, split)
    form, care = dict.fromkeys(names, (context,)), dict(batch=batch, seed=seed, workers=workers)
    return make_source(row, len(chosen), [form], info, None, split=split, **care)


def sequences(users: np.ndarray, items: np.ndarray, times: np.ndarray, core: int) -> Sequences:
    """Returns the sequences of all users and items with at least `core` interactions each."""
    (_, user), (names, item) = (np.unique(x, return_inverse=True) for x in (users, items))
    kept = np.ones(len(user), bool)
    while True:
        enough = [
            np.bincount(x[kept], minlength=x.max(initial=0) + 1) >= core for x in (user, item)
        ]
        still = kept & enough[0][user] & enough[1][item]
        if still.sum() == kept.sum():
            break
        kept = still
    user, item, times = user[kept], item[kept], times[kept]
    used, item = np.unique(item, return_inverse=True)
    order = np.lexsort((times, user))  # stable: equal times keep the order of the file
    _, counts = np.unique(user, return_counts=True)
    starts = np.append(0, np.cumsum(counts))
    return Sequences(item[order].astype(np.int32), starts, names[used].tolist())


def _read(
    path: str | None, columns: tuple[str, ...] | None, user: str, item: str, time: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, items and times of a file's lines."""
    file = Path(path).expanduser() if path else None
    if file is None or not file.is_file():
        raise InputError(f"data.path={path!r} is not a file; give one of user, item and time")
    text = decode(read_bytes(file), str(file))
    first = text.partition("\n")[0]
    if "::" in first:
        text, first = text.replace("::", "\t"), first.replace("::", "\t")
    tabs = dict(delimiter="\t", quoting=csv.QUOTE_NONE) if "\t" in first else {}
    lines = csv.reader(io.StringIO(text), **tabs)
    try:
        numbered = [(line, lines.line_num) for line in lines]
    except csv.Error as error:
        raise InputError(f"{file}:{lines.line_num}: {error}; mend the line") from None
    header = columns or tuple(numbered.pop(0)[0] if numbered else ())
    for name in (user, item, time):
        if name not in header:
            raise InputError(
                f"{file} has no column {name!r}; it has {', '.join(header)}: name them by "
                "data.columns, or say which is which by data.user, data.item, data.time"
            )
    places = [header.index(name) for name in (user, item, time)]
    found: tuple[list, list, list] = ([], [], [])
    for line, number in numbered:
        if line and len(line) != len(header):
            raise InputError(
                f"{file}:{number} has {len(line)} columns, expected {', '.join(header)}"
            )
        for values, place in zip(found, places, strict=True) if line else ():
            values.append(line[place])
    users, items, times = found
    try:
        when = np.array(times, float)
        if not np.isfinite(when).all():  # such a one would be the last of its user, to be judged
            raise ValueError(f"{times[int(np.flatnonzero(~np.isfinite(when))[0])]!r}")
        return np.array(users), np.array(items), when
    except ValueError as error:
        raise InputError(f"{file}: column {time!r} holds what is no number ({error})") from None


def _synthetic() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """400 users of 6 to 20 items: of ten, seven are followed by one item, two by another."""
    random, rows = np.random.default_rng(0), []
    for user in range(400):
        item = int(random.integers(60))
        for time in range(int(random.integers(6, 21))):
            rows.append((user, item, time))
            draw = random.random()
            other = int(random.integers(60))
            item = (
                (7 * item + 1) % 60 if draw < 0.7 else (3 * item + 5) % 60 if draw < 0.9 else other
            )
    users, items, times = np.array(rows).T
    return users.astype(str), items.astype(str), times.astype(float)


def encode(history: np.ndarray, context: int) -> dict[str, np.ndarray]:
    """Returns tokens, segments and positions (context,) of the last items of a history."""
    history = history[-context:]
    row = {name: np.zeros(context, np.int32) for name in ("tokens", "segments", "positions")}
    count = len(history)
    row["tokens"][:count] = history
    row["segments"][:count] = 1
    row["positions"][:count] = np.arange(context - count, context)
    return row


def _row(
    ids: np.ndarray,
    starts: np.ndarray,
    kept: np.ndarray,
    context: int,
    split: str,
    index: int,
    epoch: int,
    random: np.random.Generator,
) -> Batch:
    items = ids[starts[index] : starts[index] + kept[index]]
    row = encode(items[:-1], context)
    count = int(row["segments"].sum())
    row |= dict(targets=np.zeros(context, np.int32), weight=np.zeros(context, np.float32))
    row["targets"][:count] = items[-count:]
    row["weight"][0 if split == "train" else count - 1 : count] = 1
    return row
