"""The three corpora as train, validation and test tables, and tokenizers of whole words.

make("mr", "data", seed=0, folder="tables")
words([sentence for sentence, _ in rows("tables/train.tsv")], least=2, folder="words")
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np

CORPORA = ("sst2", "mr", "trec")
FOLDS = 10  # of MR, as in the papers: seed n tests on fold n


def make(name: str, path: str, seed: int, folder: str) -> None:
    """Writes train.tsv, validation.tsv and test.tsv of sentence and label, without a header.

    SST-2 has a validation split. MR's tenth number `seed` is its test, and a tenth of what is left,
    as of TREC's training questions, is held out for validation, another one for each seed."""
    root = Path(path)
    if name == "sst2":
        parts = {
            split: rows(root / "sst2" / f"{file}.tsv")
            for split, file in (("train", "train"), ("validation", "dev"), ("test", "test"))
        }
    else:
        if name == "mr":
            found = labelled(root / "text_classification" / "rt-polarity.all")
            order = np.random.default_rng(0).permutation(len(found))
            test = set(order[seed % FOLDS :: FOLDS].tolist())
            parts = {"test": [row for i, row in enumerate(found) if i in test]}
            found = [row for i, row in enumerate(found) if i not in test]
        else:
            found = labelled(root / "text_classification" / "TREC.train.all")
            parts = {"test": labelled(root / "text_classification" / "TREC.test.all")}
        held = np.random.default_rng((seed, 1)).permutation(len(found))[: len(found) // 10]
        held = set(held.tolist())
        parts["train"] = [row for i, row in enumerate(found) if i not in held]
        parts["validation"] = [row for i, row in enumerate(found) if i in held]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for split, found in parts.items():
        text = "".join(f"{sentence}\t{label}\n" for sentence, label in found)
        Path(folder, f"{split}.tsv").write_text(text, encoding="utf-8")


def rows(file: str | Path) -> list[tuple[str, str]]:
    """Returns the sentences and labels of a table."""
    lines = Path(file).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return [tuple(line.rsplit("\t", 1)) for line in lines]


def labelled(file: str | Path) -> list[tuple[str, str]]:
    """Returns the sentences and labels of a file of label, space and sentence."""
    lines = Path(file).read_bytes().decode("latin-1").removesuffix("\n").split("\n")
    pairs = [line.split(" ", 1) for line in lines]
    return [(" ".join(sentence.split()), label) for label, sentence in pairs]


def words(texts: list[str], least: int, folder: str) -> str:
    """Writes a tokenizer.json whose tokens are the words that occur `least` times in `texts`, in
    the form of the tokenizers package; all others are one token. Returns its path."""
    import tokenizers

    counts = Counter(word for text in texts for word in text.split())
    known = sorted(word for word, count in counts.items() if count >= least)
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["[UNK]", "[SEP]", *known]))}
    codec = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    codec.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    Path(folder).mkdir(parents=True, exist_ok=True)
    codec.save(f"{folder}/tokenizer.json")
    Path(folder, "tokenizer_config.json").write_text(json.dumps({"sep_token": "[SEP]"}))
    return f"{folder}/tokenizer.json"
