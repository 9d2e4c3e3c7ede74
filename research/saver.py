"""When a checkpoint is written, and what happens if that fails: training goes on.

    saver = Saver(checkpoints, every=500)
    if saver.wants(step):                         # asked after each step
        saver.save(step, state, numbers, extra)   # goes on behind
    saver.finish(step, state, numbers, extra)     # the last one: returns when it is on disk

A save that fails (full disk, lost permission, a store that is away) is tried again after some
seconds, then after twice as long, and said each time. Three intervals in a row without a checkpoint
end the run. One that is slower than the interval is waited for, said and counted: nothing queues.
At stake is what came since the last save that is on disk: an interval and the time of a save.
"""

import time
from typing import Any

from research import hosts
from research.arguments import RunError
from research.checkpoint import Checkpoints, NonFiniteError

RETRY = 10.0  # seconds until the first retry
MISSES = 3  # intervals without a checkpoint, and tries at the end


class StorageError(RunError):
    """Checkpoints cannot be written."""

    code = 74


class Saver:
    """Saves every `every` steps (None: only at the end). All processes decide alike."""

    def __init__(self, checkpoints: Checkpoints, every: int | None) -> None:
        self.checkpoints, self.every = checkpoints, every
        self.failed = self.late = 0  # saves so far that did not come to be, or not in time
        self._owed = self._pending = False
        self._misses, self._not_before, self._wait = 0, 0.0, RETRY
        self._reason = ""

    def is_due(self, step: int) -> bool:
        """Tells whether the cadence falls on `step`."""
        return self.every is not None and step % self.every == 0

    def counts(self) -> dict[str, int]:
        """Returns what went wrong so far, for the metrics (nothing if nothing did)."""
        counts = {"time/saves_failed": self.failed, "time/saves_late": self.late}
        return {name: count for name, count in counts.items() if count}

    def wants(self, step: int) -> bool:
        """Tells whether to save now: a save is due or owed, and storage is ready. Raises
        StorageError when three intervals have passed without a checkpoint."""
        due = self.is_due(step)
        if not (due or self._owed or (self._pending and hosts.count() == 1)):
            return False
        is_late = self._pending and hosts.any_of(self.checkpoints.is_saving())
        if due and is_late:
            self.late += 1
            hosts.say(f"step {step}: the save before is still being written; save more rarely")
        if self._pending and (due or not is_late):
            self._collect()
        if due and self._owed:
            self._misses += 1
            if self._misses >= MISSES:
                raise StorageError(
                    f"{self._misses} intervals passed without a checkpoint; {self._reason}; mend "
                    "the storage and run the same command again"
                )
        self._owed |= due
        return self._owed and not hosts.any_of(time.monotonic() < self._not_before)

    def save(self, step: int, state: Any, numbers: dict, extra: dict, good: bool = True) -> None:
        """Begins to save; what fails is tried again."""
        try:
            self._begin(step, state, numbers, extra, good)
        except NonFiniteError as error:  # a later state may be finite again: the guard goes back
            self._fail(error)

    def finish(self, step: int, state: Any, numbers: dict, extra: dict, good: bool = True) -> None:
        """Saves this step and waits for it. Raises StorageError after three failed tries, and
        NonFiniteError."""
        for attempt in range(MISSES):
            if attempt:
                time.sleep(RETRY * 2 ** (attempt - 1))
            self.settle()
            if self._begin(step, state, numbers, extra, good) and self._collect():
                return
        raise StorageError(f"the last checkpoint could not be written; {self._reason}")

    def settle(self) -> None:
        """Waits for the save under way, if there is one, and takes its result."""
        if self._pending:
            self._collect()

    def _begin(self, *arguments: Any) -> bool:
        try:
            self.checkpoints.save(*arguments)
        except OSError as error:
            self._fail(error)
            return False
        self._owed, self._pending = False, True
        return True

    def _collect(self) -> bool:
        """Takes the result of the last save; True if it is on disk."""
        self._pending = False
        try:
            self.checkpoints.wait()
        except OSError as error:
            self._fail(error)
            return False
        self._misses, self._wait, self._not_before = 0, RETRY, 0.0
        return True

    def _fail(self, error: Exception) -> None:
        self.failed += 1
        self._owed = True
        self._reason = str(error)
        self._not_before = time.monotonic() + self._wait
        self._wait *= 2
        hosts.say(f"{error}; training goes on and tries again")
