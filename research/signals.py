"""SIGTERM and SIGINT: the run saves after the step under way, on every host after the same one."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from research import hosts


@contextmanager
def catch_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether one of the processes was told to stop; every process
    calls it once a step. A second signal ends a process at once."""
    received = []

    def note(number: int, _: object) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)
        text = f"{signal.Signals(number).name}: saving after this step (again: stop at once)\n"
        with suppress(OSError):
            os.write(1, text.encode())  # not print: it may be what was interrupted

    stopping = hosts.Signal(lambda: bool(received))
    if threading.current_thread() is not threading.main_thread():  # a notebook's worker, say
        yield stopping
        return
    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
