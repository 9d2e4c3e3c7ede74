"""Worker processes change no batch, are outlived by none, and what goes wrong in one is named."""

import functools
import multiprocessing
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from research.arguments import InputError, RunError
from research.data import workers
from research.data.source import RecordError, make_batches
from tests.data.batches import assert_equal, source, start, take


def test_workers_do_not_change_the_batches():
    plain, *others = (source(corrupt={2}, skip_budget=1, workers=count) for count in (0, 1, 3))
    for batches in others:
        assert_equal(take(batches(3), 9), take(plain(3), 9))
        assert_equal(list(batches(1, one_pass=True)), list(plain(1, one_pass=True)))


@pytest.mark.fault("corrupt record")
def test_a_corrupt_record_in_a_worker_is_named_in_its_place():
    batches = source(corrupt={5}, repeat=False, workers=1)()
    assert next(batches)["index"][:, 0].tolist() == [1, 2, 3, 4]
    with pytest.raises(RecordError, match="record 5 is broken"):
        next(batches)


def failing(error, workers):
    """Batches of a row that raises error() at row 5, in the second batch."""

    def row(index, epoch, random):
        if index == 5:
            raise error()
        return {"index": np.int32(index)}

    spec = {"index": jax.ShapeDtypeStruct((4,), np.int32)}
    options = dict(spec=spec, batch=4, seed=0, shuffle=False, repeat=True, workers=workers)
    batches = make_batches(row, 10, **options)[0]()
    assert next(batches)["index"].tolist() == [0, 1, 2, 3]
    return batches


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_row_keeps_its_type_and_names_row_and_step(workers):
    batches = failing(lambda: ZeroDivisionError("a fault of the program"), workers)
    with pytest.raises(ZeroDivisionError, match="a fault of the program") as error:
        next(batches)
    assert error.value.__notes__[0] == "at row 5 of the data, in the batch after step 1"
    if workers:  # what the main process cannot see of it
        assert "in row" in error.value.__notes__[1] and "raise error()" in error.value.__notes__[1]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.fault("out of memory")
