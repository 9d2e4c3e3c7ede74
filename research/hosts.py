"""What the processes of one run agree on. With one process every call here costs nothing.

steps = hosts.on_first(lambda: list_steps(folder))     # process 0 looks, all know
if hosts.any_of(storage_is_busy()): ...
"""

import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
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
    is raised everywhere, as the same class where it is an OSError, InputError or RunError, so that
    all of them handle it alike and none waits for one that has given up."""
    if jax.process_count() == 1:
        return call()
    value, error = None, None
    if jax.process_index() == 0:
        try:
            value = call()
        except Exception as raised:
            error = raised
    text = json.dumps([value, error is not None, str(error), _kinds(error)])
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(size, np.uint8)
    padded[: min(len(data), size)] = data[:size]
    value, failed, message, kinds = json.loads(
        multihost_utils.broadcast_one_to_all(padded).tobytes().decode()
    )
    if error is not None:
        raise error
    if failed:
        known = {kind.__name__: kind for kind in (OSError, InputError, *_all_below(RunError))}
        raise next((known[kind] for kind in kinds if kind in known), RunError)(message)
    return value


def _kinds(error: Exception | None) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


def _all_below(kind: type) -> list[type]:
    return [k for below in kind.__subclasses__() for k in (below, *_all_below(below))]


def count() -> int:
    """Returns the number of processes."""
    return jax.process_count()


def say(text: str | None) -> None:
    """Prints on the first process."""
    if text and jax.process_index() == 0:
        with suppress(OSError):  # a full disk behind stdout, a closed pipe: no reason to stop
            print(text, flush=True)


def warn(text: str) -> None:
    """Prints on stderr of the first process: standard output may be data."""
    if jax.process_index() == 0:
        with suppress(OSError):
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
