"""Rows of named texts: TSV, CSV, JSON lines, or parallel files of lines, one file a split.

    rows = read("data/sst2", "train", ("sentence", "label"))      # train.tsv without a header
    rows = read("data/multi30k", "train", None, ("en", "de"))     # train.en.gz and train.de.gz

A folder holds `train.tsv`, `validation.tsv` (or dev, val, valid), `test.tsv`; each may be a .gz.
path="stdlib" needs no file: lines of Python's standard library, whose `label` says whether they are
comment or code (`sentence` is without the #), and whose `source` is the line without its spaces,
the `target` with them.
"""

import csv
import gzip
import hashlib
import io
import json
import zlib
from pathlib import Path
from typing import NamedTuple

from research.arguments import InputError
from research.data.readers import Records, decode, stdlib

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json")
ALSO = {"validation": ("dev", "val", "valid")}


class Table(NamedTuple):
    """The rows of a split, in their order."""

    rows: list[dict[str, str]]
    names: list[str]  # where each row lies
    fingerprint: str


def read(
    path: str | None,
    split: str,
    columns: tuple[str, ...] | None,
    fields: tuple[str, ...] = (),
) -> Table:
    """Returns the rows of a split. `columns` None: the first line names them. Raises InputError for
    files that are not there, rows that do not fit, and missing `fields`."""
    if path == "stdlib":
        return _stdlib(split)
    root = Path(path).expanduser() if path else None
    if root is None or not root.is_dir():
        raise InputError(f"data.path={path!r} is not a folder; give one that holds {split}.tsv")
    stems = (split, *ALSO.get(split, ()))
    for stem in stems:
        for suffix in SUFFIXES:
            for file in (root / f"{stem}{suffix}", root / f"{stem}{suffix}.gz"):
                if file.is_file():
                    return _table(file, suffix, columns, fields)
        lines = [_lines(root, f"{stem}.{field}") for field in fields]
        if lines and all(line is not None for line in lines):
            return _parallel(root, stem, fields, lines)
    wanted = " or ".join(f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES[:3])
    raise InputError(f"{root} has no {wanted}, nor {split}.{'/'.join(fields)}, for split {split}")


def texts(found: Table, fields: tuple[str, ...]) -> Records:
    """Returns the texts of some fields as documents: what a tokenizer is learned from."""
    held = [row[name] for row in found.rows for name in fields]
    return Records(len(held), str, held.__getitem__, f"{found.fingerprint} {fields}")


def _stdlib(split: str, lines: int = 20, documents: int = 200) -> Table:
    """Some comments and as many lines of code from each of some modules."""
    records, rows, names = stdlib.make(None, split, "text"), [], []
    for index in range(min(documents, records.count)):
        text = [line.strip() for line in records.read(index).splitlines()]
        comments = [line for line in text if line.startswith("# ") and len(line) > 8][:lines]
        code = [line for line in text if line[:1].isalpha() and " " in line][: len(comments)]
        for line in comments + code:
            kind = "comment" if line.startswith("#") else "code"
            sentence = line.lstrip("# ")
            row = dict(sentence=sentence, label=kind, source=line.replace(" ", ""), target=line)
            rows.append(row)
            names.append(records.name(index))
    return _finished(rows, names)


def read_bytes(file: Path) -> bytes:
    """Returns what a file, or a .gz, holds. Raises InputError if it cannot be read."""
    try:
        data = file.read_bytes()
        return gzip.decompress(data) if file.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} cannot be read: {error}") from None


def _lines(root: Path, name: str) -> bytes | None:
    found = next((f for f in (root / name, root / f"{name}.gz") if f.is_file()), None)
    return None if found is None else read_bytes(found)


def _parallel(root: Path, stem: str, fields: tuple[str, ...], data: list[bytes]) -> Table:
    lines = [
        decode(part, f"{root}/{stem}.{field}").removesuffix("\n").split("\n")
        for part, field in zip(data, fields, strict=True)
    ]
    counts = {field: len(part) for field, part in zip(fields, lines, strict=True)}
    if len(set(counts.values())) > 1:
        raise InputError(f"{root}/{stem}: parallel files of different lengths, {counts} lines")
    rows = [dict(zip(fields, row, strict=True)) for row in zip(*lines, strict=True)]
    return _finished(rows, [f"{root}/{stem}:{i}" for i in range(1, len(rows) + 1)])


def _table(
    file: Path, suffix: str, columns: tuple[str, ...] | None, fields: tuple[str, ...]
) -> Table:
    text = decode(read_bytes(file), str(file))
    names: list[str] = []
    if suffix in (".jsonl", ".json"):
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                rows.append({k: str(value) for k, value in row.items() if value is not None})
            except (ValueError, AttributeError):
                raise InputError(f"{file}:{number} is not a JSON object on one line") from None
            names.append(f"{file}:{number}")
    else:
        tabs = dict(delimiter="\t", quoting=csv.QUOTE_NONE)  # where a quote is a letter
        csv.field_size_limit(1 << 30)  # texts to be summarised are long
        lines = csv.reader(io.StringIO(text), **({} if suffix == ".csv" else tabs))
        try:
            lines = [(line, lines.line_num) for line in lines]
        except csv.Error as error:
            raise InputError(f"{file}:{lines.line_num}: {error}; mend the line") from None
        header = columns or tuple(lines.pop(0)[0] if lines else ())
        rows = []
        for line, number in lines:
            if not line:
                continue
            if len(line) != len(header):
                raise InputError(
                    f"{file}:{number} has {len(line)} columns, expected {', '.join(header)}"
                )
            rows.append(dict(zip(header, line, strict=True)))
            names.append(f"{file}:{number}")
    for field in fields:
        for row, name in zip(rows, names, strict=True):
            if field not in row:
                raise InputError(f"{name} has no column {field!r}; it has {', '.join(row)}")
    return _finished(rows, names)


def _finished(rows: list[dict[str, str]], names: list[str]) -> Table:
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return Table(rows, names, digest)
