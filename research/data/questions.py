"""Questions whose answer is a piece of a passage (SQuAD; its files: squad.py).

    data = dict(name="questions", path="squad", context=384, stride=128, max_question=64)

A row is a window of a passage: tokenizer.first, the question, `end`, and with `types` 1 the
window's tokens and another `end`. Windows begin every `stride` tokens and overlap by
context - 3 - the question - stride tokens or more, so that some window holds whole every answer
that is at most one token longer than that. `starts` and `ends` are the places of an answer's first
and last token, 0 where the window does not hold it whole or there is none.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from research.arguments import Count, InputError, Size
from research.data import squad
from research.data.readers import Records
from research.data.source import Batch, Source, cache_folder, make_source
from research.data.text import digest, learn_tokenizer
from research.data.tokenizer import Kind, Tokenizer

NAMED = 10  # questions in info


class Window(NamedTuple):
    """Where a row lies."""

    question: int
    start: int  # its first token of the passage
    answer: tuple[int, int]  # places in the row, (0, 0): none
    weight: float


class Gold(NamedTuple):
    """What answers are judged by; each of `rows` and `answers` belongs to a question."""

    rows: list[range]
    answers: list[list[str]]  # none: the passage does not answer it
    text: Callable[[int, int, int], tuple[str, int]]  # (row, start, end) -> text, and where it is


class Texts(NamedTuple):
    """The tokens of a quiz, and how rows are made of them."""

    passages: list[str]
    tokens: list[tuple[np.ndarray, np.ndarray]]  # of passages: ids and spans, as codec.locate
    questions: list[np.ndarray]  # cut to max_question
    passage: list[int]  # of each question
    context: int
    stride: int
    codec: Tokenizer

    def room(self, question: int) -> int:
        """The number of the passage's tokens that a row holds."""
        return self.context - 3 - len(self.questions[question])

    def starts(self, question: int) -> range:
        """The first tokens of a question's windows."""
        length = len(self.tokens[self.passage[question]][0])
        return range(0, max(length - self.room(question), 0) + self.stride, self.stride)

    def row(self, question: int, start: int) -> dict[str, np.ndarray]:
        """Returns tokens, segments and types (context,) of a window."""
        first, ids = self.questions[question], self.tokens[self.passage[question]][0]
        ids = ids[start : start + self.room(question)]
        end = self.codec.end
        parts = [[self.codec.first], first, [end], ids, [end]]
        whole = np.concatenate(parts).astype(np.int32)
        row = {name: np.zeros(self.context, np.int32) for name in ("tokens", "segments", "types")}
        row["tokens"][: len(whole)] = whole
        row["segments"][: len(whole)] = 1
        row["types"][len(first) + 2 : len(whole)] = 1
        return row

    def text(self, question: int, window: int, start: int, end: int) -> tuple[str, int]:
        """Returns the passage's text between two places of a row, and the character at which it
        begins there. Spaces around it are the tokenizer's, not the answer's."""
        number = self.passage[question]
        passage, spans = self.passages[number], self.tokens[number][1]
        if not len(spans):
            return "", 0
        shift = window - len(self.questions[question]) - 2
        first, last = np.clip([start + shift, end + shift], 0, len(spans) - 1)
        begin = int(spans[first, 0])
        text = passage[begin : int(spans[last, 1])]
        return text.strip(), begin + len(text) - len(text.lstrip())


