"""Unlabelled reviews and plots to pretrain on, without what SST-2 judges by; few labels to learn.

counts = unlabelled("data", "texts"); few("data", seed=0, labels=500, folder="tables")
"""

import json
import re
from pathlib import Path

import numpy as np

from experiments.sentences.tables import labelled, make, rows
from research.data.cleaning import contamination

HELD = 20  # one sentence of so many is for validation


def unlabelled(path: str, folder: str) -> tuple[list[str], dict[str, int]]:
    """Writes the sentences of MR and SUBJ as train.jsonl and validation.jsonl, without those that
    overlap with a validation or test sentence of SST-2 (cut from the same reviews): in 8 words in a
    row, in all words of a shorter one, or in all its letters, as the corpora split words and drop
    accents in different ways. Returns the training sentences, and counts."""
    root, to = Path(path), Path(folder)
    texts = [
        sentence
        for name in ("rt-polarity", "subj")
        for sentence, _ in labelled(root / "text_classification" / f"{name}.all")
    ]
    judged = [s for split in ("dev", "test") for s, _ in rows(root / "sst2" / f"{split}.tsv")]
    (to / "judged").mkdir(parents=True)
    _write(judged, to / "judged" / "sst2.jsonl")
    step = contamination.make(str(to / "judged"), reader="jsonl", ngram=8, min_ngram=4)
    clean = [text for text in dict.fromkeys(texts) if step.clean(text).text is not None]
    long = [found for found in map(letters, judged) if len(found) >= 16]
    kept = [text for text in clean if not _shares(letters(text), long)]
    both = "\n".join(map(letters, kept))
    left = sum(sentence in both for sentence in long)  # by a search of its own
    assert left == 0, f"{left} sentences of SST-2's validation and test are still there"
    _write([t for i, t in enumerate(kept) if i % HELD], to / "train.jsonl")
    _write(kept[::HELD], to / "validation.jsonl")
    own = {letters(sentence) for sentence, _ in rows(root / "sst2" / "train.tsv")}
    counts = dict(sentences=len(texts), without_copies=len(set(texts)), by_words=len(clean))
    counts |= dict(kept=len(kept), of_sst2_train=sum(letters(text) in own for text in kept))
    return [t for i, t in enumerate(kept) if i % HELD], counts


def letters(text: str) -> str:
    """Returns the letters a to z and digits alone."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _shares(text: str, judged: list[str]) -> bool:
    return any(other in text or (len(text) >= 16 and text in other) for other in judged)


def _write(texts: list[str], file: Path) -> None:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def few(path: str, seed: int, labels: int, folder: str) -> None:
    """Writes SST-2 as tables, of its training sentences `labels` that the seed draws."""
    make("sst2", path, seed, folder)
    file = Path(folder, "train.tsv")
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    chosen = np.random.default_rng((seed, 2)).permutation(len(lines))[:labels]
    file.write_text("".join(lines[i] for i in sorted(chosen.tolist())), encoding="utf-8")
