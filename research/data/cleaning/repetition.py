"""The repetition rules of Gopher (arXiv:2112.11446, table A1): text that says the same again.

What comes for the second time or later is the repetition; its first time is not counted. A document
goes by the first rule that it breaks.
"""

import re
from collections import Counter

import numpy as np

from research.arguments import InputError
from research.data.cleaning import Cleaned, Step, remove
from research.data.shingles import BASE, words

SIZES = range(2, 11)


def make(
    max_lines: float = 0.3,
    max_paragraphs: float = 0.3,
    max_line_characters: float = 0.2,
    max_paragraph_characters: float = 0.2,
    max_top: tuple = (0.2, 0.18, 0.16),
    max_repeated: tuple = (0.15, 0.14, 0.13, 0.12, 0.11, 0.1),
) -> Step:
    """Returns the step: shares of repeated lines and paragraphs, in number and in characters; the
    share of characters (of words) in the most frequent 2-, 3- and 4-gram, and in repeated n-grams
    of 5 to 10 words, each character counted once. 1 turns a rule off.
    """

    for name, given, size in (("max_top", max_top, 3), ("max_repeated", max_repeated, 6)):
        if len(given) != size or not all(type(x) in (int, float) for x in given):
            raise InputError(f"repetition.{name}={given!r}; expected {size} numbers (1: rule off)")

    def reason(text: str) -> str | None:
        lines = (r"\n+", "lines", max_lines, max_line_characters)
        paragraphs = (r"\n\s*\n", "paragraphs", max_paragraphs, max_paragraph_characters)
        for pattern, name, most, most_characters in (lines, paragraphs):
            number, characters = _repeated_parts(re.split(pattern, text.strip()))
            if number > most:
                return f"repeated_{name}"
            if characters > most_characters:
                return f"characters_in_repeated_{name}"
        return _repeated_words(text, max_top, max_repeated)

    def clean(text: str) -> Cleaned:
        why = reason(text)
        return remove(why) if why else Cleaned(text)

    return Step(clean)


def _repeated_parts(parts: list[str]) -> tuple[float, float]:
    """Returns the shares of parts, and of their characters, that came before."""
    counts = Counter(filter(None, map(str.strip, parts)))
    characters = sum(len(part) * count for part, count in counts.items())
    again = sum(len(part) * (count - 1) for part, count in counts.items())
    return 1 - len(counts) / max(counts.total(), 1), again / max(characters, 1)


def _repeated_words(text: str, max_top: tuple, max_repeated: tuple) -> str | None:
    """Returns the first rule about n-grams that a text breaks."""
    hashes, starts, ends = words(text)
    lengths = ends - starts
    total = np.concatenate([[0], np.cumsum(lengths)])
    most = {
        n: (max_top[n - 2 : n - 1], max_repeated[n - 5 : n - 4] if n > 4 else ()) for n in SIZES
    }
    at, grams = np.arange(len(hashes)), hashes
    for n in SIZES:
        # Only where the n-gram of one word less comes more than once can this one do so.
        inside = at + n <= len(hashes)
        at = at[inside]
        grams = grams[inside] * BASE + hashes[at + n - 1]
        order = np.argsort(grams, kind="stable")
        same = np.diff(grams[order]) == 0
        if not same.any():
            return None
        top, repeated = most[n]
        if top:
            runs = np.diff(np.concatenate([[-1], np.flatnonzero(~same), [len(same)]]))
            first = at[order[np.cumsum(runs) - runs]]
            sizes = (total[first + n] - total[first])[runs == runs.max()]
            # Where it overlaps itself they would be more than there are.
            if min(sizes.max() * runs.max(), total[-1]) > top[0] * total[-1]:
                return f"top_{n}gram"
        if repeated:
            # Words that are in one of the n-grams that came before, each counted once.
            edges = np.zeros(len(hashes) + 1, np.int64)
            np.add.at(edges, at[order[1:][same]], 1)
            np.add.at(edges, at[order[1:][same]] + n, -1)
            if lengths[np.cumsum(edges[:-1]) > 0].sum() > repeated[0] * total[-1]:
                return f"repeated_{n}grams"
        again = np.zeros(len(at), bool)
        again[order[1:][same]] = again[order[:-1][same]] = True
        at, grams = at[again], grams[again]
    return None
