"""Questions about passages in the JSON of SQuAD (arXiv:1606.05250; 2.0, where some have no answer:
arXiv:1806.03822).

    quiz = read("data/squad", "validation")      # of validation*.json, dev*.json, ...

A folder holds a file a split, whose name begins with it: `train.json`, `dev-v2.0.json`. A file is
every split but train. path="stdlib" needs no file: what does a function of Python's standard
library do, by the first line of its docstring?
"""

import ast
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from research.arguments import InputError
from research.data.readers import stdlib
from research.data.table import ALSO


class Question(NamedTuple):
    """A question about a passage; without answers: one that the passage does not answer."""

    name: str  # its id
    text: str
    passage: int
    answers: list[tuple[str, int]]  # text, and the character at which it begins


class Quiz(NamedTuple):
    """The questions of a split, in their order."""

    passages: list[str]
    questions: list[Question]
    fingerprint: str


def read(path: str | None, split: str) -> Quiz:
    """Returns the questions of a split. Raises InputError for files that are not there, or are not
    of this form."""
    if path == "stdlib":
        return _stdlib(split)
    file = _file(path, split)
    try:
        paragraphs = [
            p for article in json.loads(file.read_bytes())["data"] for p in article["paragraphs"]
        ]
        passages = [paragraph["context"] for paragraph in paragraphs]
        questions = [
            _question(item, number)
            for number, paragraph in enumerate(paragraphs)
            for item in paragraph["qas"]
        ]
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is not in the JSON form of SQuAD ({type(error).__name__}: {error}); expected "
            "data, paragraphs, context, qas, question, answers, text, answer_start"
        ) from None
    return _finished(passages, questions)


def _question(item: dict[str, Any], passage: int) -> Question:
    answers = [] if item.get("is_impossible") else item["answers"]
    found = [(answer["text"] + "", int(answer["answer_start"])) for answer in answers]
    return Question(str(item["id"]), item["question"] + "", passage, found)


def _file(path: str | None, split: str) -> Path:
    root = Path(path).expanduser() if path else None
    if root is not None and root.is_file():
        if split == "train":
            raise InputError(
                f"data.path={path!r} is a file: to evaluate; to train, give a folder that holds "
                "train.json and validation.json"
            )
        return root
    if root is None or not root.is_dir():
        raise InputError(f"data.path={path!r} is not a folder; give one that holds {split}.json")
    stems = (split, *ALSO.get(split, ()))
    for stem in stems:
        found = sorted({*root.glob(f"{stem}.json"), *root.glob(f"{stem}[-_.]*.json")})
        if len(found) > 1:
            names = " and ".join(file.name for file in found)
            raise InputError(f"{root} has {names} for split {split}; keep one of them there")
        if found:
            return found[0]
    wanted = " or ".join(f"{stem}*.json" for stem in stems)
    raise InputError(f"{root} has no {wanted} for split {split}")


def _stdlib(split: str, documents: int = 40, longest: int = 400) -> Quiz:
    """Each fourth question is about a function of another passage."""
    records, passages, questions = stdlib.make(None, split, "text"), [], []
    name = "main"
    for index in range(min(documents, records.count)):
        text = records.read(index)
        with warnings.catch_warnings():  # of the library's own escapes
            warnings.simplefilter("ignore")
            nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
        lines = text.split("\n")
        for node in nodes:
            passage = "\n".join(lines[node.lineno - 1 : node.end_lineno]).strip()[:longest]
            answer = (ast.get_docstring(node) or "").split("\n")[0][:60].strip()
            start = passage.find(answer)
            if not answer or start < 0:
                continue
            absent = len(passages) % 4 == 3 and name not in passage
            name, asked = node.name, name if absent else node.name
            question = f"What does {asked} do?"
            answers = [] if absent else [(answer, start)]
            identity = f"{records.name(index)}:{node.lineno}"
            questions.append(Question(identity, question, len(passages), answers))
            passages.append(passage)
    return _finished(passages, questions)


def _finished(passages: list[str], questions: list[Question]) -> Quiz:
    digest = hashlib.sha256(json.dumps([passages, questions]).encode()).hexdigest()
    return Quiz(passages, questions, digest)
