"""Ends a run in which nothing happens any more, and says where every thread was.

    with Watchdog(seconds=1800, stacks=path) as watchdog:
        for batch in batches:
            watchdog.beat()

A collective that waits for a dead host, a file system that hangs, a loader that never returns: none
of them raises. A launcher can start a run again that ended, not one that hangs.
"""

import faulthandler
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

HUNG = 70  # exit code: start it again, from the last checkpoint


class Watchdog:
    """A thread that ends the process with exit code 70 after `seconds` without a `beat`.

    The stacks of all threads go to stderr and, where that is a local folder, to a file in `folder`.
    None never ends anything. Should this thread itself be kept from running by code that holds the
    interpreter, C code of the interpreter's own does the same half as much later (exit code 1).
    """

    def __init__(self, seconds: float | None, folder: str | None = None) -> None:
        self.seconds, self.folder = seconds, folder
        self._last, self._stop = time.monotonic(), threading.Event()
        if seconds is not None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self.seconds is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """Says that the run is alive."""
        self._last = time.monotonic()  # not the wall clock, which may jump

    def _watch(self) -> None:
        while not self._stop.wait(min(self.seconds / 10, 10.0)):
            quiet = time.monotonic() - self._last
            if quiet < self.seconds:
                with suppress(Exception):  # stderr may be closed
                    left = 1.5 * self.seconds - quiet
                    faulthandler.dump_traceback_later(left, exit=True, file=sys.__stderr__)
                continue
            message = f"anneal: no step for {quiet:.0f} s (config.guard.hang_after); all stacks:"
            # A disk that hangs may be the reason, so what writes is not waited for any longer.
            for write in (self._print, self._write):
                thread = threading.Thread(target=write, args=(message,), daemon=True)
                thread.start()
                thread.join(timeout=5)
            os._exit(HUNG)

    def _print(self, message: str) -> None:
        with suppress(Exception):
            print(message, file=sys.__stderr__, flush=True)
            faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)

    def _write(self, message: str) -> None:
        if self.folder is None or "://" in str(self.folder):
            return
        with suppress(Exception):
            with open(Path(self.folder, f"stacks-{os.getpid()}.txt"), "w") as file:
                print(message, file=file, flush=True)
                faulthandler.dump_traceback(file=file, all_threads=True)
