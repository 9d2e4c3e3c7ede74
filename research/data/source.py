"""Batches as a pure function of (seed, step): what every dataset returns, and what they share.

    batches = prefetch(source.batches(state.step, shard=(host, hosts)), put)

Nothing of the input pipeline is saved: a run resumes by asking for the batches from its step on,
and a worker process that died is started again where it was.
"""

import fcntl
import functools
import os
import queue
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from research.arguments import InputError, RunError
from research.data.order import Order, plain
from research.data.workers import SMALLER, Batch, in_processes

if TYPE_CHECKING:  # a worker process starts twice as fast without it
    import jax

Row = Callable[[int, int, np.random.Generator], Batch]  # (index, epoch, generator) -> one example
# Leaves of a batch that are not int32.
KINDS = {"weight": np.float32, "turn": np.float32, "image": np.uint8, "boxes": np.float32}
UNFINISHED = ".unfinished"  # ends the name of a cache folder that somebody is writing


class RecordError(InputError):
    """A corrupt record, which the message names."""


class Source(NamedTuple):
    """One split of a dataset."""

    spec: dict[str, "jax.ShapeDtypeStruct"]  # a global batch: every leaf has a first axis `batch`
    info: dict[str, Any]  # what the data decides, and its fingerprint; plain JSON
    num_batches: int  # in one pass over the split, the last one padded with weight 0
    batches: Callable[..., Iterator[Batch]]  # as make_batches returns it
    rows: Callable[..., list[int]]  # the examples of the global batch after `step` steps
    tokenizer: Any = None
    gold: Any = None  # what a task's report judges by beyond numbers: the right answers
    row: Row | None = None  # makes one of `num_rows` examples by itself, for a mix to take
    num_rows: int = 0
    narrower: tuple[dict[str, "jax.ShapeDtypeStruct"], ...] = ()  # further specs, of its buckets
    parts: Mapping[str, int] = MappingProxyType({})  # batches of each, in the order of one pass


def make_source(
    row: Row | Sequence[Row],
    num_rows: int,
    forms: Sequence[dict[str, tuple[int, ...]]],
    info: dict[str, Any],
    tokenizer: Any,
    *,
    split: str,
    batch: int,
    seed: int,
    workers: int = 0,
    skip_budget: int = 0,
    order: Order | None = None,
    judged: Row | None = None,
) -> Source:
    """Returns a source of int32 leaves, but for KINDS; "train" is shuffled without end. `forms`
    are the shapes of an example by name, in each bucket of `order`, the largest last; `row` may be
    one for each of them. `judged` makes the examples of one pass, where these are other ones."""
    import jax  # not above: a worker process does without, 44 MB, not 155

    train = split == "train"
    order = order or plain(num_rows, batch, seed, train)
    specs = [
        {n: jax.ShapeDtypeStruct((batch, *x), KINDS.get(n, np.int32)) for n, x in form.items()}
        for form in forms
    ]
    batches, rows = make_batches(
        row, num_rows, spec=specs[-1], batch=batch, seed=seed, shuffle=train, repeat=train,
        workers=workers, skip_budget=skip_budget, order=order, forms=forms,
        judged=judged,
    )  # fmt: skip
    row = row if callable(row) else row[-1]
    more = dict(row=row, num_rows=num_rows, narrower=tuple(specs[:-1]))
    return Source(specs[-1], info, order.num_batches, batches, rows, tokenizer, **more)


