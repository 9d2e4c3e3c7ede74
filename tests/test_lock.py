"""One writer a workdir: refused by name, taken over when dead, given up when taken over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from research import lock as lock_lib
from research.arguments import InputError
from research.lock import Lock, LockedError, locked

HOLDER = """
import sys, time
from research.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock_lib, "HEARTBEAT", 0.2)
    monkeypatch.setattr(lock_lib, "EXPIRY", 1.0)


def elsewhere(path, age):
    """As another machine sees the lock: process ids mean nothing there."""
    owner = json.loads((path / "lock").read_text()) if (path / "lock").exists() else {}
    owner |= {"token": "theirs", "host": "far", "pid": 7, "started": 1, "space": "another boot"}
    (path / "lock").write_text(json.dumps(owner))
    os.utime(path / "lock", (time.time() - age,) * 2)


def test_a_second_writer_is_refused_within_5_seconds_naming_host_and_pid(tmp_path, holder):
    host, start = os.uname().nodename, time.monotonic()
    with pytest.raises(LockedError, match=f"host {host}, pid {holder.pid}"):
        with locked(str(tmp_path)):
            raise AssertionError("two writers")
    assert time.monotonic() - start < 5
    assert (tmp_path / "lock").exists()  # still the holder's


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    start = time.monotonic()
    with locked(str(tmp_path)):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert time.monotonic() - start < 5
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_process_id_given_to_another_process_does_not_hold_the_lock(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    owner = json.loads((tmp_path / "lock").read_text())
    (tmp_path / "lock").write_text(json.dumps(owner | {"pid": os.getppid()}))
    with locked(str(tmp_path)):
        pass


def test_another_host_s_lock_is_refused_while_it_shows_signs_of_life(tmp_path):
    elsewhere(tmp_path, age=20)
    with pytest.raises(LockedError, match=r"host far, pid 7, last sign of life 2\d s ago; taken"):
        Lock(tmp_path).acquire()


def test_another_host_s_lock_without_a_sign_of_life_is_taken_over(tmp_path, quick):
    elsewhere(tmp_path, age=100)
    with locked(str(tmp_path)):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_lock_renewed_while_one_looks_on_is_alive_whatever_the_clock_says(tmp_path, quick):
    elsewhere(tmp_path, age=100)
    stop = threading.Event()

    def renew():
        while not stop.wait(0.05):
            os.utime(tmp_path / "lock")

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(LockedError, match="host far"):
            Lock(tmp_path).acquire()
    finally:
        stop.set()
        thread.join()


def test_the_holder_renews_its_lock(tmp_path, quick):
    with locked(str(tmp_path)):
        os.utime(tmp_path / "lock", (0, 0))
        time.sleep(0.6)
        assert time.time() - (tmp_path / "lock").stat().st_mtime < 1


def test_a_holder_whose_lock_was_taken_over_stops_and_leaves_the_lock_alone(tmp_path, quick):
    with pytest.raises(LockedError, match="was taken over by another run .host far, pid 7"):
        with locked(str(tmp_path)) as lock:
            lock.check()
            elsewhere(tmp_path, age=0)
            time.sleep(0.6)
            lock.check()
    assert json.loads((tmp_path / "lock").read_text())["token"] == "theirs"


def test_an_empty_lock_from_a_kill_or_a_full_disk_goes_stale(tmp_path, quick):
    (tmp_path / "lock").write_text("")
    with pytest.raises(LockedError, match="host unknown"):
        Lock(tmp_path).acquire()
    os.utime(tmp_path / "lock", (0, 0))
    with locked(str(tmp_path)):
        pass


def test_of_many_who_find_a_stale_lock_one_gets_it(tmp_path, quick):
    elsewhere(tmp_path, age=100)
    locks, outcomes = [Lock(tmp_path) for _ in range(8)], []

    def take(lock):
        try:
            lock.acquire()
            outcomes.append(lock)
        except LockedError:
            outcomes.append(None)

    threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    time.sleep(0.6)  # a loser that believed it had won finds out at its next sign of life
    winners = [lock for lock in outcomes if lock is not None and lock._lost is None]
    assert len(outcomes) == 8 and len(winners) == 1
    winners[0].release()
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_workdir_that_is_a_file_or_read_only_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="cannot be written"):
            with locked(str(folder)):
                pass
