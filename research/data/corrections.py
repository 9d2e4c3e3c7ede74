"""Labels put right: lines of JSON that `anneal review` wrote and a person filled in.

    data = dict(name="sentences", path="sst2", corrections="queue.jsonl")

    {"text": "a fine film", "label": "0", "suggested": "1", "digest": "9c1f...", "correction": "1"}

A correction is for a text, which `digest` names, under the label that it had: for each row that has
both, wherever it lies. Lines whose "correction" is null say nothing; what else stands in a line is
for people.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from research.arguments import InputError

Key = tuple[str, str]  # the digest of an example's texts, and its label


def digest(texts: Sequence[str]) -> str:
    """Returns a name for the texts of an example."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def correct(
    file: str, classes: Sequence[str], splits: Iterable[list[Key]]
) -> tuple[list[str], int, list[tuple[Key, str]]]:
    """Returns the labels of a split as they are to be, how many of them are others than before, and
    all corrections of the file in a fixed order.

    `splits` are the rows of that split, and then those of others, where a correction may belong as
    well; they are asked for only while one has found no row. Raises InputError naming the line of a
    correction that has no row any more, or whose label is none of `classes`."""
    wanted = _read(Path(file).expanduser(), classes)
    left, mine = {key: where for key, (_, where) in wanted.items()}, None
    for rows in splits:
        mine = rows if mine is None else mine
        for key in rows:
            left.pop(key, None)
        if not left:
            break
    for (_, label), where in left.items():
        raise InputError(
            f"{where}: no example has this text and the label {label!r}, as one had when the line "
            "was written; take the line out, or restore the data"
        )
    labels = [wanted[key][0] if key in wanted else key[1] for key in mine]
    changed = sum(label != key[1] for label, key in zip(labels, mine, strict=True))
    return labels, changed, sorted((key, label) for key, (label, _) in wanted.items())


def _read(file: Path, classes: Sequence[str]) -> dict[Key, tuple[str, str]]:
    """Returns the label that each example is to have, and the line that says so."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.corrections={file} cannot be read as text: {error}") from None
    found: dict[Key, tuple[str, str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = json.loads(line)
            key, label = (row["digest"] + "", row["label"] + ""), row["correction"]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{where} is not a line of `anneal review`, which has digest, label and correction"
            ) from None
        if label is None:
            continue
        label = str(label)  # 1 may stand for "1"
        if label not in classes:
            raise InputError(f"{where}: {label!r} is no label; expected {', '.join(classes)}")
        if key in found and found[key][0] != label:
            raise InputError(
                f"{where} says {label!r} of what {found[key][1]} says {found[key][0]!r} of: a text "
                "with the same label; keep one"
            )
        found.setdefault(key, (label, where))
    return found
