"""Text files: one file, or a folder of them.

    data = dict(name="text", reader="files", path="input.txt", tokenizer="characters")

One file is split as nanoGPT splits tinyshakespeare: the first 90 % of its characters are "train",
the rest "validation". Of a folder, about 5 % of the files are held out by a hash of their path.
"""

import hashlib
from pathlib import Path

from research.arguments import InputError
from research.data.readers import Records, decode, in_split, is_held_out
from research.data.source import RecordError

SUFFIXES = (".txt", ".md", ".rst", ".tex", ".html", ".xml", ".json", ".csv", ".py")


def make(path: str | None, split: str, field: str) -> Records:
    """Returns the documents at `path`; raises InputError if there are none of this split."""
    if path is None or not (root := Path(path).expanduser()).exists():
        raise InputError(f"data.path={path!r} does not exist; give a text file or a folder of them")
    if root.is_dir():
        found = (file for file in root.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        names = [file.relative_to(root).as_posix() for file in found]
        return documents(root, names, split, f"add some of {' '.join(SUFFIXES)}, or give one file")
    text = decode(_bytes(root), str(root))
    cut = int(0.9 * len(text))
    text = text[cut:] if is_held_out(split) else text[:cut]
    if not text:
        raise InputError(f"{root} has no text for split {split}; give a longer file")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Records(1, lambda index: str(root), lambda index: text, digest)


def documents(root: Path, names: list[str], split: str, advice: str) -> Records:
    """Returns those files `names` under `root` that belong to `split`, one document each."""
    total, names = len(names), sorted(name for name in names if in_split(name, split))
    if not names:
        raise InputError(f"none of {total} text files in {root} are of split {split}; {advice}")
    digest = hashlib.sha256()
    for name in names:
        digest.update(hashlib.sha256(name.encode()).digest())
        digest.update(hashlib.sha256(_bytes(root / name)).digest())
    paths = [root / name for name in names]
    return Records(
        len(paths),
        lambda index: str(paths[index]),
        lambda index: decode(_bytes(paths[index]), str(paths[index])),
        digest.hexdigest(),
    )


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise RecordError(f"{file} cannot be read ({error.strerror})") from None
