"""JSON lines: each line is an object whose `field` is the text, as research/data/clean.py writes.

    data = dict(name="text", reader="jsonl", path="clean/")

Files named train* and validation* are those splits; without such names about 5 % of all lines are
held out by a hash of file name and line.
"""

import functools
import hashlib
import json
from array import array
from pathlib import Path

import numpy as np

from research.arguments import InputError
from research.data.readers import Records, decode, in_split, is_held_out
from research.data.source import RecordError


def make(path: str | None, split: str, field: str) -> Records:
    """Returns the lines of `path`, a .jsonl file or a folder of them; empty lines do not count.

    Raises InputError if there are none of this split.
    """
    is_held_out(split)  # refuses other names
    if path is None or not (root := Path(path).expanduser()).exists():
        raise InputError(
            f"data.path={path!r} does not exist; give a .jsonl file or a folder of them"
        )
    files = sorted(root.glob("*.jsonl")) if root.is_dir() else [root]
    # What a cleaning pass removed lies beside what it kept.
    files = [file for file in files if file.name != "removed.jsonl"]
    named = any(file.name.startswith(("train", "validation")) for file in files)
    files = [file for file in files if not named or file.name.startswith(split)]
    digest, places = hashlib.sha256(f"{split} {field}".encode()), array("q")
    for number, file in enumerate(files):
        digest.update(file.name.encode() + b"\n")
        at = 0
        try:
            with open(file, "rb") as lines:
                for index, line in enumerate(lines):
                    if line.strip() and (named or in_split(f"{file.name} {index}", split)):
                        places.extend((number, index, at))
                        digest.update(hashlib.sha256(line).digest())
                    at += len(line)
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror})") from None
    if not places:
        raise InputError(f"data.path={path!r} has no JSON lines of split {split}")
    table = np.array(places).reshape(-1, 3)  # 24 bytes a line, where tuples take six times that

    def name(number: int) -> str:
        file, index, _ = table[number]
        return f"{files[file]} line {index + 1}"

    opened = functools.lru_cache(maxsize=16)(lambda file: open(file, "rb"))

    def read(number: int) -> str:
        file, _, at = table[number]
        try:
            lines = opened(files[file])
            lines.seek(at)
            record = json.loads(decode(lines.readline(), name(number)))
        except (OSError, ValueError) as error:
            raise RecordError(f"{name(number)} cannot be read: {error}") from None
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            held = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise RecordError(f"{name(number)} has no text in field {field!r}; it has {held}")
        return decode(record[field].encode("utf-8", "surrogatepass"), name(number))

    return Records(len(table), name, read, digest.hexdigest())
