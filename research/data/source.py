"""Batches as a pure function of (seed, step): what every dataset returns, and what they share.

    batches = prefetch(source.batches(state.step, shard=(host, hosts)), put)

Nothing of the input pipeline is saved: a run resumes by asking for the batches from its step on.
"""

import functools
import queue
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from research.arguments import InputError

Batch = dict[str, np.ndarray]
Row = Callable[[int, int, np.random.Generator], Batch]  # (index, epoch, generator) -> one example


class RecordError(InputError):
    """A corrupt record, which the message names."""


class Source(NamedTuple):
    """One split of a dataset."""

    spec: dict[str, jax.ShapeDtypeStruct]  # a global batch: every leaf has a leading axis `batch`
    info: dict[str, Any]  # what the data decides, and its fingerprint; plain JSON
    num_batches: int  # in one pass over the split, the last one padded with weight 0
    batches: Callable[..., Iterator[Batch]]  # as make_batches returns it
    tokenizer: Any = None


def make_batches(
    row: Row,
    num_rows: int,
    *,
    spec: dict[str, jax.ShapeDtypeStruct],
    batch: int,
    seed: int,
    shuffle: bool,
    repeat: bool,
    workers: int = 0,
    skip_budget: int = 0,
) -> Callable[..., Iterator[Batch]]:
    """Returns batches(start_step=0, shard=(0, 1), one_pass=not repeat).

    Row j of a batch is example step * batch + j of the shuffled epochs laid end to end (a new order
    each epoch, 8 bytes a row). Host `index` of `count` gets its contiguous part of every batch; no
    number of hosts or workers changes a batch, and seeking is free. One pass has
    ceil(num_rows / batch) batches, unshuffled. `workers` processes make batches; then `row` must
    pickle. Only the names in `spec` are taken from a row. One that raises RecordError is replaced
    by zeros and named on stderr, up to `skip_budget` records a host (counted anew after a restart).

    Raises RecordError for a corrupt record without a budget, InputError beyond the budget, or for a
    batch that the hosts cannot share equally.
    """
    empty = {name: np.zeros(leaf.shape[1:], leaf.dtype) for name, leaf in spec.items()}

    def batches(
        start_step: int = 0, shard: tuple[int, int] = (0, 1), one_pass: bool = not repeat
    ) -> Iterator[Batch]:
        host, hosts = shard
        if batch % hosts:
            raise InputError(f"batch={batch} does not divide by {hosts} hosts; choose a multiple")

        def at(step: int) -> tuple[Batch, list[str]]:
            rows, errors = [], []
            for position in range(batch * host // hosts, batch * (host + 1) // hosts):
                epoch, index = divmod(step * batch + position, num_rows)
                if one_pass and epoch:
                    rows.append(empty)
                    continue
                if shuffle and not one_pass:
                    index = int(_order(num_rows, seed, epoch)[index])
                try:
                    random = np.random.default_rng((seed, epoch, index + 1))
                    rows.append(row(index, epoch, random))
                except RecordError as error:
                    rows.append(empty)
                    errors.append(str(error))
            return {name: np.stack([row[name] for row in rows]) for name in empty}, errors

        steps = range(start_step, -(-num_rows // batch) if one_pass else 1 << 40)
        made = _in_processes(at, steps, workers) if workers else map(at, steps)
        return _within_budget(made, skip_budget)

    return batches


@functools.lru_cache(maxsize=4)
def _order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    # Not grain's index_shuffle: in 0.2.18 it never returns for some seeds if there are few rows.
    return np.random.default_rng((seed, epoch)).permutation(num_rows)


def _in_processes(function: Callable[[int], Any], steps: range, workers: int) -> Iterator[Any]:
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's processes read a flag, also outside absl's app.run
    # Whole batches are made in a worker: grain keeps the order of elements, not of what it batches.
    dataset = grain.MapDataset.range(steps.start, steps.stop).map(function)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    iterator = iter(dataset.mp_prefetch(grain.MultiprocessingOptions(workers, 2)))
    try:
        yield from iterator
    finally:
        iterator.close()


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


def cached(folder: Path, write: Callable[[Path], None]) -> Path:
    """Returns `folder`, made by `write` under another name and renamed if it does not exist yet.

    So nobody sees half of it, whoever is killed or writes it too. Raises InputError if it cannot be
    written.
    """
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as temporary:
            (new := Path(temporary, "new")).mkdir()
            write(new)
            new.rename(folder)
    except OSError as error:
        if not folder.exists():  # else another process was first
            raise InputError(
                f"cannot write the cache {folder}: {error}; set ANNEAL_CACHE to a writable folder"
            ) from error
    return folder
