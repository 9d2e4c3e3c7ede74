"""Texts beside the right ones: BLEU (Papineni et al. 2002) and chrF (Popović 2015) as sacrebleu
computes them (arXiv:1804.08771), and how many are equal.

    score = judge(gold, "13a"); score(texts)     # {"bleu": 34.2, "chrf": 57.9, "exact_match": 0.1}
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from research import hosts
from research.arguments import InputError

Words = Literal["13a", "intl", "zh", "char"]  # how sacrebleu finds the words of BLEU


def judge(gold: Sequence[str], words: Words) -> Callable[[Sequence[str]], dict[str, float]]:
    """Returns the function that scores as many texts: bleu and chrf of the corpus, 0 to 100, with
    sacrebleu's defaults, and exact_match, 0 to 1. The signatures are said on stderr, once.

    Raises InputError without the sacrebleu package."""
    metrics = scorers(gold, words)
    _say("; ".join(f"{name} {metric.get_signature()}" for name, metric in metrics.items()))

    def score(texts: Sequence[str]) -> dict[str, float]:
        equal = sum(text.strip() == one.strip() for text, one in zip(texts, gold, strict=True))
        found = {name: one.corpus_score(texts, None).score for name, one in metrics.items()}
        return found | {"exact_match": equal / len(gold)}

    return score


def scorers(gold: Sequence[str], words: Words = "13a") -> dict[str, Any]:
    """Returns sacrebleu's metrics, which hold one reference for each text, by name."""
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise InputError("bleu needs the sacrebleu package: pip install 'anneal[nlp]'") from None
    references = [list(gold)]
    return {
        "bleu": BLEU(tokenize=words, references=references),
        "chrf": CHRF(references=references),
    }


_say = functools.cache(hosts.warn)
