"""The quality rules of Gopher (arXiv:2112.11446, appendix A.1.1), made for English prose.

A document goes by the first rule that it breaks. Source code, lists and verse break several.
"""

import re

from research.arguments import Count, Fraction, Positive, Size
from research.data.cleaning import Cleaned, Step, remove

BULLETS = tuple("•‣◦▪●■*-–—·")
ELLIPSES = ("...", "…")
_LETTER = re.compile(r"[^\W\d_]").search


def make(
    min_words: Size = 50,
    max_words: Count = 100_000,
    min_word_length: Positive = 3.0,
    max_word_length: Positive = 10.0,
    max_symbols: Fraction = 0.1,
    max_bullets: Fraction = 0.9,
    max_ellipsis_lines: Fraction = 0.3,
    min_alphabetic: Fraction = 0.8,
    min_stop_words: Size = 2,
    stop_words: tuple = ("the", "be", "to", "of", "and", "that", "have", "with"),
) -> Step:
    """Returns the step. Words are what white space separates; `max_symbols` is the number of # and
    that of ellipses, each over the number of words; `max_bullets` and `max_ellipsis_lines` are
    shares of lines that begin with a bullet and end with an ellipsis; `min_alphabetic` is the share
    of words with a letter; of the `stop_words`, `min_stop_words` different ones must appear.
    """
    stops = set(stop_words)

    def reason(text: str) -> str | None:
        words = text.split()
        count = len(words)
        if count < max(min_words, 1):
            return "too_few_words"
        if count > max_words:
            return "too_many_words"
        length = sum(map(len, words)) / count
        if not min_word_length <= length <= max_word_length:
            return "mean_word_length"
        ellipses = text.count("...") + text.count("…")
        if max(text.count("#"), ellipses) > max_symbols * count:
            return "symbols"
        lines = [line for raw in text.split("\n") if (line := raw.strip())]
        if sum(line.startswith(BULLETS) for line in lines) > max_bullets * len(lines):
            return "bullets"
        if sum(line.endswith(ELLIPSES) for line in lines) > max_ellipsis_lines * len(lines):
            return "ellipsis_lines"
        # Nearly all words have letters only, which is told much faster.
        letters = sum(map(str.isalpha, words))
        if letters < min_alphabetic * count and (
            sum(_LETTER(word) is not None for word in words) < min_alphabetic * count
        ):
            return "few_letters"
        found = stops.intersection(text.lower().split())
        if len(found) < min_stop_words:
            return "few_stop_words"
        return None

    def clean(text: str) -> Cleaned:
        why = reason(text)
        return remove(why) if why else Cleaned(text)

    return Step(clean)
