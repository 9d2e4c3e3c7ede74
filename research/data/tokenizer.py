"""Text to ids and back: bytes, characters, byte-level BPE (Radford et al. 2019), Unigram over bytes
(arXiv:1804.10959), WordPiece (Schuster and Nakajima 2012, as BERT cuts words: what stands between
words is lost), or what a tokenizer.json of the tokenizers package says ("package").

    tokenizer = train("bpe", texts, vocab_size=2048); ids = tokenizer.encode(["x = 1"])[0]
    tokenizer.save("tokenizer.json"); load("tokenizer.json").decode(ids)

`end` ends a document and no text encodes to it. It is the last id, vocab_size - 1, but in a
package's, where the folder that it came from names it.

Objectives need more ids that no text encodes to: `mask`, `first`, `sentinels`. A package's
tokenizer that has them ([MASK], [CLS], <extra_id_0>) keeps its own, so that weights trained with it
serve; for all others they lie behind the vocabulary, vocab_size and up.
"""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from etils import epath

from research.arguments import InputError
from research.data.pieces import learn

Kind = Literal["bytes", "characters", "bpe", "unigram", "wordpiece"]
LEARNED = ("bpe", "unigram", "wordpiece")  # by the tokenizers package
# What the special ids are called in prompts and answers, and in the vocabularies of packages.
MASK, FIRST, SENTINEL = "[MASK]", "[CLS]", "<extra_id_{}>"
NAMES = {"mask": (MASK, "<mask>"), "first": (FIRST, "<s>")}


