"""The manifest of a checkpoint: what it holds, and how to see that none of it has changed.

    write(folder, content)      # last, before the folder gets its name
    content = read(folder)      # DamagedError if the manifest itself is not sound
    check_files(folder, content)  # DamagedError naming every file that is not as it was written

manifest.json is one JSON object: `content` and `sha256`, the digest of that content. The content
has, beside what the caller gives, `files`: {name: [bytes, sha256]} of every file in the folder.
"""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from research.arguments import InputError, RunError
from research.storage import StoreError, find, is_remote

NAME = "manifest.json"
SIGNATURE = "manifest.sig"
FORMAT = 1  # raise it when what a reader must understand changes
MAX_BYTES = 1 << 28  # of a manifest; a larger one is not ours
BLOCK = 1 << 22
LEAF = re.compile(r"[a-z]\w*\[(\d{1,18}(,\d{1,18})*)?\]")
# Written when the folder is committed, so after the manifest; nothing is read from it.
LATER = ("commit_success.txt", "_CHECKPOINT_METADATA")


class DamagedError(RunError):
    """A checkpoint is not as it was written."""


def write(folder: epath.PathLike, content: dict[str, Any]) -> None:
    """Writes manifest.json for all that is in `folder` now."""
    folder = epath.Path(folder)
    content = {"format": FORMAT} | content | {"files": _digests(folder, _listed(folder))}
    text = _canonical(content)
    whole = {"content": content, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / NAME).write_text(json.dumps(whole, sort_keys=True, indent=1))


def read(folder: epath.PathLike) -> dict[str, Any]:
    """Returns the content. Raises DamagedError when it is missing, malformed or changed, StoreError
    when it cannot be read."""
    path = epath.Path(folder) / NAME
    try:
        if not path.exists():
            raise DamagedError(f"{path} is missing")
        if path.stat().length > MAX_BYTES:
            raise DamagedError(f"{path} has more than {MAX_BYTES} bytes")
        whole = json.loads(path.read_bytes().decode("utf-8"))
        content, digest = dict(whole["content"]), whole["sha256"]
        if digest != hashlib.sha256(_canonical(content).encode()).hexdigest():
            raise DamagedError(f"{path} is not as it was written (its digest differs)")
    except OSError as error:  # storage that does not answer says nothing of what is in it
        raise StoreError(f"{path} cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    if content.get("format") != FORMAT:
        raise DamagedError(f"{path} has format {content.get('format')}, not {FORMAT}")
    if not _is_well_formed(content):  # somebody sealed it who did not write the checkpoint
        raise DamagedError(f"{path} does not have the form of a manifest")
    return content


def _is_well_formed(content: dict[str, Any]) -> bool:
    def each(name: str, *kinds: type) -> bool:
        part = content.get(name)
        return isinstance(part, dict) and all(
            isinstance(value, list) and [type(item) for item in value] == list(kinds)
            for value in part.values()
        )

    metrics, names = content.get("metrics", {}), content.get("files")
    return (
        each("files", int, str)
        and all(".." not in name.split("/") and not name.startswith("/") for name in names)
        and (each("leaves", str, str) if "leaves" in content else True)
        and all(LEAF.fullmatch(leaf[0]) for leaf in content.get("leaves", {}).values())
        and isinstance(metrics, dict)
        and all(type(value) in (int, float) for value in metrics.values())
    )


def check_files(folder: epath.Path, content: dict[str, Any]) -> None:
    """Raises DamagedError naming each file that is missing, changed, or not in the manifest."""
    there, wanted = set(_listed(folder)), content["files"]
    faults = {name: "is missing" for name in wanted.keys() - there}
    faults |= {name: "is not in the manifest" for name in there - wanted.keys()}
    for name, (size, digest) in _digests(folder, sorted(there & wanted.keys())).items():
        if size != wanted[name][0]:
            faults[name] = f"has {size} bytes, not {wanted[name][0]}"
        elif digest != wanted[name][1]:
            faults[name] = "is not as it was written (its digest differs)"
    if faults:
        listed = "; ".join(f"{name} {fault}" for name, fault in sorted(faults.items()))
        raise DamagedError(f"{folder}: {listed}")


def _canonical(content: dict) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def names(folder: epath.Path) -> list[str]:
    """Returns the relative names of all files in a folder and below it, sorted."""
    if is_remote(folder):
        return find(folder)
    found, to_visit = [], [folder]
    while to_visit:
        for path in to_visit.pop().iterdir():
            if path.is_dir():
                to_visit.append(path)
            else:
                found.append(str(path.relative_to(folder)))
    return sorted(found)


def _listed(folder: epath.Path) -> list[str]:
    return [name for name in names(folder) if name not in (NAME, SIGNATURE, *LATER)]


def _digests(folder: epath.Path, names: list[str]) -> dict[str, list]:
    """[bytes, sha256] of each file. Raises StoreError if one cannot be read."""

    def digest(name: str) -> list:
        sha, size = hashlib.sha256(), 0
        try:
            with (folder / name).open("rb") as file:
                while block := file.read(BLOCK):
                    sha.update(block)
                    size += len(block)
        except OSError as error:
            raise StoreError(f"{folder / name} cannot be read: {error}") from error
        return [size, sha.hexdigest()]

    with ThreadPoolExecutor(8) as pool:  # hashing and reading leave the interpreter free
        return dict(zip(names, pool.map(digest, names), strict=True))


def describe(leaf: Any) -> str:
    """Returns an array's type and shape, as in bfloat16[16,24]."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def parse(described: str) -> tuple[str, tuple[int, ...]]:
    """Inverse of `describe`: the name of the type, and the shape."""
    dtype, _, shape = described.removesuffix("]").partition("[")
    return dtype, tuple(int(size) for size in shape.split(",") if size)


def refuse_mismatch(stored: dict[str, list], wanted: dict[str, Any], where: epath.Path) -> None:
    """Raises InputError naming each leaf that is missing, unknown, of another shape or dtype."""
    stored = {path: described for path, (described, _) in stored.items()}
    wanted = {path: describe(leaf) for path, leaf in wanted.items()}
    faults = [
        f"{path} is stored as {stored.get(path, 'nothing')}, wanted {wanted.get(path, 'nothing')}"
        for path in sorted({**stored, **wanted})
        if stored.get(path) != wanted.get(path)
    ]
    if faults:
        raise InputError(f"{where} does not fit this config: {'; '.join(faults)}")
