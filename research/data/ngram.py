"""A byte n-gram model with Witten-Bell interpolation: what a language model must beat.

    bits_per_byte(train, heldout, order=5)      # the next byte given the four before it

Bell, Cleary and Witten 1990; Chen and Goodman 1998 (cmp-lg/9606011), section 2.5:

    p(c | h) = (count(hc) + types(h) p(c | h')) / (count(h) + types(h)),    h' = h without its first

down to the uniform distribution over 256 bytes and the end of a document, which is predicted (and
paid for) like a byte. A document begins after `order - 1` end symbols.
"""

from collections.abc import Sequence

import numpy as np

END, SYMBOLS, BITS = 256, 257, 9


def bits_per_byte(train: Sequence[bytes], heldout: Sequence[bytes], order: int = 5) -> float:
    """Returns the code length of `heldout` in bits, over its bytes (ends are paid, not counted).

    `order` counts the predicted byte: 5 is a context of 4. At most 7: an n-gram is one int64.
    """
    if not 1 <= order <= 7:
        raise ValueError(f"order={order}; expected 1 to 7")
    seen, asked = _ngrams(train, order), _ngrams(heldout, order)
    probability = np.full(len(asked), 1 / SYMBOLS)
    for length in range(1, order + 1):
        mask = (1 << BITS * length) - 1
        grams, counts = np.unique(seen & mask, return_counts=True)
        starts = np.flatnonzero(np.diff(grams >> BITS, prepend=-1))  # where a context begins
        totals = np.add.reduceat(counts, starts)
        types = np.diff(starts, append=len(grams))
        count = _look_up(grams, counts, asked & mask)
        contexts = grams[starts] >> BITS
        total = _look_up(contexts, totals, (asked & mask) >> BITS)
        kinds = _look_up(contexts, types, (asked & mask) >> BITS)
        known = total > 0  # an unseen context leaves the shorter one's distribution
        mixed = (count + kinds * probability) / np.maximum(total + kinds, 1)
        probability = np.where(known, mixed, probability)
    return float(-np.log2(probability).sum() / sum(map(len, heldout)))


def _ngrams(documents: Sequence[bytes], order: int) -> np.ndarray:
    """Returns one int64 for each predicted symbol: itself in the lowest 9 bits, its past above."""
    pad = np.full(order - 1, END, np.int16)
    parts = [part for d in documents for part in (pad, np.frombuffer(d, np.uint8), [END])]
    symbols = np.concatenate(parts).astype(np.int64)
    sizes = [size for d in documents for size in (order - 1, len(d) + 1)]
    predicted = np.repeat(
        np.arange(len(sizes)) % 2 == 1, sizes
    )  # not the symbols before a document
    grams = np.zeros(len(symbols) - order + 1, np.int64)
    for position in range(order):
        grams = grams << BITS | symbols[position : position + len(grams)]
    return grams[predicted[order - 1 :]]


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the value of each wanted key, 0 where it is absent; `keys` are sorted."""
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
