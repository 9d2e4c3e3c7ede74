"""The work of a cleaning pass, cut into tasks that any number of processes may share.

A stage is some steps that look at one document, then some that compare all: each shard of documents
is one task (texts, signatures), then each comparison is one. A task writes one folder, whole or not
at all, from what came before it and nothing else. So it does not matter who does it, when, how
often it was begun, or who was killed.
"""

import fcntl
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.arguments import InputError
from research.data.cleaning import Cleaned, Step, remove
from research.data.readers import Records
from research.data.source import RecordError, cached

EXAMPLES, EXCERPT = 3, 160  # of each reason; characters of each


class Stage(NamedTuple):
    """Steps in their order: first those that look at one document, then those that compare all."""

    single: list[tuple[str, Step]]
    across: list[tuple[str, Step]]


class Shard(NamedTuple):
    """Documents `start` to `stop` of all; one file of the output."""

    split: str
    first: int  # the document where its split begins
    start: int
    stop: int
    file: str


class Pass(NamedTuple):
    """All that a task needs."""

    folder: Path  # of the tasks
    splits: dict[str, Records]
    shards: list[Shard]
    stages: list[Stage]


def stages_of(steps: list[tuple[str, Step]]) -> list[Stage]:
    """Returns the steps in stages: a new one begins where a step follows a comparison."""
    stages = [Stage([], [])]
    for name, step in steps:
        if step.clean is not None:
            if stages[-1].across:
                stages.append(Stage([], []))
            stages[-1].single.append((name, step))
        else:
            stages[-1].across.append((name, step))
    return stages