class Tokenizer(NamedTuple):
    """A value that pickles; its encoder is built on first use."""

    kind: str  # bytes, characters, bpe, unigram, wordpiece or package
    vocabulary: str = ""  # the characters in order of their ids, or JSON of the tokenizers package
    end_id: int | None = None  # of a package's
    start_id: int | None = None  # what a decoder begins with, where that is not `end`

    @property
    def vocab_size(self) -> int:
        """The number of ids, `end` among them."""
        return _package_size(self.vocabulary) if self.kind == "package" else self.end + 1

    @property
    def end(self) -> int:
        """The id that ends a document."""
        if self.kind == "package":
            return self.end_id
        if self.kind in LEARNED:
            return _package_tokenizer(self.vocabulary).get_vocab_size()
        return 256 if self.kind == "bytes" else len(self.vocabulary)

    @property
    def start(self) -> int:
        """The id that a decoder begins with."""
        return self.end if self.start_id is None else self.start_id

    @property
    def mask(self) -> int:
        """The id that stands for a token to be filled in."""
        return self._special("mask", self.vocab_size)

    @property
    def first(self) -> int:
        """The id that a text to be judged begins with."""
        return self._special("first", self.vocab_size + 1)

    def sentinels(self, count: int) -> np.ndarray:
        """Returns the ids that stand for `count` spans of a text. Raises InputError when a package
        has some, but fewer."""
        own = [SENTINEL.format(i) for i in range(count)]
        if self.kind != "package" or self._id(SENTINEL.format(0)) is None:
            return self.vocab_size + np.arange(count, dtype=np.int32)
        found = [self._id(name) for name in own]
        if None in found:
            raise InputError(
                f"the tokenizer has {found.index(None)} sentinels like {own[0]}, and a row of spans"
                f" needs {count}: set a smaller context, or a larger span_length"
            )
        return np.array(found, np.int32)

    def size_with(self, *ids: int) -> int:
        """Returns the size of a vocabulary that has these special ids too."""
        return max([self.vocab_size, *(int(i) + 1 for i in ids)])

    @property
    def lossless(self) -> bool:
        """Whether texts come back as they were, so that their bytes may be counted."""
        return self.kind in ("bytes", "characters", "bpe", "unigram")

    @property
    def is_wordpiece(self) -> bool:
        """Whether pieces that go on with a word are marked by ##."""
        return self.kind == "wordpiece" or (
            self.kind == "package" and json.loads(self.vocabulary)["model"]["type"] == "WordPiece"
        )

    def pieces(self) -> list[str]:
        """Returns what each id is called in a vocabulary that marks where words begin or go on,
        "▁the", "##ing"; else its text."""
        if self.kind in ("wordpiece", "package"):
            names = _package_tokenizer(self.vocabulary).get_vocab()
            spelled = {i: name for name, i in names.items()}
            if self.is_wordpiece or any(name.startswith("▁") for name in names):
                return [spelled.get(i, "") for i in range(self.vocab_size)]
        return ["" if i == self.end else self.decode([i]) for i in range(self.vocab_size)]

    def _special(self, name: str, otherwise: int) -> int:
        known = (self._id(text) for text in NAMES[name]) if self.kind == "package" else ()
        return next((i for i in known if i is not None), otherwise)

    def _id(self, name: str) -> int | None:
        return _package_tokenizer(self.vocabulary).token_to_id(name)

    @property
    def fingerprint(self) -> str:
        """Equal for equal tokenizers."""
        more = "".join(f" {i}" for i in (self.end_id, self.start_id) if i is not None)
        return hashlib.sha256(f"{self.kind} {self.vocabulary}{more}".encode()).hexdigest()

    def encode(self, texts: list[str], bare: bool = False) -> list[np.ndarray]:
        """Returns the ids of each text, int32; a package's begin with what its model expects there
        (<s>) unless `bare`, and names of special tokens in a text are spelled, not obeyed. Raises
        InputError for what has no id."""
        data = _utf8(texts)
        if self.kind == "bytes":
            return [np.frombuffer(item, np.uint8).astype(np.int32) for item in data]
        if self.kind in (*LEARNED, "package"):
            package = _package_tokenizer(self.vocabulary)
            batch = package.encode_batch_fast(texts, add_special_tokens=not bare)
            rows = [np.array(encoding.ids, np.int32) for encoding in batch]
            # Some end each text themselves: here that is for those to do who know it is over.
            return [row[:-1] if len(row) and row[-1] == self.end else row for row in rows]
        return [self._find(text) for text in texts]

    def encode_prompt(self, text: str, mask: bool = False, sentinels: int = 0) -> np.ndarray:
        """Returns the bare ids of a text in which the names of special ids are obeyed, as far as
        the objective has them: [MASK], or so many <extra_id_0>, <extra_id_1> ... Others are
        spelled."""
        known = {MASK: self.mask} if mask else {}
        known |= {SENTINEL.format(i): one for i, one in enumerate(self.sentinels(sentinels))}
        pattern = "|".join(map(re.escape, known)) or r"(?!)"
        parts = self.encode(re.split(pattern, text), bare=True)
        for at, name in reversed(list(enumerate(re.findall(pattern, text), 1))):
            parts.insert(at, np.array([known[name]], np.int32))
        return np.concatenate(parts)

    def locate(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns for each text its ids, without what a package's model expects around them, and
        spans (t, 2) int32: the characters from which to which each token stands. A character that
        is several tokens belongs whole to each."""
        if self.kind in (*LEARNED, "package"):
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

    def decode(self, ids: Iterable[int], sentinels: bool = False) -> str:
        """Returns the text of `ids` without `end`; broken UTF-8 becomes U+FFFD. What lies behind
        the vocabulary is left out, or spelled as the sentinels that it is then taken for."""
        end, size = self.end, self.vocab_size
        if sentinels:
            groups = itertools.groupby(map(int, ids), lambda i: max(i - size, -1))
            parts = (SENTINEL.format(n) if n >= 0 else self.decode(part) for n, part in groups)
            return " ".join(part.strip() for part in parts)
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
        known = tokenizer.kind in (*get_args(Kind), "package")
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
    start = None
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        file = path.parent / name
        values = json.loads(file.read_text()) if file.exists() else {}
        for key in ("eos_token", "sep_token"):
            token = values.get(key)  # text, or a description of it
            token = token.get("content") if isinstance(token, dict) else token
            ends += [known.token_to_id(token)] if isinstance(token, str) else []
        ids = values.get("eos_token_id")  # some models have several
        ends += (ids[:1] if isinstance(ids, list) else [ids]) if ids is not None else []
        start = values.get("decoder_start_token_id") if start is None else start
    if not ends and known.token_to_id("[SEP]") is not None:  # BERT's old folders name nothing
        ends = [known.token_to_id("[SEP]")]
    if not ends:
        raise InputError(
            f"{path}: no file beside it names the token that ends a text; write "
            '{"eos_token": "<|endoftext|>"}, or what it is called there, into '
            f"{path.parent / 'tokenizer_config.json'}"
        )
    tokenizer = Tokenizer("package", text, ends[0], start)
    if not isinstance(tokenizer.end, int) or not 0 <= tokenizer.end < tokenizer.vocab_size:
        raise InputError(
            f"{path}: the end of a text is said to be {tokenizer.end!r}, which is none of its "
            f"{tokenizer.vocab_size} ids; mend eos_token in tokenizer_config.json"
        )
    return tokenizer


def train(kind: str, texts: Iterable[str], vocab_size: int | None = None) -> Tokenizer:
    """Returns a tokenizer learned from `texts` with at most `vocab_size` ids (None: 2,048 for those
    that learn pieces, no limit otherwise). Raises InputError if it cannot be so small."""
    if kind in LEARNED:
        vocab_size = vocab_size or 2048
        tokenizer = Tokenizer(kind, learn(kind, texts, vocab_size, _package()))
    else:
        characters = set(itertools.chain.from_iterable(texts)) if kind == "characters" else ""
        tokenizer = Tokenizer(kind, "".join(sorted(characters)))
    if tokenizer.vocab_size > (vocab_size or tokenizer.vocab_size):
        raise InputError(f"vocab_size={vocab_size}, but {kind} need {tokenizer.vocab_size}")
    return tokenizer


def _package() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise InputError(
            "pieces of words need the tokenizers package: pip install 'anneal[nlp]'"
        ) from None
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


def to_package(tokenizer: Tokenizer, special: Sequence[str] = ()) -> tuple[str, str] | None:
    """Returns a tokenizer as the text of a Hugging Face tokenizer.json, and what its end is called
    there; None for bytes and characters, which that package does not have. `special` are the names
    of the ids behind the vocabulary, as far as the tokenizer does not have them."""
    if tokenizer.kind not in (*LEARNED, "package"):
        return None
    package = _package().Tokenizer.from_str(tokenizer.vocabulary)
    if tokenizer.kind == "package":
        name = package.id_to_token(tokenizer.end)
    else:
        name = "<|endoftext|>"
        while package.token_to_id(name) is not None:  # learned from a text that is full of it
            name = f"<{name}>"
        package.add_special_tokens([name])
    package.add_special_tokens([one for one in special if package.token_to_id(one) is None])
    return package.to_str(), name
