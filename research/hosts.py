"""What the processes of one run agree on. With one process every call here costs nothing.

steps = hosts.on_first(lambda: list_steps(folder))     # process 0 looks, all know
if hosts.any_of(storage_is_busy()): ...
"""

import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.arguments import InputError, RunError


def join() -> None:
    """Makes this process one of many, as JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID say; what is not set is found out from the cluster (Cloud TPU, GKE, Slurm).

    Raises InputError when that cannot be found out or the others cannot be reached.
    """
    given = {
        name: os.environ.get(f"JAX_{name.upper()}") for name in ("num_processes", "process_id")
    }
    try:
        numbers = {name: int(text) for name, text in given.items() if text is not None}
        jax.distributed.initialize(**numbers)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"cannot join the other processes: {error}; set JAX_COORDINATOR_ADDRESS=HOST:PORT, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def explain(error: Exception) -> Exception:
    """Returns a PeerError for an error that comes of another process being gone, else `error`."""
    text = str(error)
    if count() > 1 and re.search(r"Gloo|NCCL|[Cc]oordination|UNAVAILABLE|DEADLINE", text):
        return PeerError(f"another process of this run is gone: {text.splitlines()[0]}")
    return error


class PeerError(RunError):
    """Another process is gone: start all again, from the last checkpoint."""

    code = 70


def on_first(call: Callable[[], Any]) -> Any:
    """Returns what `call` returns on process 0 (plain JSON), on every process; an exception there
    is raised everywhere, so that no process waits for one that has given up."""
    if jax.process_count() == 1:
        return call()
    value, error = None, None
    if jax.process_index() == 0:
        try:
            value = call()
        except Exception as raised:
            error = raised
    text = json.dumps([value, error is not None, str(error), getattr(error, "code", 1)])
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(size, np.uint8)
    padded[: min(len(data), size)] = data[:size]
    value, failed, message, code = json.loads(
        multihost_utils.broadcast_one_to_all(padded).tobytes().decode()
    )
    if error is not None:
        raise error
    if failed:
        raise FirstProcessError(message, code)
    return value


class FirstProcessError(RunError):
    """What process 0 raised, on the other processes; `code` is the exit code of it."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def count() -> int:
    """Returns the number of processes."""
    return jax.process_count()


def say(text: str | None) -> None:
    """Prints on the first process."""
    if text and jax.process_index() == 0:
        print(text, flush=True)


def warn(text: str) -> None:
    """Prints on stderr of the first process: standard output may be data."""
    if jax.process_index() == 0:
        print(f"anneal: {text}", file=sys.stderr, flush=True)


def any_of(flag: bool) -> bool:
    """Tells whether `flag` is true on at least one process; all must call."""
    return bool(gather(float(flag)).any())


def gather(number: float) -> np.ndarray:
    """Returns the number of every process, in their order."""
    if jax.process_count() == 1:
        return np.array([number])
    return np.asarray(multihost_utils.process_allgather(np.float32(number))).reshape(-1)


class Signal:
    """A flag that any process may raise and all see raised at the same step, without waiting.

    raised = Signal(lambda: preempted)
    for step, batch in enumerate(batches):
        if raised(): break     # on every process in the same step
    """

    def __init__(self, local: Callable[[], bool]) -> None:
        self._local, self._asked = local, None
        if jax.process_count() > 1:
            # One device of each process: the answer of a call is that of the call before.
            first = {device.process_index: device for device in reversed(jax.devices())}
            mesh = Mesh(np.array([first[index] for index in sorted(first)]), ("host",))
            self._each = NamedSharding(mesh, P("host"))
            self._any = jax.jit(lambda flags: flags.any(), out_shardings=NamedSharding(mesh, P()))

    def __call__(self) -> bool:
        if jax.process_count() == 1:
            return self._local()
        before = self._asked
        flag = np.array([self._local()])
        self._asked = self._any(jax.make_array_from_process_local_data(self._each, flag))
        return before is not None and bool(before)
