"""Tagged words in columns, as the shared tasks of CoNLL give them: a word a line, a blank line
between sentences, documents behind lines that begin with -DOCSTART-.

    corpus = read("data/conll2003", "train", word=0, tag=-1)      # train.txt, train.conll, ...

A folder holds `train.txt`, `validation.txt` (or dev, val, valid), `test.txt`; each may be a .gz.
Columns stand between tabs, or else spaces. path="stdlib" needs no file: the tokens of Python's
standard library, whose words between spaces are B- and I- with their type (NAME, NUMBER, STRING,
COMMENT), operators O.
"""

import hashlib
import io
import json
import keyword
import tokenize
from pathlib import Path
from typing import NamedTuple

from research.arguments import InputError
from research.data import table
from research.data.readers import decode, stdlib

SUFFIXES = (".txt", ".conll", ".tsv", ".bio", ".iob2")
GZ = ("", ".gz")
DOCUMENT = "-DOCSTART-"


class Sentence(NamedTuple):
    """The words of a sentence, and a tag for each."""

    words: list[str]
    tags: list[str]
    file: str
    line: int  # of the first word; the others are on those that follow


class Corpus(NamedTuple):
    """The sentences of a split, in their order."""

    sentences: list[Sentence]
    fingerprint: str


def read(path: str | None, split: str, word: int = 0, tag: int = -1) -> Corpus:
    """Returns the sentences of a split; `word` and `tag` count columns from 0, or from -1, the
    last. Raises InputError for files that are not there, and names a line that does not fit."""
    if path == "stdlib":
        return _finished(_stdlib(split))
    root = Path(path).expanduser() if path else None
    if root is None or not root.is_dir():
        raise InputError(f"data.path={path!r} is not a folder; give one that holds {split}.txt")
    stems = (split, *table.ALSO.get(split, ()))
    files = [root / f"{stem}{suffix}{gz}" for stem in stems for suffix in SUFFIXES for gz in GZ]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        names = " or ".join(f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES)
        raise InputError(f"{root} has no {names} for split {split}")
    return _finished(_sentences(str(file), table.read_bytes(file), word, tag))


def _sentences(file: str, data: bytes, word: int, tag: int) -> list[Sentence]:
    found, words, tags, count = [], [], [], None
    for number, line in enumerate([*decode(data, file).split("\n"), ""], 1):
        line = line.strip(" \r")
        if not line.strip("\t") or line.startswith(DOCUMENT):
            if words:
                found.append(Sentence(words, tags, file, number - len(words)))
                words, tags = [], []
            continue
        columns = line.split("\t") if "\t" in line else [x for x in line.split(" ") if x]
        count = count or len(columns)
        if len(columns) != count:
            raise InputError(
                f"{file}:{number} has {len(columns)} columns, the lines before it {count}; put the "
                "word and all its tags on one line, and a blank one between sentences"
            )
        for name, column in (("word", word), ("tag", tag)):
            if not -count <= column < count:
                raise InputError(
                    f"{file}:{number} has {count} columns, and data.{name}={column} is none of "
                    f"them; expected {-count} to {count - 1}"
                )
            if not columns[column].strip():
                raise InputError(f"{file}:{number} has no {name} in column {column}; mend the line")
        words.append(columns[word])
        tags.append(columns[tag])
    return found


def _stdlib(split: str, documents: int = 60, statements: int = 40) -> list[Sentence]:
    """Some statements of each of some modules, with the comments in front of them."""
    records, found = stdlib.make(None, split, "text"), []
    for index in range(min(documents, records.count)):
        words, tags, left, first = [], [], statements, 1
        for token in tokenize.generate_tokens(io.StringIO(records.read(index)).readline):
            if token.type == tokenize.NEWLINE and words:
                found.append(Sentence(words, tags, records.name(index), first))
                words, tags, left = [], [], left - 1
            kind = _kind(token)
            parts = token.string.split() if kind else []
            first = first if words else token.start[0]
            words += parts
            tags += [
                "O" if kind == "OP" else f"{'I' if i else 'B'}-{kind}" for i in range(len(parts))
            ]
            if not left:
                break
    return found


def _kind(token: tokenize.TokenInfo) -> str | None:
    """The type of a token; words of the language are none of its names. Newer Pythons cut strings
    with values in them into parts."""
    if keyword.iskeyword(token.string):
        return "OP"
    name = tokenize.tok_name[token.type]
    name = "STRING" if name[:7] in ("FSTRING", "TSTRING") else name
    return name if name in ("NAME", "NUMBER", "STRING", "COMMENT", "OP") else None


def _finished(sentences: list[Sentence]) -> Corpus:
    plain = [(sentence.words, sentence.tags) for sentence in sentences]
    return Corpus(sentences, hashlib.sha256(json.dumps(plain).encode()).hexdigest())
