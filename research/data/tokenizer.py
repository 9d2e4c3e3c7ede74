"""Text to ids and back: bytes, characters, or byte-level BPE (Radford et al. 2019).

    tokenizer = train("bpe", texts, vocab_size=2048); ids = tokenizer.encode(["x = 1"])[0]
    tokenizer.save("tokenizer.json"); load("tokenizer.json").decode(ids)

The last id, `end` = vocab_size - 1, ends a document; no text encodes to it.
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
    """A value that pickles; its encoder is built on first use."""

    kind: str  # bytes, characters or bpe
    vocabulary: str = ""  # the characters in order of their ids, or JSON of the tokenizers package

    @property
    def vocab_size(self) -> int:
        """The number of ids, `end` among them."""
        return self.end + 1

    @property
    def end(self) -> int:
        """The id that ends a document."""
        if self.kind == "bpe":
            return _bpe(self.vocabulary).get_vocab_size()
        return 256 if self.kind == "bytes" else len(self.vocabulary)

    @property
    def fingerprint(self) -> str:
        """Equal for equal tokenizers."""
        return hashlib.sha256(f"{self.kind} {self.vocabulary}".encode()).hexdigest()

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the ids of each text, int32. Raises InputError for what has no id."""
        try:
            data = [text.encode("utf-8") for text in texts]
        except UnicodeEncodeError as error:
            raise InputError(f"the text is not Unicode ({error}); give UTF-8 text") from None
        if self.kind == "bytes":
            return [np.frombuffer(item, np.uint8).astype(np.int32) for item in data]
        if self.kind == "bpe":
            batch = _bpe(self.vocabulary).encode_batch_fast(texts)
            return [np.array(encoding.ids, np.int32) for encoding in batch]
        return [self._find(text) for text in texts]

    def _find(self, text: str) -> np.ndarray:
        known, points = (
            np.frombuffer(string.encode("utf-32-le"), np.int32)
            for string in (self.vocabulary, text)
        )
        ids = np.searchsorted(known, points).clip(max=len(known) - 1)  # train() sorted them
        unknown = points[known[ids] != points]
        if len(unknown):
            raise InputError(
                f"the character {chr(unknown[0])!r} is not among the {len(known)} of the training "
                "text; leave it out, or train with tokenizer=bytes or bpe"
            )
        return ids.astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` without `end`; broken UTF-8 becomes U+FFFD."""
        ids = [int(i) for i in ids if i < self.end]
        if self.kind == "bytes":
            return bytes(ids).decode("utf-8", errors="replace")
        if self.kind == "characters":
            return "".join(self.vocabulary[i] for i in ids)
        return _bpe(self.vocabulary).decode(ids, skip_special_tokens=False)

    def save(self, path: str) -> None:
        """Writes one JSON file."""
        epath.Path(path).write_text(json.dumps(self._asdict()))


def load(path: str) -> Tokenizer:
    """Returns the tokenizer saved at `path`; raises InputError if there is none."""
    try:
        tokenizer = Tokenizer(**json.loads(epath.Path(path).read_text()))
        if tokenizer.kind not in ("bytes", "characters", "bpe") or not tokenizer.end:
            raise ValueError(f"kind {tokenizer.kind!r}")
    except InputError:
        raise
    except Exception as error:  # what the tokenizers package raises is no narrower
        raise InputError(f"{path} is not a saved tokenizer: {error}; give tokenizer.json") from None
    return tokenizer


def train(kind: str, texts: Iterable[str], vocab_size: int | None = None) -> Tokenizer:
    """Returns a tokenizer learned from `texts` with at most `vocab_size` ids (None: 2,048 for bpe,
    no limit otherwise). Raises InputError if it cannot be so small."""
    if kind == "bpe":
        return Tokenizer(kind, _train_bpe(texts, vocab_size or 2048))
    characters = set(itertools.chain.from_iterable(texts)) if kind == "characters" else ""
    tokenizer = Tokenizer(kind, "".join(sorted(characters)))
    if tokenizer.vocab_size > (vocab_size or tokenizer.vocab_size):
        raise InputError(f"vocab_size={vocab_size}, but {kind} need {tokenizer.vocab_size}")
    return tokenizer


def _package() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise InputError("bpe needs the tokenizers package: pip install 'anneal[nlp]'") from None
    return tokenizers


@functools.lru_cache(maxsize=8)
def _bpe(vocabulary: str) -> Any:
    return _package().Tokenizer.from_str(vocabulary)


def _train_bpe(texts: Iterable[str], vocab_size: int) -> str:
    if vocab_size < 257:
        raise InputError(f"vocab_size={vocab_size} is too small for bpe; expected 257 or more")
    package = _package()
    level = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe = package.Tokenizer(package.models.BPE())
    bpe.pre_tokenizer, bpe.decoder = level, package.decoders.ByteLevel()
    # `end` is not a special token of the package: its name in a text would become the id.
    trainer = package.trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=sorted(level.alphabet()), show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe.to_str()
