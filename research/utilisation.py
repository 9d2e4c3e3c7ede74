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
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax

LIMITS = {
    "device": "Limited by the device: it was busy {device:.0%} of the time "
    "(input wait {input:.0%}, host {host:.0%}).",
    "input": "Limited by input: the device waited {input:.0%} of the time for batches; "
    "more loader workers (config.data.workers) would help.",
    "host": "Limited by the host: the device waited {host:.0%} of the time for Python work between "
    "steps; larger steps or rarer logging would help.",
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
        batches, end = iter(batches), object()
        while True:
            start = time.perf_counter()
            batch = next(batches, end)
            self._waited = (start, time.perf_counter())
            if batch is end:
                return
            yield batch

    def dispatched(self, output: jax.Array) -> None:
        """Marks a step as begun; `output` is ready when the device has finished it."""
        start = self._waited[1] if self._runs_in_call else time.perf_counter()
        self._queue.put((*self._waited, start, output))

    @contextlib.contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """Leaves what happens inside out of the steps; "time/<name>" of the next summary has it."""
        self._queue.join()  # the steps under way still count
        start = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            self._recent[name] += end - start
            self._free = end if self._free is not None else None

    def summary(self) -> dict[str, float]:
        """Returns what happened since the last call, the keys under "time/": seconds of a `step` and
        its parts `device`, `input` and `host`, `duty_cycle`, seconds in each pause, memory in GB."""
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
        """Returns what limited the run, in words."""
        self._queue.join()
        self.summary()
        wall = sum(self._total[part] for part in LIMITS)
        if not wall:
            return "No step was timed: the first one only starts the clock."
        shares = {part: self._total[part] / wall for part in LIMITS}
        idle = max(("input", "host"), key=shares.get)
        return LIMITS["device" if shares["device"] >= 0.9 else idle].format(**shares)

    def close(self) -> None:
        """Ends the thread."""
        self._queue.put(None)
        self._thread.join(timeout=10)  # a device that hangs must not hang the exit

    def _watch(self) -> None:
        while (item := self._queue.get()) is not None:
            wait_start, wait_end, start, output = item
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
            del item, output  # an array is not kept longer than needed
            self._queue.task_done()


def _memory() -> dict[str, float]:
    numbers = {}
    status = Path("/proc/self/status")
    if status.exists():  # Linux; in kB
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        for field, name in (("VmRSS", "host_memory_gb"), ("VmHWM", "host_memory_peak_gb")):
            numbers[name] = int(fields[field].split()[0]) * 1024 / 1e9
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    for key, name in (("bytes_in_use", "memory_gb"), ("peak_bytes_in_use", "memory_peak_gb")):
        if all(key in found for found in stats):  # not on the CPU
            numbers[f"device_{name}"] = max(found[key] for found in stats) / 1e9
    return numbers