def test_too_little_memory_for_a_batch_says_what_to_set(workers):
    with pytest.raises(RunError, match="out of memory for the batch after step 1; set fewer"):
        next(failing(MemoryError, workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_input_found_by_a_row_keeps_its_type(workers):
    for kind in (RecordError, InputError):
        with pytest.raises(kind, match="document 5 is in Latin"):
            next(failing(functools.partial(kind, "document 5 is in Latin"), workers))


def test_an_error_that_cannot_leave_its_process_is_told_in_words():
    class Local(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    with pytest.raises(RunError, match="Local: this and that at row 5 .* after step 1"):
        next(failing(lambda: Local("this", "that"), 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_that_is_not_like_its_spec_is_refused(workers):
    def row(index, epoch, random):
        return {"index": np.zeros((1,), np.int32)}

    spec = {"index": jax.ShapeDtypeStruct((4, 3), np.int32)}
    options = dict(spec=spec, batch=4, seed=0, shuffle=False, repeat=True, workers=workers)
    with pytest.raises(ValueError, match=r"index of a row has shape \(1,\), its spec \(3,\)"):
        next(make_batches(row, 10, **options)[0]())


@pytest.mark.fault("killed worker")
def test_killed_workers_lose_and_repeat_nothing(capfd):
    batches = source(workers=2)(3)
    found = [next(batches)]
    for step in range(4, 18):
        if step % 3 == 0:  # more often than one batch would be tried
            for process in multiprocessing.active_children():
                process.kill()
                process.join()
        found.append(next(batches))
    assert_equal(found, take(source()(3), 15))
    batches.close()
    lines = capfd.readouterr().err.splitlines()
    told = r"a data worker died \(exit code -9\) before the batch after step \d+; started again"
    assert all(re.fullmatch(told, line) for line in lines)
    assert len(set(lines)) == len(lines) > 3


@pytest.mark.parametrize(
    ("number", "cause"), [(signal.SIGKILL, "out of host memory: set fewer"), (signal.SIGSEGV, "=0")]
)
def test_a_worker_that_always_dies_is_an_error_that_names_the_cause(number, cause, capfd):
    def row(index, epoch, random):
        if index == 5:
            os.kill(os.getpid(), number)
        return {"index": np.int32(index)}

    spec = {"index": jax.ShapeDtypeStruct((4,), np.int32)}
    options = dict(spec=spec, batch=4, seed=0, shuffle=False, repeat=True, workers=2)
    batches = make_batches(row, 10, **options)[0]()
    next(batches)
    with pytest.raises(RunError, match=rf"code -{number}\) before the batch after step 1.*{cause}"):
        next(batches)
    assert capfd.readouterr().err.count("started again") == 3
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("how", ["sleeps", pytest.param("is stopped", marks=pytest.mark.slow)])
@pytest.mark.fault("hanging loader")
def test_a_worker_that_hangs_is_an_error_that_names_the_step(how, monkeypatch, capfd):
    def row(index, epoch, random):
        if index == 5 and how == "sleeps":
            time.sleep(1000)
        return {"index": np.int32(index)}

    spec = {"index": jax.ShapeDtypeStruct((4,), np.int32)}
    options = dict(spec=spec, batch=4, seed=0, shuffle=False, repeat=True, workers=2)
    batches = make_batches(row, 10, **options)[0]()
    next(batches)
    monkeypatch.setattr(workers, "PATIENCE", 2)
    if how == "is stopped":
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(RunError, match=r"the batch after step \d+ did not come within 2 s"):
        take(batches, 10)
    assert 1 < time.monotonic() - begin < 10
    assert how == "is stopped" or "in row" in capfd.readouterr().err  # the stack of the worker
    assert not multiprocessing.active_children()


LOOP = """
import itertools, multiprocessing, os, signal, sys, threading, time
import jax
import numpy as np
from research.data.source import make_batches

def row(index, epoch, random):
    if epoch and sys.argv[1] == "hang":
        time.sleep(1000)
    return {"x": np.int32(index)}

def workers():
    return sorted(process.pid for process in multiprocessing.active_children())

received = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: received.append(True))
spec = {"x": jax.ShapeDtypeStruct((4,), np.int32)}
options = dict(spec=spec, batch=4, seed=0, shuffle=True, repeat=True, workers=2)
batches = make_batches(row, 10, **options)[0]()
if sys.argv[1] == "early":  # while the workers start
    threading.Timer(0.1, os.killpg, (0, signal.SIGTERM)).start()
next(batches)
before = workers()
print(*before, flush=True)
while not received and sys.argv[1] != "end":
    next(batches)
    time.sleep(0.01)
if received:
    time.sleep(0.3)  # enough for a worker to die
    assert len(list(itertools.islice(batches, 20))) == 20 and workers() == before
    print("saved", flush=True)
"""


def assert_gone(pids):
    """Waits some seconds for the processes to end."""

    def lives(pid):
        try:  # a zombie only waits to be buried by whoever adopted it
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    end = time.monotonic() + 5
    while any(map(lives, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(lives, pids))


@pytest.mark.parametrize("how", ["loop", "hang"])
def test_no_worker_outlives_a_killed_main_process(how):
    process = start(LOOP, how)
    pids = process.stdout.readline().split()
    assert len(pids) == 2
    process.kill()
    process.wait()
    assert_gone(pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, None])
def test_a_signal_to_all_processes_leaves_the_workers_to_the_main_process(number):
    when = "late" if number else "early"  # then the loop sends it itself
    process = start(LOOP, when, start_new_session=True, stderr=subprocess.PIPE)
    pids = process.stdout.readline().split()
    if number:
        os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (0, "saved\n", "")
    assert_gone(pids)


def test_a_program_that_ends_without_closing_its_batches_ends():
    process = start(LOOP, "end", stderr=subprocess.PIPE)
    pids = process.stdout.readline().split()
    assert process.communicate(timeout=20)[1] == "" and process.returncode == 0
    assert_gone(pids)
