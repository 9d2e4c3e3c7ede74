"""Exact duplicates: of documents equal up to white space, the first one stays."""

import hashlib
from collections.abc import Callable

import numpy as np

from research.data.cleaning import Step


def make() -> Step:
    """Returns the step."""
    return Step(sign=_sign, decide=_decide)


def _sign(text: str) -> np.ndarray:
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
    return np.frombuffer(digest, np.uint64)


def _decide(signatures: np.ndarray, text: Callable[[int], str]) -> dict[int, int]:
    _, first, which = np.unique(signatures, axis=0, return_index=True, return_inverse=True)
    original = first[which.ravel()]
    return {int(n): int(original[n]) for n in np.flatnonzero(original != np.arange(len(original)))}
