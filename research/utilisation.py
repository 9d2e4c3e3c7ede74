"""Where the time of a step goes, measured while training runs and without stalling it.

    watch = Stopwatch()
    for batch in watch.inputs(batches):
        state, metrics = train_step(state, batch)
        watch.dispatched(metrics["loss"])  # an output that is not donated later
    numbers |= watch.summary()  # at each log;  print(watch.sentence()) at the end

A thread waits for the outputs, so it knows when the device finished each step. Until the next one
began it was idle: for want of a batch (input), or for Python work and dispatch (host).
"""

import contextlib
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax

LIMITS = {
    "device": "the device",
    "input": "input; more loader workers (config.data.workers) would help",
    "host": "the host, Python between steps; larger batches or rarer logging would help",
}
MEMORY = {
    "VmRSS": "host_memory_gb",
    "VmHWM": "host_memory_peak_gb",
    "bytes_in_use": "device_memory_gb",
    "peak_bytes_in_use": "device_memory_peak_gb",
}


class Stopwatch:
    """Times the steps of one loop. The first step, which compiles, only starts the clock."""

    def __init__(self):
        self._recent, self._total = Counter(), Counter()  # seconds of each part; steps
        self._waited = (0.0, 0.0)  # the last wait for a batch: from, to
        self._free: float | None = None  # since when the device has had nothing to do
        # The CPU may run a step inside the call, so there it begins when the batch is there.
        self._runs_in_call = jax.default_backend() == "cpu"
        self._lock, self._queue = threading.Lock(), queue.Queue()
        self._thread = threading.Thread(target=self._watch, name="stopwatch", daemon=True)
        self._thread.start()

    def inputs(self, batches: Iterable) -> Iterator:
        """Yields the batches and times how long each takes to come."""
        start = time.perf_counter()
        for batch in batches:
            self._waited = (start, time.perf_counter())
            yield batch
            start = time.perf_counter()

    def dispatched(self, output: jax.Array) -> None:
        """Marks a step as begun; `output` is ready when the device has finished it."""
        start = self._waited[1] if self._runs_in_call else time.perf_counter()
        self._queue.put((*self._waited, start, output))

    def settle(self) -> None:
        """Waits until the steps under way are done and counted."""
        self._queue.join()

    @contextlib.contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """Leaves what happens inside out of the steps; "time/<name>" of the next summary has it."""
        self.settle()
        start = time.perf_counter()
        yield
        end = time.perf_counter()
        self._recent[name] += end - start
        self._free = self._free and end

    def summary(self) -> dict[str, float]:
        """Returns, since the last call and all under "time/": seconds a `step` and of its parts
        `device`, `input` and `host`, `duty_cycle`, seconds of each pause; and memory in GB."""
        with self._lock:
            recent, self._recent = self._recent, Counter()
        self._total.update(recent)
        steps = recent.pop("steps", 0)
        parts = {part: recent.pop(part, 0.0) for part in LIMITS}
        numbers = dict(recent) | _memory()
        if steps:
            wall = sum(parts.values())
            numbers |= {part: seconds / steps for part, seconds in parts.items()}
            numbers |= {"step": wall / steps, "duty_cycle": parts["device"] / wall}
        return {f"time/{name}": number for name, number in numbers.items()}

    def sentence(self) -> str:
        """Returns what limited the run, in words; call it last."""
        self._queue.join()
        self.summary()
        busy, waited, host = (self._total[part] for part in LIMITS)
        if not (wall := busy + waited + host):
            return "No step was timed: the first one only starts the clock."
        limit = "device" if busy >= 0.9 * wall else "input" if waited >= host else "host"
        return (
            f"Limited by {LIMITS[limit]}. The device was busy {busy / wall:.0%} of the time, and "
            f"waited {waited / wall:.0%} for batches and {host / wall:.0%} for the host."
        )

    def close(self) -> None:
        """Ends the thread."""
        self._queue.put(None)
        self._thread.join(timeout=10)  # a device that hangs must not hang the exit

    def _watch(self) -> None:
        for wait_start, wait_end, start, output in iter(self._queue.get, None):
            with contextlib.suppress(Exception):  # the loop meets the same error, with its context
                output.block_until_ready()
            now = time.perf_counter()
            if self._free is not None:
                idle = max(0.0, start - self._free)
                waited = max(0.0, min(wait_end, start) - max(wait_start, self._free))
                parts = {"input": waited, "host": idle - waited, "steps": 1}
                with self._lock:
                    self._recent.update(parts, device=now - max(start, self._free))
            self._free = now
            del output  # not kept until the next one comes
            self._queue.task_done()
        self._queue.task_done()


def _memory() -> dict[str, float]:
    """Returns GB in use and at most, by this process (on Linux) and its first device (no CPU)."""
    status = Path("/proc/self/status")
    lines = re.findall(r"(Vm\w+):\s+(\d+) kB", status.read_text() if status.exists() else "")
    used = {name: 1024 * int(number) for name, number in lines}
    used |= jax.local_devices()[0].memory_stats() or {}
    return {MEMORY[name]: used[name] / 1e9 for name in MEMORY if name in used}
