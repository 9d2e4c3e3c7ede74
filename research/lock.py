"""One writer a workdir: a lock with a sign of life.

    with locked("runs/gpt") as lock:
        lock.check()        # before anything is written: LockedError when it was taken over

Creating the file `lock` only if it is absent is the whole protocol; object stores can do that too.
The holder renews the file every HEARTBEAT seconds. A lock is stale when its process is gone, where
that can be known, else when it was not renewed for EXPIRY seconds and is not while one looks on, so
that clocks which disagree take nothing away. A holder that was thought dead (a suspended machine)
finds another token in the file and stops.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etils import epath

from research import hosts, storage
from research.arguments import InputError, RunError

HEARTBEAT, EXPIRY = 10.0, 60.0


class LockedError(RunError):
    """Another run writes to the workdir."""

    code = 3


class Lock:
    """The lock of a workdir, held by the first process of a run."""

    def __init__(self, folder: epath.PathLike) -> None:
        self.path = epath.Path(folder) / "lock"
        self._owner = {"token": secrets.token_hex(8), "host": socket.gethostname()}
        self._owner |= {"pid": os.getpid(), "started": _started(os.getpid()), "space": _space()}
        self._lost: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)

    def acquire(self) -> None:
        """Takes the lock. Raises LockedError naming the holder, OSError if it cannot be written."""
        for attempt in range(3):
            try:
                storage.create(self.path, json.dumps(self._owner).encode())
            except FileExistsError:
                # Else it is ours: a store may do what it was asked and lose the answer.
                if self._read().get("token") != self._owner["token"]:
                    if (holder := self._living_holder()) is not None:
                        break
                    self._remove_stale()
                    continue
            if attempt:  # two may have found it stale: the last to write is the one that stays
                time.sleep(0.5)
                if (holder := self._other_holder()) is not None:
                    break
            self._thread.start()
            return
        raise LockedError(
            f"{self.path.parent} is locked by another run ({holder}); wait for it, or remove "
            f"{self.path} if you know that it is gone"
        )

    def check(self) -> None:
        """Raises LockedError when another run has taken the lock over."""
        if self._lost:
            raise LockedError(f"{self.path.parent} was taken over by another run ({self._lost})")

    def release(self) -> None:
        """Gives the lock back, unless it is another's by now."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            if self._read().get("token") == self._owner["token"]:
                self.path.unlink(missing_ok=True)
        except OSError:
            pass  # it will be found stale

    def _renew(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            try:
                self._lost = self._other_holder()
                if self._lost:
                    return
                if storage.is_remote(self.path):
                    self.path.write_text(json.dumps(self._owner))
                else:
                    os.utime(self.path)  # works on a full disk too
            except OSError:
                pass  # the store is away for a moment; this lock ages meanwhile

    def _read(self) -> dict:
        """The owner in the file; {} while it is being written, or if it never was."""
        try:
            owner = json.loads(self.path.read_text())
        except (ValueError, FileNotFoundError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def _other_holder(self) -> str | None:
        owner = self._read()
        is_other = owner.get("token", self._owner["token"]) != self._owner["token"]
        return f"host {owner.get('host')}, pid {owner.get('pid')}" if is_other else None

    def _living_holder(self) -> str | None:
        """Names the holder if it may be alive, None if the lock is stale."""
        owner, age = self._read(), self._age()
        name = f"host {owner.get('host', 'unknown')}, pid {owner.get('pid', 'unknown')}"
        if owner.get("space") == self._owner["space"] is not None:
            is_alive = _started(owner["pid"]) == owner["started"]
            return name if is_alive else None
        if age > EXPIRY:
            time.sleep(2.5 * HEARTBEAT)
            if self._read() == owner and self._age() > EXPIRY:
                return None
        return f"{name}, last sign of life {max(age, 0):.0f} s ago; taken over after {EXPIRY:.0f} s"

    def _age(self) -> float:
        try:
            return time.time() - self.path.stat().mtime
        except FileNotFoundError:
            return 0.0

    def _remove_stale(self) -> None:
        if storage.is_remote(self.path):
            self.path.unlink(missing_ok=True)
            return
        aside = self.path.with_name(f"lock.{self._owner['token']}")
        try:
            self.path.rename(aside)  # of two who try, one succeeds
        except FileNotFoundError:
            return
        aside.unlink()


@contextmanager
def locked(workdir: str) -> Iterator[Lock]:
    """Creates the workdir and holds its lock, on the first process for all.

    Raises InputError if it cannot be written and LockedError when a living run holds it.
    """
    lock = Lock(workdir)

    def acquire() -> None:
        try:
            lock.path.parent.mkdir(parents=True, exist_ok=True)
            if (lock.path.parent / "checkpoints").is_file():
                raise NotADirectoryError("checkpoints is a file")
            lock.acquire()
        except storage.StoreError:
            raise  # exit code 74: a launcher may try again
        except OSError as error:
            raise InputError(f"--workdir={workdir} cannot be written: {error}") from error

    hosts.on_first(acquire)
    try:
        yield lock
    finally:
        lock.release()


def _started(pid: int) -> int | None:
    """When a process started, in ticks since boot (a number may be given to another process later);
    None if there is no such process, or no way to know."""
    try:
        stat = Path(f"/proc/{int(pid)}/stat").read_text()
    except (OSError, ValueError, TypeError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])  # a zombie is gone


def _space() -> str | None:
    """Names the machine, since its start, and the container in which a process id means something;
    None where that cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
