"""make(**config) -> Step: one step of cleaning a file, named in the order in which they are done.

A step either looks at one document (`clean`), or at all of them (`sign` and `decide`):

    step = personal.make()
    step.clean("write to a@b.org")          # Cleaned("write to [EMAIL]", {"email": 1})

All three are pure functions of their arguments, so that a pass is the same whoever does what.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Cleaned(NamedTuple):
    """What became of a document: its text, None if it is removed, and how often what was found."""

    text: str | None
    found: dict[str, int] = {}  # of a removed document: the one reason


class Step(NamedTuple):
    """Either `clean`, or `sign` and `decide`."""

    clean: Callable[[str], Cleaned] | None = None
    # The signature of a document: an array of the same shape and type for each.
    sign: Callable[[str], np.ndarray] | None = None
    # (signatures of all documents in order, text of the n-th one) -> {removed one: the kept one
    # before it that is its duplicate}
    decide: Callable[[np.ndarray, Callable[[int], str]], dict[int, int]] | None = None
    fingerprint: str = ""  # of the files that it reads


def remove(reason: str) -> Cleaned:
    """Returns what `clean` says of a document that goes."""
    return Cleaned(None, {reason: 1})
