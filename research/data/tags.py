"""Words with a tag each: names of people and places, parts of speech (their files: conll.py).

    data = dict(name="tags", path="conll2003", word=0, tag=-1)

Each word is tokenised by itself, all but the first behind a space; its first token has its tag
(arXiv:1810.04805, section 5.3). A row is tokenizer.first, words, `end`. What a row has no room for
goes into another, so that every word is asked for once.
"""

import functools
from typing import NamedTuple

import numpy as np

from research.arguments import Count, InputError, Size
from research.data import conll
from research.data.readers import Records
from research.data.source import Batch, Source, cache_folder, make_source
from research.data.text import digest, learn_tokenizer
from research.data.tokenizer import Kind, Tokenizer


class Part(NamedTuple):
    """A row: words of a sentence that have room together."""

    sentence: int
    first: int  # its first word there
    tokens: np.ndarray  # with the first token and `end`
    places: np.ndarray  # the tokens that words begin with


class Gold(NamedTuple):
    """What tags are judged by."""

    rows: list[range]  # of each sentence
    places: list[np.ndarray]  # of each row: the tokens that speak for its words
    tags: list[list[str]]  # of each sentence


def make(
    path: str | None = None,
    word: int = 0,
    tag: int = -1,
    tokenizer: Kind = "bpe",
    vocab_size: Count | None = None,
    tokenizer_path: str | None = None,
    context: Count = 128,
    workers: Size = 0,
    cache: str | None = None,
    *,
    split: str,
    seed: int,
    batch: int,
) -> Source:
    """Returns batches of tokens, segments, labels (batch, context) int32, and weight (batch,
    context) float32, 1 on the first token of each word; of any split but train also `turn` (batch,
    num_batches), which says in which batch of the pass a row is. `word` and `tag` are columns,
    counted from 0, or from -1, the last.

    info: labels, their number, and classes, their names in the order of their numbers, both of the
    train split; words; sentences, how many of them are in several rows (`divided`); words that are
    longer than a row and cut (`cut`), and those of which the tokenizer leaves nothing, which are
    masks (`without_tokens`). Raises InputError for a tag that the train split does not have.
    """
    if context < 4:
        raise InputError(f"context={context} has no room for words; expected at least 4")
    read = functools.cache(lambda name: conll.read(path, name, word, tag))
    found, train = read(split), read("train")
    if not found.sentences or not train.sentences:
        raise InputError(f"{path} has no sentences for split {split}")
    classes = sorted({name for sentence in train.sentences for name in sentence.tags})
    number = {name: index for index, name in enumerate(classes)}
    for sentence in found.sentences:
        for line, name in enumerate(sentence.tags, sentence.line):
            if name not in number:
                raise InputError(
                    f"{sentence.file}:{line}: tag {name!r} is not among those of the train split: "
                    + ", ".join(classes)
                )
    root = cache_folder(cache)
    held = lambda name: _records(read(name))  # noqa: E731
    codec = learn_tokenizer(held, tokenizer, vocab_size, tokenizer_path, root, 0)
    parts, info = divide([sentence.words for sentence in found.sentences], context, codec)
    labels = [np.array([number[t] for t in s.tags], np.int32) for s in found.sentences]
    count = -(-len(parts) // batch)
    form = dict.fromkeys(("tokens", "segments", "labels", "weight"), (context,))
    form |= {} if split == "train" else dict(turn=(count,))
    row = functools.partial(_row, parts, labels, context, batch, count)
    info |= dict(labels=len(classes), classes=classes, context=context, tokenizer=codec.kind)
    info |= dict(
        vocab_size=codec.size_with(codec.mask, codec.first), tokenizer_fingerprint=codec.fingerprint
    )
    info["fingerprint"] = digest(found.fingerprint, codec.fingerprint, context, classes)
    gold = None if split == "train" else _gold(found.sentences, parts)
    care = dict(split=split, batch=batch, seed=seed, workers=workers)
    source = make_source(row, len(parts), [form], info, codec, **care)
    return source._replace(gold=gold, row=None)  # judged by all parts of a sentence at once


def _records(corpus: conll.Corpus) -> Records:
    texts = [" ".join(sentence.words) for sentence in corpus.sentences]
    return Records(len(texts), str, texts.__getitem__, corpus.fingerprint)


def divide(
    sentences: list[list[str]], context: int, codec: Tokenizer
) -> tuple[list[Part], dict[str, int]]:
    """Returns the rows of sentences, in their order, and what was counted."""
    pieces = [f" {word}" if i else word for words in sentences for i, word in enumerate(words)]
    tokens = iter(codec.encode(pieces, bare=True))
    room, parts = context - 2, []
    info = dict(sentences=len(sentences), words=len(pieces), divided=0, cut=0, without_tokens=0)
    for number, words in enumerate(sentences):
        before, held, length = len(parts), [], 0
        for index in range(len(words)):
            ids = next(tokens)
            info["cut"] += len(ids) > room
            info["without_tokens"] += not len(ids)
            ids = ids[:room] if len(ids) else np.array([codec.mask])
            if length + len(ids) > room:
                parts.append(_part(number, index - len(held), held, codec))
                held, length = [], 0
            held.append(ids)
            length += len(ids)
        parts.append(_part(number, len(words) - len(held), held, codec))
        info["divided"] += len(parts) - before > 1
    return parts, info


def _part(sentence: int, first: int, words: list[np.ndarray], codec: Tokenizer) -> Part:
    places = 1 + np.cumsum([0, *map(len, words)])[:-1]
    tokens = np.concatenate([[codec.first], *words, [codec.end]]).astype(np.int32)
    return Part(sentence, first, tokens, places)


def _gold(sentences: list[conll.Sentence], parts: list[Part]) -> Gold:
    ends = np.searchsorted([part.sentence for part in parts], range(len(sentences)), "right")
    rows = [range(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
    return Gold(rows, [part.places for part in parts], [one.tags for one in sentences])


def fill(part: Part, context: int) -> dict[str, np.ndarray]:
    """Returns tokens and segments (context,) of a row."""
    row = {name: np.zeros(context, np.int32) for name in ("tokens", "segments")}
    row["tokens"][: len(part.tokens)] = part.tokens
    row["segments"][: len(part.tokens)] = 1
    return row


def _row(
    parts: list[Part],
    labels: list[np.ndarray],
    context: int,
    batch: int,
    count: int,
    index: int,
    epoch: int,
    random: np.random.Generator,
) -> Batch:
    part = parts[index]
    row = fill(part, context)
    row |= dict(labels=np.zeros(context, np.int32), weight=np.zeros(context, np.float32))
    row["labels"][part.places] = labels[part.sentence][part.first :][: len(part.places)]
    row["weight"][part.places] = 1
    turn = np.zeros(count, np.float32)
    turn[index // batch] = 1
    return row | dict(turn=turn)
