"""Labels put right: lines of JSON that `anneal review` wrote and a person filled in.

    data = dict(name="sentences", path="sst2", corrections="queue.jsonl")

    {"text": "a fine film", "label": "0", "suggested": "1", "digest": "9c1f...", "correction": "1"}

A correction is for a text, or a picture by its split and name, which `digest` names, under the
label that it had: for each row that has both, wherever it lies. It is another label, or false: the
row is left out. Lines whose "correction" is null say nothing; what else stands in a line is for
people.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.arguments import InputError

Key = tuple[str, str]  # the digest of an example's texts, and its label


class Examples(NamedTuple):
    """The rows of a split for people: what `anneal review` lists as the `gold` of a source."""

    labels: np.ndarray  # int (count,): the class of each, corrected
    given: Callable[[int], str]  # its label in the data
    shown: Callable[[int], dict[str, str]]  # its texts, or the name of its picture
    where: Callable[[int], str]


def named_picture(split: str, name: str | int) -> dict[str, str]:
    """Returns what a person, and the digest of a correction, knows a picture by."""
    return {"split": split, "picture": str(name)}


def digest(texts: Iterable[str]) -> str:
    """Returns a name for the texts of an example, or for the name of its picture."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def correct(
    file: str, classes: Sequence[str], splits: Iterable[list[Key]]
) -> tuple[list[str | None], int, list[tuple[Key, str]]]:
    """Returns the labels of a split as they are to be, None of a row that is to be left out, how
    many of them are others than before, and all corrections of the file in a fixed order.

    `splits` are the rows of that split, and then those of others, as `found_in` takes them. Raises
    InputError for a correction that has no row any more, or whose label is none of `classes`."""

    def accept(correction: Any) -> str | None:
        if correction is False and "False" not in classes:
            return None
        label = correction if isinstance(correction, bool) else str(correction)  # 1 is "1"
        if label not in classes:
            expected = f"expected {', '.join(classes)}, or false to leave the example out"
            raise ValueError(f"{label!r} is no label; {expected}")
        return label

    wanted = read(file, accept)
    mine = found_in(wanted, splits)
    labels = [wanted[key][0] if key in wanted else key[1] for key in mine]
    changed = sum(label != key[1] for label, key in zip(labels, mine, strict=True))
    return labels, changed, sorted((key, label or "") for key, (label, _) in wanted.items())


def found_in(wanted: dict[Key, tuple[Any, str]], splits: Iterable[list[Key]]) -> list[Key]:
    """Returns the first of `splits`, which are asked for only while a correction has found no row.
    Raises InputError naming the line of one that finds none."""
    left, mine = {key: where for key, (_, where) in wanted.items()}, None
    for rows in splits:
        mine = rows if mine is None else mine
        for key in rows:
            left.pop(key, None)
        if not left:
            break
    for (_, label), where in left.items():
        raise InputError(
            f"{where}: no example has this text or picture and the label {label!r}, as one had "
            "when the line was written; take the line out, or restore the data"
        )
    return mine


def read(file: str, accept: Callable[[Any], Any]) -> dict[Key, tuple[Any, str]]:
    """Returns what each example is to have, as `accept` understands it, and the line that says so.
    Raises InputError for a line that is none, and where `accept` raises ValueError."""
    path = Path(file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.corrections={path} cannot be read as text: {error}") from None
    found: dict[Key, tuple[Any, str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
            key, correction = (row["digest"] + "", row["label"] + ""), row["correction"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(
                f"{where} is not a line of `anneal review`, which has digest, label and correction"
            ) from None
        if correction is None:
            continue
        try:
            correction = accept(correction)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        if key in found and found[key][0] != correction:
            raise InputError(
                f"{where} says {correction!r} of what {found[key][1]} says {found[key][0]!r} of: "
                "the same example under the same label; keep one"
            )
        found.setdefault(key, (correction, where))
    return found
