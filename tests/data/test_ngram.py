"""The vectorised n-gram model equals the definition, written with dictionaries."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from research.data.ngram import bits_per_byte

TRAIN = [b"the cat sat on the mat", b"", b"a cat\x00and a hat\xff", b"the the the"]
HELDOUT = [b"the hat sat\xfe", b"", b"on a cat"]


def by_definition(train, heldout, order):
    followers = defaultdict(Counter)
    for document in train:
        symbols = [256] * (order - 1) + list(document) + [256]
        for at in range(order - 1, len(symbols)):
            for length in range(order):
                followers[tuple(symbols[at - length : at])][symbols[at]] += 1

    def probability(symbol, history):
        shorter = probability(symbol, history[1:]) if history else 1 / 257
        seen = followers.get(history)
        if not seen:
            return shorter
        return (seen[symbol] + len(seen) * shorter) / (sum(seen.values()) + len(seen))

    bits = 0
    for document in heldout:
        symbols = [256] * (order - 1) + list(document) + [256]
        for at in range(order - 1, len(symbols)):
            bits -= math.log2(probability(symbols[at], tuple(symbols[at - order + 1 : at])))
    return bits / sum(map(len, heldout))


@pytest.mark.parametrize("order", [1, 2, 3, 5, 7])
def test_bits_per_byte_equal_the_definition(order):
    expected = by_definition(TRAIN, HELDOUT, order)
    assert bits_per_byte(TRAIN, HELDOUT, order) == pytest.approx(expected, rel=1e-12)


def test_without_a_match_every_symbol_costs_its_escape_to_the_uniform_distribution():
    # One training symbol b"a" and one end: p(z) = (0 + 2 / 257) / (2 + 2); the end has been seen.
    bits = -math.log2(2 / 257 / 4) - math.log2((1 + 2 / 257) / 4)
    assert bits_per_byte([b"a"], [b"z"], order=1) == pytest.approx(bits)


def test_repetition_is_cheap_and_noise_costs_eight_bits():
    noise = np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    assert bits_per_byte([b"abcdef" * 2000], [b"abcdef" * 100], 3) < 0.1
    assert 8.0 < bits_per_byte([noise[:18_000]], [noise[18_000:]], 2) < 8.6
