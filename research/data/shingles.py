"""Words and word n-grams of a text as 64-bit numbers, for all of a text at once.

    np.intersect1d(shingles("To be, or not to be", 2), shingles("or not", 2))

A word is a run of letters, digits and marks; case does not count. Where a script writes no spaces,
a "word" is what lies between two punctuation marks. Two different n-grams share a number with a
chance of about 2**-64: for all that is done here they are the n-grams themselves.
"""

import functools
import unicodedata
from typing import NamedTuple

import numpy as np

BASE, MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)  # any odd ones
SIZE = 0x20000  # beyond it there are rare ideographs only, without case


class Words(NamedTuple):
    """The words of a text, and where each begins and ends in it, in characters."""

    hashes: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


@functools.cache
def _letters() -> np.ndarray:
    """What each character counts as: its lower case, 0 for what is not part of a word."""
    table = np.zeros(SIZE, np.uint32)
    for code in range(SIZE):
        char = chr(code)
        if char.isalnum() or unicodedata.category(char)[0] == "M":
            lower = char.lower()
            table[code] = ord(lower) if len(lower) == 1 else code
    return table


@functools.cache
def _powers() -> np.ndarray:
    return np.cumprod(np.full(1 << 10, BASE), dtype=np.uint64)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Spreads every bit over all others, as numbers that differ little must not end alike."""
    for shift in (32, 29, 32):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * MIX
    return numbers ^ (numbers >> np.uint64(32))


@functools.lru_cache(maxsize=1)  # as one step after the other asks for those of a document
def words(text: str) -> Words:
    """Returns the words of `text`."""
    if text.isascii():
        letters = _letters()[np.frombuffer(text.encode("ascii"), np.uint8)]
    else:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        letters = np.where(codes < SIZE, _letters()[np.minimum(codes, SIZE - 1)], codes)
    edges = np.flatnonzero(np.diff(letters != 0, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    if not len(starts):
        return Words(np.zeros(0, np.uint64), starts, ends)
    lengths = ends - starts
    first = np.cumsum(lengths) - lengths
    place = np.arange(first[-1] + lengths[-1]) - np.repeat(first, lengths)
    terms = letters[letters != 0].astype(np.uint64) * _powers()[place & 1023]
    return Words(_mixed(np.add.reduceat(terms, first)), starts, ends)


def ngrams(hashes: np.ndarray, n: int) -> np.ndarray:
    """Returns the numbers of each `n` words that follow one another, in their order."""
    count = len(hashes) - n + 1
    if count < 1:
        return hashes[:0]
    total = np.zeros(count, np.uint64)
    for k in range(n):
        total = total * BASE + hashes[k : k + count]
    return _mixed(total)


def shingles(text: str, n: int) -> np.ndarray:
    """Returns the set of word n-grams, sorted; of fewer than `n` words all of them are the one."""
    hashes = words(text).hashes
    return np.unique(ngrams(hashes, min(n, max(len(hashes), 1))))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Returns |a and b| / |a or b| of two sorted sets; 0 for two empty ones."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(len(a) + len(b) - both, 1)
