"""Near duplicates planted around Jaccard 0.8, and the truth about all pairs by sets of strings."""

import random
import re
from collections import Counter
from itertools import combinations

import numpy as np

from research.data.cleaning import near
from research.data.readers import stdlib

THRESHOLD, N = 0.8, 5
BINS = (0.8, 0.825, 0.85, 0.875, 0.9, 1.01)


def corpus(pairs: int, seed: int) -> list[str]:
    """Returns pieces of the standard library's source, 100 to 400 words each, every one followed by
    a copy in which so many words are others that about 0.7 to 0.9 of their 5-grams are shared."""
    draw = random.Random(seed)
    records = stdlib.make(None, "train", "text")
    words = " ".join(records.read(index) for index in range(records.count)).split()
    texts, at = [], 0
    for number in range(pairs):
        size = draw.randint(100, 400)
        piece = words[at : at + size]
        at = (at + size) % (len(words) - 400)
        copy, wanted = list(piece), draw.uniform(0.7, 0.9)
        changes = round(size / N * (1 - wanted) / (1 + wanted))
        for place in draw.sample(range(size), max(changes, 1)):
            copy[place] = f"other{number}x{place}"
        texts += [" ".join(piece), " ".join(copy)]
    return texts


def truth(texts: list[str]) -> dict[tuple[int, int], float]:
    """Returns the Jaccard similarity of every pair that is at THRESHOLD or above."""
    holders: dict[tuple[str, ...], list[int]] = {}
    sizes = []
    for index, text in enumerate(texts):
        words = re.findall(r"[^\W_]+", text.lower())
        grams = {tuple(words[i : i + N]) for i in range(len(words) - N + 1)}
        sizes.append(len(grams))
        for gram in grams:
            holders.setdefault(gram, []).append(index)
    shared = Counter(pair for found in holders.values() for pair in combinations(found, 2))
    values = {(a, b): n / (sizes[a] + sizes[b] - n) for (a, b), n in shared.items()}
    return {pair: value for pair, value in values.items() if value >= THRESHOLD}


def measure(pairs: int, seed: int) -> dict:
    """Returns recall and precision of the pairs, before and after they are verified."""
    texts = corpus(pairs, seed)
    true = truth(texts)
    step = near.make(threshold=THRESHOLD, ngram=N, seed=seed)
    keys = np.array([step.sign(text) for text in texts])
    candidates = set()
    for band in range(keys.shape[1]):
        buckets: dict[int, list[int]] = {}
        for index, key in enumerate(keys[:, band].tolist()):
            buckets.setdefault(key, []).append(index)
        candidates |= {pair for found in buckets.values() for pair in combinations(found, 2)}
    removed = step.decide(keys, texts.__getitem__)
    found = {(other, index) for index, other in removed.items()}
    bins = {}
    for low, high in zip(BINS, BINS[1:], strict=False):
        inside = [pair for pair, value in true.items() if low <= value < high]
        hit = sum(pair in candidates for pair in inside)
        bins[f"{low} to {min(high, 1.0)}"] = dict(pairs=len(inside), recall=hit / len(inside))
    gone = sum(a in removed or b in removed for a, b in true)
    return dict(
        seed=seed,
        documents=len(texts),
        true_pairs=len(true),
        bands=keys.shape[1],
        recall_of_pairs=len(candidates & true.keys()) / len(true),
        expected_recall_at_threshold=near.recall(THRESHOLD, keys.shape[1], 6),
        recall_by_similarity=bins,
        candidates=len(candidates),
        precision_of_candidates=len(candidates & true.keys()) / len(candidates),
        removed=len(removed),
        precision_of_removed=len(found & true.keys()) / len(found),
        pairs_with_one_gone=gone / len(true),
    )
