"""Batches as a pure function of (seed, step): what every dataset returns, and what they share.

    source = text.make(reader="stdlib", split="train", seed=0, batch=8)
    for batch in prefetch(source.batches(state.step, (jax.process_index(), jax.process_count())), put): ...

Nothing of the input pipeline is saved: a run resumes by asking for the batches from its step on.
"""

import functools
import queue
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from research.arguments import InputError

Batch = dict[str, np.ndarray]
Row = Callable[[int, int, np.random.Generator], Batch]  # (index, epoch, generator) -> one example


class RecordError(InputError):
    """A corrupt record. The message names it."""


class Source(NamedTuple):
    """One split of a dataset.

    spec: one global batch; every leaf has a leading axis `batch`.
    info: what the data decides (vocab_size, context, ...), and its fingerprint; plain JSON.
    num_batches: batches in one pass over the split; the last is padded with weight 0.
    batches(start_step=0, shard=(0, 1)): the batches of host `index` of `count`, from a step on.
    """

    spec: dict[str, jax.ShapeDtypeStruct]
    info: dict[str, Any]
    num_batches: int
    batches: Callable[..., Iterator[Batch]]
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
    """Returns batches(start_step=0, shard=(0, 1)), an iterator of one host's part of each batch.

    Row j of batch `step` is example (step * batch + j) of the shuffled epochs laid end to end, so
    neither hosts nor workers change it, and seeking is free. A new order is drawn each epoch
    (8 bytes a row). Without `repeat` there are ceil(num_rows / batch) batches. With `workers` the
    rows are made in as many processes, so `row` must pickle.
    A row that raises RecordError is replaced by zeros, named on stderr and counted, up to
    `skip_budget` records on each host (counted anew after a restart).

    Raises RecordError for the first corrupt record if the budget is 0, InputError beyond the
    budget, and InputError if the hosts cannot share a batch equally.
    """
    empty = {name: np.zeros(leaf.shape[1:], leaf.dtype) for name, leaf in spec.items()}

    def batches(start_step: int = 0, shard: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        if batch % shard[1]:
            raise InputError(
                f"batch={batch} cannot be shared by {shard[1]} hosts; choose a multiple of {shard[1]}"
            )
        plan = _HostBatches(row, num_rows, empty, batch, seed, shuffle, repeat, shard)
        return _within_budget(_iterate(plan, start_step, workers), skip_budget)

    return batches


@dataclass
class _HostBatches:
    """Step -> (one host's part of the batch, its errors); what grain calls a random-access source."""

    row: Row
    num_rows: int
    empty: Batch
    batch: int
    seed: int
    shuffle: bool
    repeat: bool
    shard: tuple[int, int]

    def __len__(self) -> int:
        return 1 << 40 if self.repeat else -(-self.num_rows // self.batch)

    def __getitem__(self, step: int) -> tuple[Batch, list[str]]:
        share = self.batch // self.shard[1]
        first = step * self.batch + self.shard[0] * share
        rows, errors = [], []
        for position in range(first, first + share):
            epoch, index = divmod(position, self.num_rows)
            if epoch and not self.repeat:
                rows.append(self.empty)
                continue
            if self.shuffle:
                index = int(_order(self.num_rows, self.seed, epoch)[index])
            random = np.random.default_rng((self.seed, epoch, index + 1))
            try:
                rows.append(self.row(index, epoch, random))
            except RecordError as error:
                rows.append(self.empty)
                errors.append(str(error))
        return {name: np.stack([row[name] for row in rows]) for name in self.empty}, errors


@functools.lru_cache(maxsize=4)
def _order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    # Not grain's index_shuffle: in 0.2.18 it never returns for some seeds if there are few rows.
    return np.random.default_rng((seed, epoch)).permutation(num_rows)


def _iterate(plan: _HostBatches, start: int, workers: int) -> Iterator[tuple[Batch, list[str]]]:
    if workers == 0:  # grain's threads cost more than a row of a token array
        yield from (plan[step] for step in range(start, len(plan)))
        return
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's processes read a flag, also outside absl's app.run
    # A worker makes whole batches: grain keeps the order of what it prefetches, but not of what
    # is batched afterwards.
    dataset = grain.MapDataset.source(plan)[start:].to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    )
    iterator = iter(dataset.mp_prefetch(grain.MultiprocessingOptions(workers, 2)))
    try:
        yield from iterator
    finally:
        iterator.close()


def _within_budget(pairs: Iterator[tuple[Batch, list[str]]], budget: int) -> Iterator[Batch]:
    skipped: set[str] = set()
    for batch, errors in pairs:
        for error in errors:
            skip_record(error, skipped, budget)
        yield batch


def skip_record(error: str, skipped: set[str], budget: int) -> None:
    """Names a corrupt record on stderr and adds it to `skipped`; raises beyond the budget."""
    if budget == 0:
        raise RecordError(f"{error}; repair it, or allow a few by skip_budget")
    if error not in skipped:
        skipped.add(error)
        print(f"skipped record {len(skipped)} of at most {budget}: {error}", file=sys.stderr)
    if len(skipped) > budget:
        raise InputError(f"more than skip_budget={budget} corrupt records; the last one: {error}")


def prefetch(iterator: Iterator[Any], put: Callable[[Any], Any], depth: int = 2) -> Iterator[Any]:
    """Yields put(item) for each item, made up to `depth` ahead by one thread.

    An exception of the iterator or of `put` is raised here, after the items before it. Closing
    this generator (or dropping it) ends the thread and closes the iterator.
    """
    results, slots, stop = queue.SimpleQueue(), threading.Semaphore(depth), threading.Event()

    def work() -> None:
        try:
            while slots.acquire() and not stop.is_set():
                results.put((put(next(iterator)), None))
        except BaseException as error:  # StopIteration too; the consumer decides
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
    """Returns `folder`, after write(temporary folder) and a rename if it does not exist yet.

    So nobody sees half of it, whoever is killed and however many processes write at once.
    Raises InputError if it cannot be written.
    """
    if folder.exists():
        return folder
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        write(temporary)
        temporary.rename(folder)
    except OSError as error:
        if not folder.exists():  # else another process was first
            advice = "free some space, or set ANNEAL_CACHE to a folder that can be written"
            raise InputError(f"cannot write the cache {folder}: {error}; {advice}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
