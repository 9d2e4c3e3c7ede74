"""Exact match and F1 of answers in words, as SQuAD defines them (arXiv:1606.05250, and for no
answer arXiv:1806.03822), and for Chinese, which has no spaces, MLQA (arXiv:1910.07475).

"en": lower case, without the 32 marks of ASCII punctuation, without a, an, the; words between
spaces. "zh": lower case, without what Unicode calls punctuation; each character from U+4E00 to
U+9FA5 is a word, and so is what stands between them and spaces. XQuAD has no definition of its own.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Literal

Language = Literal["en", "zh"]
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
CHARACTERS = re.compile("([\u4e00-\u9fa5])")


def words(text: str, language: Language) -> list[str]:
    """Returns the words of an answer that count."""
    if language == "en":
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        return ARTICLES.sub(" ", kept).split()
    kept = "".join(
        c
        for c in text.lower()
        if c not in string.punctuation and not unicodedata.category(c).startswith("P")
    )
    return CHARACTERS.sub(r" \1 ", kept).split()


def score(answer: str, gold: Iterable[str], language: Language) -> tuple[float, float]:
    """Returns exact match and F1, 0 to 1, each with the gold answer that it is best for. "" is no
    answer: so is right when `gold` is empty, or holds nothing but answers without words."""
    given = words(answer, language)
    wanted = [found for one in gold if (found := words(one, language))] or [[]]
    return max(float(given == one) for one in wanted), max(_f1(given, one) for one in wanted)


def _f1(given: list[str], wanted: list[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted))