def make(
    path: str | None = None,
    tokenizer: Kind = "bpe",
    vocab_size: Count | None = None,
    tokenizer_path: str | None = None,
    context: Count = 384,
    stride: Count = 128,
    max_question: Count = 64,
    workers: Size = 0,
    cache: str | None = None,
    *,
    split: str,
    seed: int,
    batch: int,
) -> Source:
    """Returns batches of tokens, segments, types (batch, context), starts and ends (batch,) int32,
    and weight (batch,) float32; of any split but train also `turn` (batch, num_batches), which says
    in which batch of the pass a row is. Longer questions are cut. Where several answers are given,
    a window's is the first that it holds.

    An answer that is not in its passage where it should be is skipped: train leaves a question out
    that has no other, evaluation gives it weight 0 and still judges what is answered. info counts
    questions, unanswerable ones, windows, answers that no window holds (`outside`), questions that
    are cut and answers skipped, some of them by name. Raises InputError for windows that would
    leave gaps.
    """
    quiz = squad.read(path, split)
    if not quiz.questions:
        raise InputError(f"{path} has no questions for split {split}")
    root = cache_folder(cache)
    read = functools.cache(lambda name: _records(quiz if name == split else squad.read(path, name)))
    codec = learn_tokenizer(read, tokenizer, vocab_size, tokenizer_path, root, 0)
    asked = [question.text for question in quiz.questions]
    passage = [question.passage for question in quiz.questions]
    texts, cut = tokenise(quiz.passages, asked, passage, context, stride, max_question, codec)
    windows, rows, info = _plan(quiz, texts, split == "train")
    if not windows:
        raise InputError(f"{path}: no answer of split {split} is in its passage at answer_start")
    count = -(-len(windows) // batch)
    form = dict.fromkeys(("tokens", "segments", "types"), (context,))
    form |= dict(starts=(), ends=(), weight=())
    form |= {} if split == "train" else dict(turn=(count,))
    row = functools.partial(_row, texts, windows, batch, count)
    info |= dict(cut=cut, context=context, tokenizer=codec.kind)
    info |= dict(
        vocab_size=codec.size_with(codec.mask, codec.first), tokenizer_fingerprint=codec.fingerprint
    )
    parts = (quiz.fingerprint, codec.fingerprint, context, stride, max_question)
    info["fingerprint"] = digest(*parts)

    def text(row: int, start: int, end: int) -> tuple[str, int]:
        return texts.text(windows[row].question, windows[row].start, start, end)

    gold = Gold(rows, [[answer for answer, _ in q.answers] for q in quiz.questions], text)
    gold = None if split == "train" else gold
    care = dict(split=split, batch=batch, seed=seed, workers=workers)
    source = make_source(row, len(windows), [form], info, codec, **care)
    return source._replace(gold=gold, row=None)  # judged by all windows of a question at once


def tokenise(
    passages: list[str],
    asked: list[str],
    passage: list[int],
    context: int,
    stride: int,
    max_question: int,
    codec: Tokenizer,
) -> tuple[Texts, int]:
    """Returns the tokens of questions, each about a `passage` by its number, and how many of them
    were cut. Raises InputError for windows that would leave gaps."""
    if (room := context - 3 - max_question) < stride:
        raise InputError(
            f"stride={stride}, but windows of context={context} hold {room} tokens beside questions"
            f" of max_question={max_question}; lower stride or max_question, or raise context"
        )
    ids = [ids for ids, _ in codec.locate(asked)]
    cut = sum(len(one) > max_question for one in ids)
    questions, tokens = [one[:max_question] for one in ids], codec.locate(passages)
    return Texts(passages, tokens, questions, passage, context, stride, codec), cut


def place(spans: np.ndarray, begin: int, stop: int) -> tuple[int, int] | None:
    """Returns the first and the last token that have a part in some characters of a text."""
    first = int(np.searchsorted(spans[:, 1], begin, "right"))
    last = int(np.searchsorted(spans[:, 0], stop, "left")) - 1
    return (first, last) if first <= last else None


def _records(quiz: squad.Quiz) -> Records:
    texts = quiz.passages + [question.text for question in quiz.questions]
    return Records(len(texts), str, texts.__getitem__, quiz.fingerprint)


def _plan(quiz: squad.Quiz, texts: Texts, train: bool) -> tuple[list[Window], list[range], dict]:
    """Returns all windows, which of them belong to each question, and what was counted."""
    windows: list[Window] = []
    rows, skipped, outside = [], [], 0
    for number, question in enumerate(quiz.questions):
        passage, spans = quiz.passages[question.passage], texts.tokens[question.passage][1]
        places = []
        for answer, at in question.answers:
            good = answer.strip() and at >= 0 and passage[at : at + len(answer)] == answer
            found = place(spans, at, at + len(answer)) if good else None
            places += [found] if found else []
            skipped += [] if found else [question.name]
        known = not question.answers or bool(places)
        begin, room, held = len(windows), texts.room(number), set()
        for start in texts.starts(number) if known or not train else ():
            inside = [one for one in places if start <= one[0] and one[1] < start + room]
            held |= set(inside)
            shift = len(texts.questions[number]) + 2 - start
            answer = (inside[0][0] + shift, inside[0][1] + shift) if inside else (0, 0)
            windows.append(Window(number, start, answer, float(known)))
        outside += len(set(places) - held)
        rows.append(range(begin, len(windows)))
    info = dict(questions=len(quiz.questions), windows=len(windows), outside=outside)
    info["without_answer"] = sum(not question.answers for question in quiz.questions)
    info |= dict(skipped_answers=len(skipped), skipped=skipped[:NAMED])
    return windows, rows, info


def _row(
    texts: Texts,
    windows: list[Window],
    batch: int,
    count: int,
    index: int,
    epoch: int,
    random: np.random.Generator,
) -> Batch:
    window = windows[index]
    turn = np.zeros(count, np.float32)
    turn[index // batch] = 1
    row = texts.row(window.question, window.start)
    row |= {"starts": np.int32(window.answer[0]), "ends": np.int32(window.answer[1])}
    return row | {"weight": np.float32(window.weight), "turn": turn}
