"""Near duplicates by MinHash (Broder 1997), found in bands (LSH) and verified by exact Jaccard.

A document goes if the Jaccard similarity of its word n-grams with an earlier one that stays is at
least `threshold`. So no two that stay are near duplicates, but for pairs that share no band: a pair
of similarity s is found with a chance of 1 - (1 - s^rows)^bands. What is found is compared in full,
so nothing else is removed.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from research.arguments import Count, Fraction, InputError, Seed
from research.data.cleaning import Step
from research.data.shingles import jaccard, ngrams, shingles, words

RECALL = 0.95  # of pairs at the threshold, at least
CHUNK = 1 << 12  # n-grams that are hashed together, so that they stay in the processor's cache


def make(
    threshold: Fraction = 0.8,
    ngram: Count = 5,
    bands: Count | None = None,
    rows: Count = 6,
    seed: Seed = 0,
) -> Step:
    """Returns the step. More bands find more, more rows compare fewer pairs in vain; None are as
    many bands as find 99 % of the pairs at `threshold`, fewer than for 95 % are an InputError.

    Documents of fewer than `ngram` words are near duplicates only if their words are equal; those
    without any word never are.
    """
    if bands is None:
        chance = min(max(threshold, 0.3) ** rows, 0.99)
        bands = math.ceil(math.log(0.01) / math.log(1 - chance))
    if (found := recall(threshold, bands, rows)) < RECALL:
        given = f"near.bands={bands}, near.rows={rows} find {found:.3f} of the pairs at {threshold}"
        raise InputError(f"{given}; expected {RECALL} at least: set more bands or fewer rows")
    random = np.random.default_rng(seed)
    factors, offsets = random.integers(0, 1 << 32, (2, bands * rows, 1), np.uint32)
    factors |= np.uint32(1)
    weights = random.integers(0, 1 << 63, (bands, rows), np.uint64) | np.uint64(1)

    def sign(text: str) -> np.ndarray:
        """One number for each band, 0 for a document without words."""
        hashes = words(text).hashes
        if not len(hashes):
            return np.zeros(bands, np.uint64)
        grams = (ngrams(hashes, min(ngram, len(hashes))) >> np.uint64(32)).astype(np.uint32)
        least = np.full(bands * rows, 0xFFFFFFFF, np.uint32)
        for start in range(0, len(grams), CHUNK):
            values = factors * grams[start : start + CHUNK]
            values += offsets
            least = np.minimum(least, values.min(1))
        keys = (least.reshape(bands, rows).astype(np.uint64) * weights).sum(1)
        return np.maximum(keys, np.uint64(1))

    def decide(keys: np.ndarray, text: Callable[[int], str]) -> dict[int, int]:
        shared = _shared(keys)
        grams = functools.lru_cache(maxsize=1 << 10)(lambda index: shingles(text(index), ngram))
        kept: dict[tuple[int, int], list[int]] = defaultdict(list)
        removed = {}
        for index in np.flatnonzero(shared.any(1)).tolist():
            places = [(band, int(keys[index, band])) for band in np.flatnonzero(shared[index])]
            for other in sorted({other for place in places for other in kept[place]}):
                if jaccard(grams(index), grams(other)) >= threshold:
                    removed[index] = other
                    break
            else:
                for place in places:
                    kept[place].append(index)
        return removed

    return Step(sign=sign, decide=decide)


def recall(similarity: float, bands: int, rows: int) -> float:
    """Returns the chance that a pair shares a band."""
    return 1 - (1 - similarity**rows) ** bands


def _shared(keys: np.ndarray) -> np.ndarray:
    """Tells which keys another document has in the same band."""
    shared = np.zeros(keys.shape, bool)
    for band in range(keys.shape[1]):
        _, which, counts = np.unique(keys[:, band], return_inverse=True, return_counts=True)
        shared[:, band] = counts[which] > 1
    return shared & (keys != 0)
