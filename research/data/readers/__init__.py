"""Readers of documents: make(path, split, field) -> Records, one file per kind of storage."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from research.arguments import InputError
from research.data.source import RecordError


class Records(NamedTuple):
    """The documents of one split, in a fixed order."""

    count: int
    name: Callable[[int], str]  # where a document lies
    read: Callable[[int], str]  # its text; raises RecordError naming it
    fingerprint: str  # changes when a document does


def is_held_out(split: str) -> bool:
    """Tells "validation" from "train"; raises InputError for any other split."""
    if split not in ("train", "validation"):
        raise InputError(f"split={split!r} is not known here; expected train or validation")
    return split == "validation"


def in_split(name: str, split: str) -> bool:
    """Tells whether document `name` belongs to `split`: about 5 % of all names are validation."""
    number = int(hashlib.sha256(name.encode()).hexdigest(), 16)
    return (number % 20 == 0) == is_held_out(split)


def decode(data: bytes, name: str) -> str:
    """Returns UTF-8 `data` as text; raises RecordError naming the document and the byte."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{name} is not UTF-8 text (byte {error.start})") from None
    if "\0" in text:
        raise RecordError(f"{name} is not text (NUL at byte {data.index(0)})")
    return text
