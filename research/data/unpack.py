"""Archives and array files that somebody else made: nothing is extracted to disk, unpickled or
followed, and what comes out is counted, as headers lie.

    for name, data in members("texts.tar.gz"): ...                 pixels = load_array("a.npy")
"""

import bz2
import gzip
import io
import lzma
import math
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from research.arguments import InputError

# Text is compressed to a tenth, rarely a hundredth. Up to SMALL bytes no ratio matters.
MAX_BYTES, MAX_RATIO, SMALL = 1 << 32, 200.0, 1 << 20
Members = Iterator[tuple[str, bytes]]


def members(path: Path, max_bytes: int = MAX_BYTES, max_ratio: float = MAX_RATIO) -> Members:
    """Yields (name, content) of each file in an archive, in its order; of a .gz, the one it holds.

    Raises InputError, maybe after whole members, naming archive and member: for more than
    `max_bytes` in all or `max_ratio` times the archive; for links, devices, encrypted or sparse
    files; for names that are absolute, have "..", or come twice; for damage.
    """
    kind = next((KINDS[end] for end in KINDS if Path(path).name.endswith(end)), None)
    if kind is None:
        raise InputError(f"{path} is no archive; expected {' '.join(KINDS)}")
    with _reading(path):
        guard, (read, opener), names = _Guard(Path(path), max_bytes, max_ratio), kind, set()
        for name, data in read(guard, opener):
            guard.refuse(name in names, "comes twice")
            names.add(name)
            yield name, data


def load_array(path: Path, max_bytes: int = MAX_BYTES) -> np.ndarray | dict[str, np.ndarray]:
    """Returns the array of a .npy file, or {name: array} of a .npz file. Raises InputError for
    Python objects, for more than `max_bytes`, for damage, and as `members` does."""
    with _reading(path):
        if Path(path).suffix == ".npz":
            parts = ((name, io.BytesIO(data)) for name, data in members(path, max_bytes))
            return {n.removesuffix(".npy"): _array(f, f"{path}: {n}", max_bytes) for n, f in parts}
        with open(path, "rb") as file:
            return _array(file, str(path), max_bytes)


def _array(file: Any, where: str, max_bytes: int) -> np.ndarray:
    npy = np.lib.format
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, _, dtype = read[npy.read_magic(file)](file)
    announced, begin = math.prod(shape) * dtype.itemsize, file.tell()
    held = file.seek(0, io.SEEK_END) - begin
    if dtype.hasobject:
        raise InputError(f"{where} holds Python objects, which could run code; save numbers")
    if announced > max_bytes or announced != held:
        what = f"announces {announced:,} bytes of {max_bytes:,} at most, and holds {held:,}"
        raise InputError(f"{where} {what}; get a whole or smaller one")
    file.seek(0)
    return npy.read_array(file, allow_pickle=False)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zlib, lzma, zipfile, tarfile, numpy: each has kinds of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is damaged, or not what its name says ({reason})") from None


class _Guard:
    """Looks at the name of each member of an archive, and counts what comes out."""

    def __init__(self, path: Path, max_bytes: int, max_ratio: float) -> None:
        self.path, self.name, self.count = path, "", 0
        self.cap = min(max_bytes, max(int(path.stat().st_size * max_ratio), SMALL))

    def refuse(self, bad: bool, what: str) -> None:
        if bad:
            raise InputError(f"{self.path}: {self.name!r} {what}; the archive is refused")

    def enter(self, name: str) -> str:
        """Returns the name of the next member with single / between its parts."""
        self.name, parts = name, name.replace("\\", "/").split("/")
        bad = not parts[0] or ".." in parts or name[1:2] == ":"
        bad = bad or re.search("[\0\ud800-\udfff]", name)  # the latter are what is not UTF-8
        self.refuse(bad, "is no relative name below the archive")
        return "/".join(part for part in parts if part not in ("", "."))

    def read(self, file: Any) -> bytes:
        parts, over = [], f"unpacks to more than {self.cap:,} bytes, the most for its size"
        while part := file.read(1 << 16):
            self.count += len(part)
            self.refuse(self.count > self.cap, over)
            parts.append(part)
        return b"".join(parts)


def _tar(guard: _Guard, opener: Callable) -> Members:
    with opener(guard.path, "rb") as file:
        whole = guard.read(file)
    with tarfile.open(fileobj=io.BytesIO(whole), mode="r:") as archive:
        for member in archive:
            name, plain = guard.enter(member.name), member.isfile() and not member.issparse()
            guard.refuse(not plain and not member.isdir(), "is a link, a device or sparse")
            guard.refuse(member.size < 0, "is damaged")  # and would lead back, for ever
            if plain:
                yield name, archive.extractfile(member).read()
        # tarfile takes any damage for the end, which has a mark of its own.
        guard.refuse(whole[archive.offset :][:512] != bytes(512), "is the last one before damage")


def _zip(guard: _Guard, opener: Callable) -> Members:
    with opener(guard.path) as archive:
        for member in archive.infolist():
            name, kind = guard.enter(member.orig_filename), stat.S_IFMT(member.external_attr >> 16)
            guard.refuse(kind not in (0, stat.S_IFREG, stat.S_IFDIR), "is a link or a device")
            guard.refuse(member.flag_bits & 1, "is encrypted")
            # zipfile unpacks what is newer than deflate in pieces of any size.
            guard.refuse(member.compress_type > zipfile.ZIP_DEFLATED, "is not deflated")
            if not member.is_dir():
                with archive.open(member) as file:
                    yield name, guard.read(file)


def _gz(guard: _Guard, opener: Callable) -> Members:
    with opener(guard.path) as file:
        guard.refuse(guard.path.stat().st_size == 0, "is empty")
        yield guard.enter(guard.path.stem), guard.read(file)


KINDS = {
    ".tar": (_tar, open), ".tar.gz": (_tar, gzip.open), ".tgz": (_tar, gzip.open),
    ".tar.bz2": (_tar, bz2.open), ".tar.xz": (_tar, lzma.open), ".gz": (_gz, gzip.open),
    ".zip": (_zip, zipfile.ZipFile), ".npz": (_zip, zipfile.ZipFile),
}  # fmt: skip
