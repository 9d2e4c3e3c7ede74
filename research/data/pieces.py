"""Learns the pieces that words are cut into, equal from equal texts: the tokenizers package is not
so careful."""

import json
from collections.abc import Iterable
from typing import Any

from research.arguments import InputError

UNKNOWN = "[UNK]"  # of WordPiece: a word with a character that no piece has


def learn(kind: str, texts: Iterable[str], vocab_size: int, package: Any) -> str:
    """Returns the JSON of bpe, unigram or wordpiece learned by `package`, tokenizers, with at most
    vocab_size - 1 ids; raises InputError when these cannot be so few."""
    least = 2 if kind == "wordpiece" else 257
    if vocab_size < least:
        raise InputError(
            f"vocab_size={vocab_size} is too small for {kind}; expected {least} or more"
        )
    # `end` is not a special token of the package: its name in a text would become the id.
    options = dict(vocab_size=vocab_size - 1, show_progress=False)
    if kind == "wordpiece":
        pieces = package.Tokenizer(package.models.WordPiece(unk_token=UNKNOWN))
        pieces.normalizer = package.normalizers.BertNormalizer(lowercase=False, strip_accents=False)
        pieces.pre_tokenizer = package.pre_tokenizers.BertPreTokenizer()
        pieces.decoder = package.decoders.WordPiece(cleanup=False)
        # The package numbers "##a", "##b" ... as it meets them, in another order each time, and
        # decides between equally frequent pieces by number. Known beforehand, they have an order.
        texts, found = list(texts), set()
        for text in texts:
            words = pieces.pre_tokenizer.pre_tokenize_str(pieces.normalizer.normalize_str(text))
            found.update(*(word[1:] for word, _ in words))
        known = [UNKNOWN, *(f"##{character}" for character in sorted(found))]
        trainer = package.trainers.WordPieceTrainer(special_tokens=known, **options)
    else:
        model, trainer = dict(
            bpe=(package.models.BPE, package.trainers.BpeTrainer),
            unigram=(package.models.Unigram, package.trainers.UnigramTrainer),
        )[kind]
        level = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
        pieces = package.Tokenizer(model())
        pieces.pre_tokenizer, pieces.decoder = level, package.decoders.ByteLevel()
        trainer = trainer(initial_alphabet=sorted(level.alphabet()), **options)
    try:
        pieces.train_from_iterator(texts, trainer)
    except InputError:  # of the text's reader
        raise
    except Exception as error:  # of text without a single word, unigram says so in its own words
        raise InputError(f"{kind} cannot be learned from this text ({error}); give more") from None
    if kind == "bpe":
        return pieces.to_str()
    learned = json.loads(pieces.to_str())
    learned["added_tokens"] = [one for one in learned["added_tokens"] if one["content"] == UNKNOWN]
    if kind == "unigram":
        learned["model"]["vocab"] = _in_order(learned["model"]["vocab"])
    return json.dumps(learned, ensure_ascii=False)


def _in_order(vocabulary: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """The package gives single characters that it did not learn scores in an order that differs
    from call to call, and the last digits of all depend on its threads: equal texts shall give
    equal tokenizers."""
    lowest = min((score for piece, score in vocabulary if len(piece) > 1), default=0.0)
    scores = {
        piece: round(lowest - 1 if len(piece) == 1 and score < lowest else score, 6)
        for piece, score in vocabulary
    }
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
