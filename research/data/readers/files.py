"""Text files: one file, or a folder or an archive of them.

    data = dict(name="text", reader="files", path="input.txt", tokenizer="characters")

One file, maybe a .gz, is split as nanoGPT splits tinyshakespeare: the first 90 % of its characters
are "train", the rest "validation". Of a folder, about 5 % of the files are held out by a hash of
their path; an archive is read into memory and gives the same documents as the folder would.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from research.arguments import InputError
from research.data.readers import Records, decode, in_split, is_held_out
from research.data.source import RecordError
from research.data.unpack import members

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SUFFIXES = (".txt", ".md", ".rst", ".tex", ".html", ".xml", ".json", ".csv", ".py")


def make(path: str | None, split: str, field: str) -> Records:
    """Returns the documents at `path`; raises InputError if there are none of this split, and for
    an archive that is damaged or not to be trusted."""
    if path is None or not (root := Path(path).expanduser()).exists():
        raise InputError(f"data.path={path!r} does not exist; give a text file or a folder of them")
    advice = f"add some of {' '.join(SUFFIXES)}, or give one file"
    if root.is_dir():
        found = (file for file in root.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        names = [file.relative_to(root).as_posix() for file in found]
        return documents(root, names, split, advice)
    if root.name.endswith(ARCHIVES):
        held = {name: data for name, data in members(root) if Path(name).suffix in SUFFIXES}
        read = {root / name: data for name, data in held.items()}.__getitem__
        return documents(root, list(held), split, advice, read)
    data = dict(members(root)).popitem()[1] if root.suffix == ".gz" else _bytes(root)
    text = decode(data, str(root))
    cut = int(0.9 * len(text))
    text = text[cut:] if is_held_out(split) else text[:cut]
    if not text:
        raise InputError(f"{root} has no text for split {split}; give a longer file")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Records(1, lambda index: str(root), lambda index: text, digest)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise RecordError(f"{file} cannot be read ({error.strerror})") from None


def documents(
    root: Path,
    names: list[str],
    split: str,
    advice: str,
    read: Callable[[Path], bytes] = _bytes,
) -> Records:
    """Returns those files `names` under `root` that belong to `split`, one document each."""
    total, names = len(names), sorted(name for name in names if in_split(name, split))
    if not names:
        raise InputError(f"none of {total} text files in {root} are of split {split}; {advice}")
    digest = hashlib.sha256()
    for name in names:
        digest.update(hashlib.sha256(name.encode()).digest())
        digest.update(hashlib.sha256(read(root / name)).digest())
    paths = [root / name for name in names]
    return Records(
        len(paths),
        lambda index: str(paths[index]),
        lambda index: decode(read(paths[index]), str(paths[index])),
        digest.hexdigest(),
    )
