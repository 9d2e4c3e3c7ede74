"""Text to ids and back: bytes, characters, or byte-level BPE; each is a small immutable value.

    tokenizer = train("bpe", texts, vocab_size=2048); ids = tokenizer.encode(["x = 1"])[0]
    tokenizer.save("tokenizer.json"); load("tokenizer.json").decode(ids)

Every tokenizer has one id more than its pieces, `end` = vocab_size - 1, for the end of a document.
No text encodes to it.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from research.arguments import InputError


class Tokenizer(NamedTuple):
    """kind: "bytes", "characters" or "bpe". vocabulary: the characters in order of their ids, the
    JSON of the tokenizers package, or nothing. Pickles, and its encoder is built on first use."""

    kind: str
    vocabulary: str = ""

    @property
    def vocab_size(self) -> int:
        """The number of ids, `end` among them."""
        if self.kind == "bpe":
            return _bpe(self.vocabulary).get_vocab_size() + 1
        return (256 if self.kind == "bytes" else len(self.vocabulary)) + 1

    @property
    def end(self) -> int:
        """The id of the end of a document."""
        return self.vocab_size - 1

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.kind} {self.vocabulary}".encode()).hexdigest()

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the int32 ids of each text. Raises InputError for what has no id."""
        try:
            data = [text.encode("utf-8") for text in texts]
        except UnicodeEncodeError as error:
            raise InputError(f"the text is not valid Unicode: {error}; give UTF-8 text") from None
        if self.kind == "bytes":
            return [np.frombuffer(item, np.uint8).astype(np.int32) for item in data]
        if self.kind == "bpe":
            batch = _bpe(self.vocabulary).encode_batch_fast(texts)
            return [np.array(encoding.ids, np.int32) for encoding in batch]
        return [self._find(np.frombuffer(text.encode("utf-32-le"), np.int32)) for text in texts]

    def _find(self, points: np.ndarray) -> np.ndarray:
        known = np.frombuffer(self.vocabulary.encode("utf-32-le"), np.int32)  # sorted by train()
        ids = np.searchsorted(known, points).clip(0, len(known) - 1).astype(np.int32)
        unknown = points[known[ids] != points]
        if len(unknown):
            raise InputError(
                f"the character {chr(unknown[0])!r} is not among the {len(known)} of the training "
                "text; leave it out, or train with tokenizer=bytes or bpe"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; `end` is left out, broken UTF-8 becomes U+FFFD."""
        ids = [int(i) for i in ids if 0 <= i < self.end]
        if self.kind == "bytes":
            return bytes(ids).decode("utf-8", errors="replace")
        if self.kind == "characters":
            return "".join(self.vocabulary[i] for i in ids)
        return _bpe(self.vocabulary).decode(ids, skip_special_tokens=False)

    def save(self, path: str) -> None:
        """Writes one JSON file."""
        epath.Path(path).write_text(json.dumps(self._asdict()))


def load(path: str) -> Tokenizer:
    """Returns the tokenizer saved at `path`; raises InputError if it is none."""
    try:
        tokenizer = Tokenizer(**json.loads(epath.Path(path).read_text()))
        if tokenizer.kind not in ("bytes", "characters", "bpe"):
            raise ValueError(f"kind {tokenizer.kind!r}")
        tokenizer.vocab_size  # noqa: B018 - reads the vocabulary
    except InputError:
        raise
    except Exception as error:  # the tokenizers package raises plain Exception
        raise InputError(f"{path} is not a saved tokenizer ({error}); give a tokenizer.json") from None
    return tokenizer


def train(kind: str, texts: Iterable[str], vocab_size: int | None) -> Tokenizer:
    """Returns a tokenizer of `kind`, learned from `texts`, with at most `vocab_size` ids.

    Byte-level BPE as in GPT-2 (Radford et al. 2019); None: 2,048 ids. The vocabulary of the others is
    what it is: bytes 257 ids, characters one an observed character and `end`.
    Raises InputError if `vocab_size` does not suit the kind.
    """
    if kind == "bpe":
        if (vocab_size := vocab_size or 2048) < 258:
            raise InputError(f"vocab_size={vocab_size} is too small for bpe; expected at least 258")
        return Tokenizer(kind, _train_bpe(texts, vocab_size - 1))
    if kind == "characters":
        tokenizer = Tokenizer(kind, "".join(sorted(set(itertools.chain.from_iterable(texts)))))
    else:
        tokenizer = Tokenizer(kind)
    if vocab_size not in (None, tokenizer.vocab_size):
        raise InputError(
            f"vocab_size={vocab_size} does not suit tokenizer={kind}, which has "
            f"{tokenizer.vocab_size} ids; leave it out"
        )
    return tokenizer


def _package() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise InputError(
            "tokenizer=bpe needs the tokenizers package: pip install 'anneal[nlp]', or use tokenizer=bytes"
        ) from None
    return tokenizers


@functools.lru_cache(maxsize=8)
def _bpe(vocabulary: str) -> Any:
    return _package().Tokenizer.from_str(vocabulary)


def _train_bpe(texts: Iterable[str], pieces: int) -> str:
    package = _package()
    byte_level = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe = package.Tokenizer(package.models.BPE())
    bpe.pre_tokenizer, bpe.decoder = byte_level, package.decoders.ByteLevel()
    # `end` is not a special token of the package: its name in a text would become the id.
    trainer = package.trainers.BpeTrainer(
        vocab_size=pieces, initial_alphabet=sorted(byte_level.alphabet()), show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe.to_str()
