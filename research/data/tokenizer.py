"""Text to ids and back: bytes, characters, byte-level BPE (Radford et al. 2019), or what a
tokenizer.json of the tokenizers package says ("package").

    tokenizer = train("bpe", texts, vocab_size=2048); ids = tokenizer.encode(["x = 1"])[0]
    tokenizer.save("tokenizer.json"); load("tokenizer.json").decode(ids)

`end` ends a document and no text encodes to it. It is the last id, vocab_size - 1, but in a
package's, where the folder that it came from names it.
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

    kind: str  # bytes, characters, bpe or package
    vocabulary: str = ""  # the characters in order of their ids, or JSON of the tokenizers package
    end_id: int | None = None  # of a package's

    @property
    def vocab_size(self) -> int:
        """The number of ids, `end` among them."""
        return _package_size(self.vocabulary) if self.kind == "package" else self.end + 1

    @property
    def end(self) -> int:
        """The id that ends a document."""
        if self.kind == "package":
            return self.end_id
        if self.kind == "bpe":
            return _package_tokenizer(self.vocabulary).get_vocab_size()
        return 256 if self.kind == "bytes" else len(self.vocabulary)

    @property
    def fingerprint(self) -> str:
        """Equal for equal tokenizers."""
        end = "" if self.end_id is None else f" {self.end_id}"
        return hashlib.sha256(f"{self.kind} {self.vocabulary}{end}".encode()).hexdigest()

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the ids of each text, int32; a package's begin with what its model expects there
        (<s>), and names of special tokens in a text are spelled, not obeyed. Raises InputError for
        what has no id."""
        data = _utf8(texts)
        if self.kind == "bytes":
            return [np.frombuffer(item, np.uint8).astype(np.int32) for item in data]
        if self.kind in ("bpe", "package"):
            batch = _package_tokenizer(self.vocabulary).encode_batch_fast(texts)
            rows = [np.array(encoding.ids, np.int32) for encoding in batch]
            # Some end each text themselves: here that is for those to do who know it is over.
            return [row[:-1] if len(row) and row[-1] == self.end else row for row in rows]
        return [self._find(text) for text in texts]

    def locate(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns for each text its ids, without what a package's model expects around them, and
        spans (t, 2) int32: the characters from which to which each token stands. A character that
        is several tokens belongs whole to each."""
        if self.kind in ("bpe", "package"):
            _utf8(texts)
            found = []
            for encoding in _package_tokenizer(self.vocabulary).encode_batch(texts):
                kept = np.array(encoding.special_tokens_mask, bool) == 0
                ids = np.array(encoding.ids, np.int32)[kept]
                found.append((ids, np.array(encoding.offsets, np.int32).reshape(-1, 2)[kept]))
            return found
        found = []
        for text, ids in zip(texts, self.encode(texts), strict=True):
            place = np.arange(len(text), dtype=np.int32)
            if self.kind == "bytes":
                place = np.repeat(place, [len(character.encode()) for character in text])
            found.append((ids, np.stack([place, place + 1], 1)))
        return found

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
        end, size = self.end, self.vocab_size
        ids = [int(i) for i in ids if i != end and i < size]
        if self.kind == "bytes":
            return bytes(ids).decode("utf-8", errors="replace")
        if self.kind == "characters":
            return "".join(self.vocabulary[i] for i in ids)
        return _package_tokenizer(self.vocabulary).decode(ids, skip_special_tokens=False)

    def save(self, path: str) -> None:
        """Writes one JSON file."""
        epath.Path(path).write_text(json.dumps(self._asdict()))


def _utf8(texts: list[str]) -> list[bytes]:
    try:
        return [text.encode("utf-8") for text in texts]
    except UnicodeEncodeError as error:
        raise InputError(f"the text is not Unicode ({error}); give UTF-8 text") from None


def load(path: str) -> Tokenizer:
    """Returns the tokenizer saved at `path`, or the tokenizer.json of a Hugging Face folder, whose
    other files name its end; raises InputError if there is none."""
    try:
        text = epath.Path(path).read_text()
        values = json.loads(text)
        if "kind" not in values and "model" in values:
            return _load_package(epath.Path(path), text)
        tokenizer = Tokenizer(**values)
        known = tokenizer.kind in ("bytes", "characters", "bpe", "package")
        if not known or not 0 <= tokenizer.end < tokenizer.vocab_size or tokenizer.vocab_size < 2:
            raise ValueError(f"kind {tokenizer.kind!r}")
    except InputError:
        raise
    except Exception as error:  # what the tokenizers package raises is no narrower
        raise InputError(f"{path} is not a saved tokenizer: {error}; give tokenizer.json") from None
    return tokenizer


def _load_package(path: epath.Path, text: str) -> Tokenizer:
    """The end of a text by the first file that names it: eos_token, or the [SEP] of BERT."""
    known = _package_tokenizer(text)
    ends: list[int | None] = []
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        file = path.parent / name
        values = json.loads(file.read_text()) if file.exists() else {}
        for key in ("eos_token", "sep_token"):
            token = values.get(key)  # text, or a description of it
            token = token.get("content") if isinstance(token, dict) else token
            ends += [known.token_to_id(token)] if isinstance(token, str) else []
        ids = values.get("eos_token_id")  # some models have several
        ends += (ids[:1] if isinstance(ids, list) else [ids]) if ids is not None else []
    if not ends:
        raise InputError(
            f"{path}: no file beside it names the token that ends a text; write "
            '{"eos_token": "<|endoftext|>"}, or what it is called there, into '
            f"{path.parent / 'tokenizer_config.json'}"
        )
    tokenizer = Tokenizer("package", text, ends[0])
    if not isinstance(tokenizer.end, int) or not 0 <= tokenizer.end < tokenizer.vocab_size:
        raise InputError(
            f"{path}: the end of a text is said to be {tokenizer.end!r}, which is none of its "
            f"{tokenizer.vocab_size} ids; mend eos_token in tokenizer_config.json"
        )
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
def _package_tokenizer(vocabulary: str) -> Any:
    tokenizer = _package().Tokenizer.from_str(vocabulary)
    # Files from elsewhere may cut texts short and fill them up, and take "</s>" in a text for the
    # end of it.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


@functools.lru_cache(maxsize=8)
def _package_size(vocabulary: str) -> int:
    return max(_package_tokenizer(vocabulary).get_vocab().values()) + 1  # ids may have holes


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


def to_package(tokenizer: Tokenizer) -> tuple[str, str] | None:
    """Returns a tokenizer as the text of a Hugging Face tokenizer.json, and what its end is called
    there; None for bytes and characters, which that package does not have."""
    if tokenizer.kind not in ("bpe", "package"):
        return None
    package = _package().Tokenizer.from_str(tokenizer.vocabulary)
    if tokenizer.kind == "package":
        return tokenizer.vocabulary, package.id_to_token(tokenizer.end)
    name = "<|endoftext|>"
    while package.token_to_id(name) is not None:  # learned from a text that is full of it
        name = f"<{name}>"
    package.add_special_tokens([name])
    return package.to_str(), name