def shards_of(splits: dict[str, Records], size: int) -> list[Shard]:
    """Returns all documents in shards of `size`, split after split."""
    shards, first = [], 0
    for split, records in splits.items():
        count = -(-records.count // size)
        for number in range(count):
            start = first + number * size
            stop = min(start + size, first + records.count)
            file = f"{split}-{number:05d}-of-{count:05d}.jsonl"
            shards.append(Shard(split, first, start, stop, file))
        first += records.count
    return shards


def work(run: Pass) -> None:
    """Does what is left of all tasks, beside whoever does it too, and returns when all are done."""
    for number, stage in enumerate(run.stages):
        done_all(
            run.folder,
            {
                _shard_folder(run, number, shard): functools.partial(_clean, run, number, shard)
                for shard in run.shards
            },
        )
        for name, _ in stage.across:
            task = functools.partial(_compare, run, number, name)
            done_all(run.folder, {run.folder / f"{number}-{name}": task})


def done_all(root: Path, tasks: dict[Path, Callable[[Path], None]]) -> None:
    """Makes every path that is missing by its task, and waits for those that others are making."""
    (root / "locks").mkdir(parents=True, exist_ok=True)
    left = [path for path in tasks if not path.exists()]
    wait = False
    while left:
        for path in left:
            with claim(root / "locks" / path.name, wait) as ours:
                if ours:
                    cached(path, tasks[path], "free some space or use another --out")
        before, left = len(left), [path for path in left if not path.exists()]
        wait = len(left) == before  # all of them are being made: there is nothing else to do


@contextmanager
def claim(lock: Path, wait: bool) -> Iterator[bool]:
    """Tells whether nobody else is at it. The lock of a process goes with it, however it ends."""
    with open(lock, "w") as file:
        ours = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            ours = False
        except OSError:
            pass  # no locks here: what two are making is the same, and one of them too late
        yield ours


def write(run: Pass, shard: Shard, folder: Path) -> None:
    """Writes a shard of the output: what the last stage left of it."""
    with open(folder / shard.file, "w", encoding="utf-8") as file:
        for index, text in _left(run, len(run.stages) - 1, shard):
            record = {"id": name_of(shard, index), "text": text}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def name_of(shard: Shard, index: int) -> str:
    """Returns the id of a document: its split and its number in it."""
    return f"{shard.split}-{index - shard.first}"


def removed(run: Pass, number: int, shard: Shard) -> Iterator[dict[str, Any]]:
    """Yields what a stage removed of a shard: index, step, reason, and `of` or `error`."""
    for line in open(_shard_folder(run, number, shard) / "removed.jsonl", encoding="utf-8"):
        yield json.loads(line)
    for name, _ in run.stages[number].across:
        for index, other in _decided(run, number, name, shard.start, shard.stop).tolist():
            yield dict(index=index, step=name, reason="duplicate", of=other)


def counts(run: Pass) -> dict[str, dict[str, Any]]:
    """Returns what each step was given, left, removed and changed, in the order of the steps."""
    total: dict[str, dict[str, Any]] = {}
    for number, stage in enumerate(run.stages):
        folders = [_shard_folder(run, number, shard) for shard in run.shards]
        folders += [run.folder / f"{number}-{name}" for name, _ in stage.across]
        for folder in folders:
            for name, count in json.loads((folder / "counts.json").read_text()).items():
                _add(total.setdefault(name, _empty()), count)
    return total


def _empty() -> dict[str, Any]:
    sums = dict(documents_in=0, bytes_in=0, documents_out=0, bytes_out=0)
    return sums | dict(removed={}, changed={}, examples={})


def _add(total: dict[str, Any], count: dict[str, Any]) -> None:
    for key, value in count.items():
        if isinstance(value, dict):
            _add(total.setdefault(key, {}), value)
        elif isinstance(value, list):  # examples, the first ones
            total[key] = (total.get(key, []) + value)[:EXAMPLES]
        else:
            total[key] = total.get(key, 0) + value


def _shard_folder(run: Pass, number: int, shard: Shard) -> Path:
    return run.folder / f"{number}-{shard.file.removesuffix('.jsonl')}"


def _clean(run: Pass, number: int, shard: Shard, folder: Path) -> None:
    """Does the single steps of a stage for a shard, and signs what is left for the comparisons."""
    stage, rows, at = run.stages[number], [], 0
    signatures: dict[str, list[np.ndarray]] = {name: [] for name, _ in stage.across}
    names = [name for name, _ in stage.single]
    count = {name: _empty() for name in (["read"] if number == 0 else []) + names}
    with (
        open(folder / "texts.jsonl", "wb") as texts,
        open(folder / "removed.jsonl", "w", encoding="utf-8") as out,
    ):
        incoming = _read(run, shard, count["read"], out) if number == 0 else None
        for index, text in incoming or _left(run, number - 1, shard):
            size = len(text.encode())
            for name, step in stage.single:
                text, size = _one(step, text, size, count[name], index, out, name)
                if text is None:
                    break
            if text is None:
                continue
            line = json.dumps(text, ensure_ascii=False).encode() + b"\n"
            texts.write(line)
            rows.append((index, at, size))
            at += len(line)
            for name, step in stage.across:
                signatures[name].append(step.sign(text))
    np.save(folder / "rows.npy", np.array(rows, np.int64).reshape(-1, 3))
    for name, found in signatures.items():
        np.save(folder / f"{name}.npy", np.array(found))
    (folder / "counts.json").write_text(json.dumps(count))


def _one(
    step: Step, text: str, size: int, count: dict, index: int, out: Any, name: str
) -> tuple[str | None, int]:
    cleaned = step.clean(text)
    if cleaned.text is not None and not cleaned.text.strip():
        cleaned = remove("empty")
    new = len(cleaned.text.encode()) if cleaned.text is not None else 0
    _count(count, text, size, cleaned, new)
    if cleaned.text is None:
        line = dict(index=index, step=name, reason=next(iter(cleaned.found)))
        out.write(json.dumps(line) + "\n")
    return cleaned.text, new


def _count(count: dict[str, Any], text: str, size: int, cleaned: Cleaned, new: int) -> None:
    one = dict(documents_in=1, bytes_in=size)
    if cleaned.text is None:
        reason = next(iter(cleaned.found))
        excerpt = " ".join(text[: 4 * EXCERPT].split())[:EXCERPT]
        one |= dict(removed={reason: 1}, examples={reason: [excerpt]} if excerpt else {})
    else:
        changed = {what: dict(documents=1, places=n) for what, n in cleaned.found.items()}
        one |= dict(documents_out=1, bytes_out=new, changed=changed)
    _add(count, one)


def _read(run: Pass, shard: Shard, count: dict, out: Any) -> Iterator[tuple[int, str]]:
    """Yields the documents of a shard as the reader has them, and counts those without text."""
    records = run.splits[shard.split]
    for index in range(shard.start, shard.stop):
        text, reason, error = "", "empty", None
        try:
            text = records.read(index - shard.first)
            text.encode()
        except (RecordError, UnicodeEncodeError) as problem:
            text, reason, error = "", "unreadable", str(problem)
        size = len(text.encode())
        keep = bool(text.strip())
        _count(count, "", size, Cleaned(text) if keep else remove(reason), size)
        if keep:
            yield index, text
        else:
            line = dict(index=index, step="read", reason=reason)
            out.write(json.dumps(line | (dict(error=error) if error else {})) + "\n")


def _left(run: Pass, number: int, shard: Shard) -> Iterator[tuple[int, str]]:
    """Yields what a stage left of a shard."""
    folder, gone = _shard_folder(run, number, shard), set()
    for name, _ in run.stages[number].across:
        gone |= set(_decided(run, number, name, shard.start, shard.stop)[:, 0].tolist())
    with open(folder / "texts.jsonl", "rb") as texts:
        for (index, _, _), line in zip(np.load(folder / "rows.npy").tolist(), texts, strict=True):
            if index not in gone:
                yield index, json.loads(line)


def _decided(run: Pass, number: int, name: str, start: int, stop: int) -> np.ndarray:
    """Returns (removed document, the one it duplicates) of documents `start` to `stop`."""
    table = np.load(run.folder / f"{number}-{name}" / "removed.npy", mmap_mode="r")
    first, last = np.searchsorted(table[:, 0], (start, stop))
    return np.array(table[first:last])


def _compare(run: Pass, number: int, name: str, folder: Path) -> None:
    """Decides a comparison over what the stage's steps and the comparisons before it left."""
    shards = [_shard_folder(run, number, shard) for shard in run.shards]
    rows = [np.load(shard / "rows.npy") for shard in shards]
    signatures = [np.load(shard / f"{name}.npy") for shard in shards]
    table = np.concatenate(rows)
    where = np.repeat(np.arange(len(rows)), list(map(len, rows)))
    is_left, stage = np.ones(len(table), bool), run.stages[number]
    names = [other for other, _ in stage.across]
    for earlier in names[: names.index(name)]:
        gone = _decided(run, number, earlier, 0, run.shards[-1].stop)[:, 0]
        is_left &= ~np.isin(table[:, 0], gone)
    alive = np.flatnonzero(is_left)
    opened = functools.lru_cache(maxsize=64)(lambda n: open(shards[n] / "texts.jsonl", "rb"))

    def text(position: int) -> str:
        row = alive[position]
        file = opened(int(where[row]))
        file.seek(int(table[row, 1]))
        return json.loads(file.readline())

    pairs: dict[int, int] = {}
    if len(alive):
        signatures = np.concatenate([part for part in signatures if len(part)])[alive]
        pairs = dict(stage.across)[name].decide(signatures, text)
    sizes, index = table[alive, 2], table[alive, 0]
    lost = sorted(pairs)
    count = _empty() | dict(
        documents_in=len(alive),
        bytes_in=int(sizes.sum()),
        documents_out=len(alive) - len(lost),
        bytes_out=int(sizes.sum() - sizes[lost].sum()),
    )
    if lost:
        excerpts = [" ".join(text(n)[: 4 * EXCERPT].split())[:EXCERPT] for n in lost[:EXAMPLES]]
        count |= dict(removed=dict(duplicate=len(lost)), examples=dict(duplicate=excerpts))
    found = [(index[position], index[pairs[position]]) for position in lost]
    np.save(folder / "removed.npy", np.array(found, np.int64).reshape(-1, 2))
    (folder / "counts.json").write_text(json.dumps({name: count}))


def open_splits(
    make: Callable[..., Records], path: str | None, field: str, splits: tuple[str, ...]
) -> dict[str, Records]:
    """Returns the documents of each split; raises InputError for one that has none."""
    found = {}
    for split in splits:
        try:
            found[split] = make(path, split, field)
        except InputError as error:
            raise InputError(f"{error} (--splits={split} asked for it)") from None
    return found