def make_batches(
    row: Row | Sequence[Row],
    num_rows: int,
    *,
    spec: dict[str, "jax.ShapeDtypeStruct"],
    batch: int,
    seed: int,
    shuffle: bool,
    repeat: bool,
    workers: int = 0,
    skip_budget: int = 0,
    order: Order | None = None,
    forms: Sequence[dict[str, tuple[int, ...]]] = (),
    judged: Row | None = None,
) -> tuple[Callable[..., Iterator[Batch]], Callable[..., list[int]]]:
    """Returns batches(start_step=0, shard=(0, 1), one_pass=not repeat), and rows(step,
    one_pass=not repeat): the rows in the global batch after `step` steps, in its order.

    Row j of a batch is example step * batch + j of the shuffled epochs laid end to end (a new order
    each epoch, 8 bytes a row), unless there is an `order`. Host `index` of `count` gets its
    contiguous part of every batch; no number of hosts or workers changes a batch, and seeking is
    free. One pass has ceil(num_rows / batch) batches, unshuffled. `forms` are the shapes of an
    example by name in each bucket of the order: what its batches are narrowed to; `row` is one for
    all of them, or one for each, of the largest form too; `judged` is that of one pass, where it is
    another one: what is trained on with random changes is judged without. `workers` processes make
    batches; then rows must pickle. Only the names in `spec` are taken from a row. One that raises
    RecordError is replaced by zeros and named on stderr, up to `skip_budget` records a host
    (counted anew after a restart).

    Raises RecordError for a corrupt record without a budget, InputError beyond the budget, or for a
    batch that the hosts cannot share equally, RunError for a worker that hangs or keeps dying.
    What else a row raises comes through as it is, with a note of the row and the step.
    """
    order = order or plain(num_rows, batch, seed, shuffle)
    empty = {name: np.zeros(leaf.shape[1:], leaf.dtype) for name, leaf in spec.items()}

    def places(step: int, shard: tuple[int, int], one_pass: bool) -> Iterator[tuple[int, int]]:
        """Yields (epoch, index) of each example; in one pass, epoch 1 is padding."""
        host, hosts = shard
        for position in range(batch * host // hosts, batch * (host + 1) // hosts):
            yield order.place(step, position, one_pass)

    def at(step: int, shard: tuple[int, int], one_pass: bool) -> tuple[Batch, list[str]]:
        examples, errors, index = [], [], None
        make = row if callable(row) else row[order.bucket(step, one_pass) if order.bucket else 0]
        make = judged if one_pass and judged is not None else make
        try:
            for epoch, index in places(step, shard, one_pass):
                example = empty
                if not (one_pass and epoch):
                    try:
                        random = np.random.default_rng((seed, epoch, index + 1))
                        example = make(index, epoch, random)
                    except RecordError as error:
                        errors.append(str(error))
                examples.append(example)
            return {name: _stack(name, examples, empty[name]) for name in empty}, errors
        except MemoryError:
            raise RunError(f"out of memory for the batch after step {step}; {SMALLER}") from None
        except Exception as error:
            error.add_note(f"at row {index} of the data, in the batch after step {step}")
            raise

    def batches(
        start_step: int = 0, shard: tuple[int, int] = (0, 1), one_pass: bool = not repeat
    ) -> Iterator[Batch]:
        if batch % shard[1]:
            raise InputError(
                f"batch={batch} does not divide by {shard[1]} hosts; choose a multiple"
            )
        make = functools.partial(at, shard=shard, one_pass=one_pass)
        steps = range(start_step, order.num_batches if one_pass else 1 << 40)
        size = batch // shard[1]
        like = {name: ((size, *one.shape), one.dtype) for name, one in empty.items()}
        made = in_processes(make, like, steps, workers) if workers else map(make, steps)
        made = _within_budget(made, skip_budget)
        if order.bucket is None:
            return made
        # Here, not where they are made: a worker writes batches of one form.
        buckets = (order.bucket(step, one_pass) for step in steps)
        return (_narrow(one, forms[at]) for at, one in zip(buckets, made, strict=False))

    def rows(step: int, one_pass: bool = not repeat) -> list[int]:
        found = places(step, (0, 1), one_pass)
        return [index for epoch, index in found if not (one_pass and epoch)]

    return batches, rows


def _narrow(batch: Batch, form: dict[str, tuple[int, ...]]) -> Batch:
    return {name: x[(slice(None), *map(slice, form[name]))] for name, x in batch.items()}


def _stack(name: str, examples: list[Batch], like: np.ndarray) -> np.ndarray:
    value = np.stack([example[name] for example in examples], dtype=like.dtype)
    if value.shape[1:] != like.shape:
        raise ValueError(f"{name} of a row has shape {value.shape[1:]}, its spec {like.shape}")
    return value


def _within_budget(made: Iterable[tuple[Batch, list[str]]], budget: int) -> Iterator[Batch]:
    skipped: set[str] = set()
    for batch, errors in made:
        for error in errors:
            skip_record(error, skipped, budget)
        yield batch


def skip_record(error: str, skipped: set[str], budget: int) -> None:
    """Adds a corrupt record to `skipped` and names it on stderr; raises beyond the budget."""
    if budget == 0:
        raise RecordError(f"{error}; repair it, or allow for it by skip_budget")
    skipped.add(error)
    if len(skipped) > budget:
        raise InputError(f"more than skip_budget={budget} corrupt records; the last one: {error}")
    _warn(f"skipped: {error}")


@functools.cache
def _warn(message: str) -> None:  # once
    print(message, file=sys.stderr)


def prefetch(iterator: Iterator[Any], put: Callable[[Any], Any], depth: int = 2) -> Iterator[Any]:
    """Yields put(item) for each item, made up to `depth` ahead by one thread.

    Exceptions come through in their place. Closing this generator ends thread and iterator.
    """
    results, slots, stop = queue.SimpleQueue(), threading.Semaphore(depth), threading.Event()

    def work() -> None:
        try:
            while slots.acquire() and not stop.is_set():
                results.put((put(next(iterator)), None))
        except BaseException as error:  # StopIteration too: the consumer decides
            results.put((None, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = results.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            slots.release()
            yield item
    finally:
        stop.set()
        slots.release()
        thread.join()
        getattr(iterator, "close", lambda: None)()


def cache_folder(given: str | None) -> Path:
    """Returns where ids and tokenizers are kept: `given`, $ANNEAL_CACHE or ~/.cache/anneal."""
    return Path(given or os.environ.get("ANNEAL_CACHE") or "~/.cache/anneal").expanduser()


def cached(
    folder: Path,
    write: Callable[[Path], None],
    advice: str = "set ANNEAL_CACHE to a writable folder",
) -> Path:
    """Returns `folder`, made by `write` under another name and renamed if it does not exist yet.

    So nobody sees half of it, whoever is killed or writes it too. What killed processes left in the
    cache is removed. Raises InputError if it cannot be written.
    """
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder.parent)
        with _unfinished(folder) as new:
            write(new)
            new.rename(folder)
    except OSError as error:
        if not folder.exists():  # else another process was first
            raise InputError(f"cannot write the cache {folder}: {error}; {advice}") from error
    return folder


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A folder to fill, in one that is locked for as long as this process lives."""
    place = dict(prefix=f"{folder.name}.", suffix=UNFINISHED, dir=folder.parent)
    with tempfile.TemporaryDirectory(**place) as outer:
        lock = os.open(outer, os.O_RDONLY)
        try:
            with suppress(OSError):  # where there are no locks, nothing is taken for a leftover
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (new := Path(outer, "new")).mkdir()
            yield new
        finally:
            os.close(lock)


def _remove_leftovers(root: Path) -> None:
    # A lock, unlike a process id, also tells of the processes in other containers.
    for outer in root.glob(f"*{UNFINISHED}"):
        with suppress(OSError):  # the lock of a living process, or somebody removes it too
            if not (outer / "new").exists():
                continue  # its lock comes before
            lock = os.open(outer, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(outer)
            finally:
                os.close(lock)
