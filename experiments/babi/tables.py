"""bAbI's files (arXiv:1502.05698) as rows of a story with its question, and an answer.

stories = read("tasks", 2, "train")            # lists of (sentences so far, question, answer)
write(stories, split="train", words=150, folder="tables")       # how many were cut
"""

import re
import tarfile
from pathlib import Path

from research.arguments import InputError

Question = tuple[list[str], str, str]
WORDS = re.compile(r"\w+|[^\w\s]")


def read(path: str, task: int, split: str) -> list[list[Question]]:
    """Returns the stories of a task, each with its questions. `path` is a folder that holds
    qa1_..._train.txt and the like, or an archive of them."""
    name = re.compile(rf"(^|/)qa{task}_[^/]*_{split}\.txt$")
    if Path(path).is_file():
        with tarfile.open(path) as archive:
            members = [member for member in archive.getmembers() if name.search(member.name)]
            texts = [archive.extractfile(member).read() for member in members]
    else:
        texts = [f.read_bytes() for f in sorted(Path(path).rglob("*.txt")) if name.search(str(f))]
    if len(texts) != 1:
        raise InputError(f"--path={path} holds {len(texts)} files qa{task}_*_{split}.txt, not one")
    stories: list[list[Question]] = []
    sentences: list[str] = []
    for line in texts[0].decode().splitlines():
        number, text = line.split(" ", 1)
        if number == "1":
            stories.append([])
            sentences = []
        if "\t" in text:
            question, answer, _ = text.split("\t")
            stories[-1].append((list(sentences), question.strip(), answer))
        else:
            sentences.append(text.strip())
    return stories


def prompt(sentences: list[str], question: str, words: int) -> tuple[str, bool]:
    """Returns the story and its question in at most `words` words and full stops, and whether the
    beginning of the story had to go for that, whole sentences of it."""
    kept = [question]
    room = words - len(WORDS.findall(question))
    for sentence in reversed(sentences):
        room -= len(WORDS.findall(sentence))
        if room < 0:
            return " ".join(kept), True
        kept.insert(0, sentence)
    return " ".join(kept), False


def write(stories: list[list[Question]], split: str, words: int, folder: str) -> dict[str, int]:
    """Writes SPLIT.tsv with a header; returns the number of questions, and of those cut."""
    rows, cut = ["source\ttarget"], 0
    for sentences, question, answer in (one for story in stories for one in story):
        text, shorter = prompt(sentences, question, words)
        rows.append(f"{text}\t{answer}")
        cut += shorter
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, f"{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return dict(questions=len(rows) - 1, cut=cut)
