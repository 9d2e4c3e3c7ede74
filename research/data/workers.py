"""Batches from worker processes that can be trusted.

    for result in in_processes(make, like, steps, workers=2): ...       # as for map(make, steps)

A worker that is killed is started again at the batch that is missing, so nothing is lost or
repeated. One that raises, hangs or keeps dying is an error that names the batch. None outlives the
main process, however that ends, and none dies of a signal before it.

Not grain's workers: in 0.2.18 they outlive a main process that was killed, together with their
shared memory, die of a SIGTERM to the process group, and are not started again.
"""

import faulthandler
import math
import multiprocessing
import multiprocessing.util
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import resource_tracker
from typing import Any

import numpy as np

from research.arguments import InputError, RunError

PATIENCE = 600.0  # seconds without a batch after which a worker is taken to hang
RESTARTS = 3  # of a worker, for one batch
SMALLER = "set fewer config.data.workers, or a smaller config.batch"

Batch = dict[str, np.ndarray]
Leaves = dict[str, tuple[tuple[int, ...], np.dtype]]  # name -> shape, dtype


def in_processes(
    make: Callable[[int], tuple[Batch, Any]], like: Leaves, steps: range, workers: int
) -> Iterator[tuple[Batch, Any]]:
    """Yields make(step) for each step, in order; worker i of n makes each n-th from the i-th on.

    `like` are the arrays of every batch. Raises what `make` raises, with the worker's traceback in
    a note, and RunError for a worker that hangs or dies again and again.
    """
    pool = _Workers(make, like, [steps[first::workers] for first in range(workers)])
    # Called when this generator ends, or else before the interpreter waits for its child processes.
    end = multiprocessing.util.Finalize(None, pool.end, exitpriority=1)
    try:
        for index in range(workers):
            pool.start(index)
        for number in range(len(steps)):
            yield pool.receive(number % workers)
    finally:
        end()


class _Workers:
    """Each writes its batches into a slot: memory that the main process sees too, and that has no
    name under which it could stay behind. A pipe says that a batch is there, or was taken."""

    def __init__(self, make: Callable, like: Leaves, steps: list[range]) -> None:
        import cloudpickle  # functions of a notebook too

        self.make, self.like, self.steps = cloudpickle.dumps(make), like, steps
        self.context = multiprocessing.get_context("spawn")  # a fork would copy jax's locks, held
        sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in like.items()}
        self.slots = [
            {name: self.context.RawArray("B", size or 1) for name, size in sizes.items()}
            for _ in steps
        ]
        self.processes, self.pipes = [None] * len(steps), [None] * len(steps)
        self.lock, self.ended = threading.Lock(), False

    def start(self, index: int) -> None:
        """Starts worker `index` at the first of its steps."""
        with self.lock:
            if self.ended:
                raise RunError("the data workers were ended")
            self.pipes[index], pipe = self.context.Pipe()
            arguments = (self.make, self.steps[index], self.slots[index], self.like, pipe)
            process = self.context.Process(target=_work, args=arguments, daemon=True)
            # A new process inherits what is blocked. Ctrl-C and preemption signal every process;
            # the main one saves first, and its end is theirs.
            resource_tracker.ensure_running()  # what starts it unblocks them
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            try:
                process.start()
                self.processes[index] = process
            except OSError as error:
                raise RunError(f"a data worker cannot be started: {error}; {SMALLER}") from error
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
                pipe.close()  # else nothing would tell that the worker closed it

    def receive(self, index: int) -> tuple[Batch, Any]:
        """Returns the next batch of worker `index`, which is started again if it died."""
        answer = self._wait(index)
        if isinstance(answer, Exception):
            raise answer
        views = _views(self.slots[index], self.like)
        batch = {name: view.copy() for name, view in views.items()}
        self.steps[index] = self.steps[index][1:]
        with suppress(OSError):  # it may have ended after its last batch
            self.pipes[index].send(None)
        return batch, answer

    def _wait(self, index: int) -> Any:
        where = f"the batch after step {self.steps[index][0]}"
        for restarts in range(RESTARTS + 1):
            process = self.processes[index]
            try:
                if self.pipes[index].poll(PATIENCE):
                    return self.pipes[index].recv()
            except (EOFError, OSError):
                process.join(10)
                process.kill()  # if it closed the pipe and lives on
                process.join()
                died = f"a data worker died (exit code {process.exitcode}) before {where}"
                if restarts == RESTARTS:
                    raise RunError(
                        f"{died}, {restarts} times after it was started again; "
                        + _cause(process.exitcode)
                    ) from None
                self.start(index)
                print(f"{died}; started again", file=sys.stderr, flush=True)
            else:
                os.kill(process.pid, signal.SIGUSR1)  # it prints where it is
                process.join(1)
                raise RunError(
                    f"{where} did not come within {PATIENCE:g} s: a data worker hangs, its stack "
                    "is above; look at the storage that it reads from"
                )

    def end(self) -> None:
        """Ends all workers at once: they hold nothing that could be lost."""
        with self.lock:
            self.ended = True
            started = [process for process in self.processes if process]
            for process in started:
                process.kill()
        for process in started:
            process.join(5)  # one that waits for storage dies when it answers


def _cause(code: int) -> str:
    if code == -signal.SIGKILL:
        return f"probably out of host memory: {SMALLER}"
    if code == -signal.SIGBUS:
        return f"probably /dev/shm is full: {SMALLER}"
    return "with config.data.workers=0 the main process meets the same"


def _views(slot: dict[str, Any], like: Leaves) -> Batch:
    return {name: np.ndarray(shape, dtype, slot[name]) for name, (shape, dtype) in like.items()}


def _work(make: bytes, steps: range, slot: dict[str, Any], like: Leaves, pipe: Any) -> None:
    """A worker process."""
    faulthandler.register(signal.SIGUSR1)  # for the main process to ask where it hangs
    threading.Thread(target=_end_with_parent, daemon=True).start()
    views, function = _views(slot, like), None
    with suppress(EOFError, ConnectionError):  # the main process is gone
        for number, step in enumerate(steps):
            try:
                function = function or pickle.loads(make)
                batch, answer = function(step)
            except Exception as error:
                batch, answer = {}, _portable(error)
            if number:
                pipe.recv()  # the batch before was taken
            for name, value in batch.items():
                views[name][...] = value
            pipe.send(answer)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(0)


def _portable(error: Exception) -> Exception:
    """Returns `error`, or what can be said of it where it cannot pass from process to process."""
    if not isinstance(error, InputError | RunError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does when it is pickled
        notes = " ".join(getattr(error, "__notes__", [])[:1])
        return RunError(f"{type(error).__name__}: {error} {notes}")
