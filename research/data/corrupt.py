"""Corrupted text to learn from: masked tokens (BERT, arXiv:1810.04805) and spans (T5,
arXiv:1910.10683). The random generator is that of the row's epoch, so masks are fresh in each epoch
and equal after a resume.

`mask` and `spans` turn a row of text.py (tokens, segments, weight) into a row to train on.
"""

import functools
from collections.abc import Callable

import numpy as np

from research.data.source import Batch
from research.data.tokenizer import Tokenizer


def mask_count(length: int, rate: float) -> int:
    """Returns how many of `length` tokens are to be predicted: at least one."""
    return max(1, round(length * rate)) if length else 0


def mask(
    row: Callable[..., Batch],
    codec: Tokenizer,
    rate: float,
    whole_words: bool,
    index: int,
    epoch: int,
    random: np.random.Generator,
) -> Batch:
    """Chooses `rate` of a row's tokens, as exactly as whole numbers (and words) allow, never an
    `end` or what begins a text. Of these 80 % become the mask, 10 % a random id, 10 % stay.
    `targets` are the tokens as they were, `weight` is 1 where one was chosen."""
    row = row(index, epoch, random)
    tokens = row["tokens"]
    allowed = (row["weight"] > 0) & (tokens != codec.end) & (tokens != codec.first)
    places = np.flatnonzero(allowed)
    wanted = mask_count(len(places), rate)
    if whole_words:
        chosen = _whole_words(tokens, places, wanted, codec, random)
    else:
        chosen = random.permutation(places)[:wanted]
    kind = random.random(len(chosen))
    changed = tokens.copy()
    changed[chosen[kind < 0.8]] = codec.mask
    others = chosen[(kind >= 0.8) & (kind < 0.9)]
    drawn = random.integers(codec.vocab_size - 1, size=len(others))
    changed[others] = drawn + (drawn >= codec.end)
    weight = np.zeros_like(row["weight"])
    weight[chosen] = 1
    return row | {"tokens": changed, "targets": tokens, "weight": weight}


def _whole_words(
    tokens: np.ndarray,
    places: np.ndarray,
    wanted: int,
    codec: Tokenizer,
    random: np.random.Generator,
) -> np.ndarray:
    """Returns places of whole words, up to `wanted`: a word that would go beyond is left out. When
    the first word drawn is longer than that, it alone is taken in part."""
    begins, ends = _alphanumeric(codec)
    inside = begins[tokens[1:]] & ends[tokens[:-1]]
    word = np.cumsum(np.append(True, ~inside))[places]
    groups = np.split(places, np.flatnonzero(np.diff(word)) + 1) if len(places) else []
    chosen: list[int] = []
    for group in (groups[i] for i in random.permutation(len(groups))):
        if len(chosen) + len(group) <= wanted:
            chosen += group.tolist()
        if len(chosen) == wanted:
            break
    return np.array(chosen or places[:wanted], np.int64)


@functools.lru_cache(maxsize=4)
def _alphanumeric(codec: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Returns whether each id goes on with a word that one before it has begun, and whether it
    leaves a word open."""
    texts = codec.pieces()
    if codec.is_wordpiece:  # which marks what goes on; all others what begins: "▁the", " the"
        goes_on = np.array([text.startswith("##") for text in texts])
        return goes_on, np.ones_like(goes_on)
    inside = lambda character: character.isalnum() or character == "\ufffd"  # noqa: E731
    begins, ends = ([inside(text[at]) for text in texts] for at in (slice(1), slice(-1, None)))
    return np.array(begins), np.array(ends)


def span_sizes(length: int, rate: float, mean: float) -> tuple[int, int]:
    """Returns the number of tokens to drop from `length`, and of spans they lie in."""
    noise = min(max(1, round(length * rate)), length - 1)
    return noise, max(1, min(round(noise / mean), noise, length - noise))


def span_shapes(length: int, rate: float, mean: float) -> tuple[int, int, int]:
    """Returns the lengths of inputs and targets of a full row, and the number of sentinels."""
    noise, count = span_sizes(length, rate, mean)
    return length - noise + count + 1, noise + count + 1, count


def spans(
    row: Callable[..., Batch],
    codec: Tokenizer,
    context: int,
    rate: float,
    mean: float,
    index: int,
    epoch: int,
    random: np.random.Generator,
) -> Batch:
    """Replaces spans of `mean` tokens, `rate` of the text, by a sentinel each: the inputs. The
    targets are each sentinel and what it stands for. Both finish with `end`."""
    row = row(index, epoch, random)
    tokens = row["tokens"][row["weight"] > 0]
    tokens = tokens[tokens != codec.end]  # which would end a target too early
    width, height, _ = span_shapes(context, rate, mean)
    if len(tokens) < 2:  # the last row of a split may be a single token
        inputs, targets = tokens, tokens[:0]
    else:
        inputs, targets = _cut(tokens, codec, rate, mean, random)
    return pair(inputs, targets, codec, width, height)


def _cut(
    tokens: np.ndarray, codec: Tokenizer, rate: float, mean: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    noise, count = span_sizes(len(tokens), rate, mean)

    def parts(total: int) -> np.ndarray:
        """`count` positive numbers that add up to `total`, all such equally likely."""
        cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1
        return np.diff(cuts, prepend=0, append=total)

    lengths = np.stack([parts(len(tokens) - noise), parts(noise)], 1).reshape(-1)
    pieces = np.split(tokens, np.cumsum(lengths)[:-1])
    sentinels = codec.sentinels(count)[:, None]
    inputs = [x for kept, s in zip(pieces[::2], sentinels, strict=True) for x in (kept, s)]
    targets = [x for s, lost in zip(sentinels, pieces[1::2], strict=True) for x in (s, lost)]
    return np.concatenate(inputs), np.concatenate(targets)


def pair(
    inputs: np.ndarray, targets: np.ndarray, codec: Tokenizer, width: int, height: int
) -> dict[str, np.ndarray]:
    """Returns a row for an encoder-decoder: inputs, input_segments (width,), and tokens (the
    targets behind `start`), targets, segments, weight (height,). Texts that are too long are cut,
    and then have no `end`."""
    inputs = np.append(inputs, codec.end)[:width]
    targets = np.append(targets, codec.end)[:height]
    row = {name: np.zeros(width, np.int32) for name in ("inputs", "input_segments")}
    row |= {name: np.zeros(height, np.int32) for name in ("tokens", "targets", "segments")}
    row["weight"] = np.zeros(height, np.float32)
    row["inputs"][: len(inputs)] = inputs
    row["input_segments"][: len(inputs)] = 1
    row["targets"][: len(targets)] = targets
    row["tokens"][: len(targets)] = np.append(codec.start, targets[:-1])
    row["segments"][: len(targets)] = 1
    row["weight"][: len(targets)] = 1
    return row
