"""Batches are a pure function of (seed, step); nobody is left behind when something breaks."""

import functools
import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import research
from research.arguments import InputError, RunError
from research.data import text, workers
from research.data.readers import in_split
from research.data.source import RecordError, cached, make_batches, prefetch

SPEC = {
    "index": jax.ShapeDtypeStruct((4, 3), np.int32),
    "draw": jax.ShapeDtypeStruct((4,), np.float32),
    "weight": jax.ShapeDtypeStruct((4,), np.float32),
}


def source(num_rows=10, corrupt=(), repeat=True, **options):
    def row(index, epoch, random):
        if index in corrupt:
            raise RecordError(f"record {index} is broken")
        return {
            "index": np.full(3, index + 1, np.int32),
            "draw": np.float32(random.random()),
            "weight": np.float32(1),
        }

    options = dict(spec=SPEC, batch=4, seed=3, shuffle=repeat, repeat=repeat) | options
    return make_batches(row, num_rows, **options)[0]


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.core
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_batches_of_one_host_in_its_order(hosts):
    batches = source()
    parts = [take(batches(0, (host, hosts)), 7) for host in range(hosts)]
    joined = [
        {name: np.concatenate([part[step][name] for part in parts]) for name in SPEC}
        for step in range(7)
    ]
    assert_equal(joined, take(batches(), 7))


def test_a_batch_that_hosts_cannot_share_is_refused():
    with pytest.raises(InputError, match="batch=4 does not divide by 3 hosts"):
        source()(0, (0, 3))


@pytest.mark.core
def test_seeking_equals_skipping():
    batches = source()
    assert_equal(take(batches(5), 6), take(batches(), 11)[5:])
    assert_equal(take(source(repeat=False)(2), 9), take(source(repeat=False)(), 9)[2:])
    assert take(source(repeat=False)(7), 9) == []


@pytest.mark.core
def test_an_epoch_visits_every_row_once_in_an_order_of_its_own():
    rows = np.concatenate([batch["index"][:, 0] for batch in take(source()(), 10)]).reshape(4, 10)
    for epoch in rows:
        assert sorted(epoch) == list(range(1, 11))
    assert len({tuple(epoch) for epoch in rows}) == 4
    other = np.concatenate([batch["index"][:, 0] for batch in take(source(seed=4)(), 10)])
    assert (other.reshape(4, 10) != rows).any(axis=1).all()


def test_a_row_draws_other_numbers_in_another_epoch():
    draws = np.concatenate([batch["draw"] for batch in take(source()(), 10)])
    assert len(set(draws.tolist())) == 40


@pytest.mark.core
def test_one_pass_is_in_order_and_padded_with_weight_zero():
    for batches in (source(repeat=False)(), source()(one_pass=True)):
        found = take(batches, 9)
        index = np.concatenate([batch["index"][:, 0] for batch in found])
        weight = np.concatenate([batch["weight"] for batch in found])
        assert index.tolist() == [*range(1, 11), 0, 0]
        assert weight.tolist() == [1] * 10 + [0] * 2


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


@pytest.mark.core
def test_a_corrupt_record_is_an_error_that_names_it():
    with pytest.raises(RecordError, match="record 7 is broken; repair it"):
        take(source(corrupt={7})(), 3)


@pytest.mark.core
@pytest.mark.fault("corrupt record")
def test_a_corrupt_record_within_budget_is_masked_and_moves_no_other(capsys):
    found = take(source(corrupt={2, 7}, skip_budget=2)(), 10)
    expected = take(source()(), 10)
    masked = 0
    for batch in expected:
        bad = np.isin(batch["index"][:, 0], [3, 8])
        masked += bad.sum()
        for value in batch.values():
            value[bad] = 0
    assert masked == 8  # 2 records in 4 epochs: more often than the budget, but the same two
    assert_equal(found, expected)
    assert capsys.readouterr().err.count("skipped: record 7 is broken") == 1


def test_more_corrupt_records_than_the_budget_are_an_error():
    with pytest.raises(InputError, match="more than skip_budget=1 corrupt records.*is broken"):
        take(source(corrupt={2, 7}, skip_budget=1)(), 3)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetch_keeps_order_and_ends_its_thread():
    assert list(prefetch(iter(range(50)), lambda x: x * 2)) == [x * 2 for x in range(50)]
    assert not threads()


def test_prefetch_runs_ahead_but_not_further_than_its_depth():
    made = []
    batches = prefetch(itertools.count(), made.append, depth=3)
    next(batches)
    time.sleep(0.2)
    assert len(made) == 4
    batches.close()
    assert not threads()


@pytest.mark.parametrize("place", ["iterator", "put"])
def test_prefetch_raises_where_the_error_was_made(place):
    def count():
        for number in itertools.count():
            if place == "iterator" and number == 3:
                raise KeyError("three")
            yield number

    def put(number):
        if place == "put" and number == 3:
            raise KeyError("three")
        return number

    found = []
    with pytest.raises(KeyError, match="three"):
        for number in prefetch(count(), put):
            found.append(number)
    assert found == [0, 1, 2]
    assert not threads()


def test_closing_prefetch_closes_what_it_reads():
    closed = []

    def count():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    read = count()  # held here, so that only an explicit close ends it
    batches = prefetch(read, lambda x: x)
    assert next(batches) == 0
    batches.close()
    assert closed and not threads()


def test_closing_prefetch_ends_the_worker_processes():
    batches = prefetch(source(workers=1)(), lambda x: x)
    next(batches)
    assert multiprocessing.active_children()
    batches.close()
    assert not multiprocessing.active_children() and not threads()


WRITER = """
import sys, time
from pathlib import Path
from research.data.source import cached
def write(folder):
    (folder / "a").write_text("half")
    print("half", flush=True)
    time.sleep(float(sys.argv[2]))
    (folder / "b").write_text("whole")
cached(Path(sys.argv[1]), write)
"""


def start(script, *arguments, **options):
    environment = dict(os.environ, PYTHONPATH=str(Path(research.__file__).parents[1]))
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **options)


def start_writer(folder, seconds):
    return start(WRITER, folder, seconds)


def test_a_killed_writer_leaves_no_half_written_cache(tmp_path):
    folder = tmp_path / "cache" / "tokens"
    process = start_writer(folder, 60)
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not folder.exists()
    cached(folder, lambda to: (to / "b").write_text("whole"))
    assert [file.name for file in folder.iterdir()] == ["b"]


def test_processes_that_write_one_cache_at_once_agree(tmp_path):
    folder = tmp_path / "tokens"
    processes = [start_writer(folder, 0.5) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(file.name for file in folder.iterdir()) == ["a", "b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokens"]


def test_a_failed_writer_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "a").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "tokens", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the cache .* set ANNEAL_CACHE"):
        cached(tmp_path / "file" / "tokens", lambda to: None)


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path):
    process = start_writer(tmp_path / "tokens", 60)
    assert process.stdout.readline() == "half\n"
    process.kill()
    process.wait()
    assert len(list(tmp_path.iterdir())) == 1
    cached(tmp_path / "other", lambda to: None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["other"]


def test_the_unfinished_cache_of_a_living_writer_is_left_alone(tmp_path):
    process = start_writer(tmp_path / "tokens", 2)
    assert process.stdout.readline() == "half\n"
    cached(tmp_path / "other", lambda to: None)
    (tmp_path / "mine.unfinished").mkdir()
    cached(tmp_path / "third", lambda to: None)
    assert process.wait() == 0
    assert sorted(file.name for file in (tmp_path / "tokens").iterdir()) == ["a", "b"]
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == ["mine.unfinished", "other", "third", "tokens"]


@pytest.mark.core
@pytest.mark.parametrize("repeat", [True, False])
def test_rows_are_the_examples_of_a_batch_in_its_order(repeat):
    def row(index, epoch, random):
        return {"index": np.int64(index)}

    spec = {"index": jax.ShapeDtypeStruct((4,), np.int64)}
    options = dict(spec=spec, batch=4, seed=3, shuffle=repeat, repeat=repeat)
    batches, rows = make_batches(row, 10, **options)
    count = 9 if repeat else 3
    found = [rows(step) for step in reversed(range(count))][::-1]
    expected = [batch["index"].tolist() for batch in take(batches(), count)]
    assert found == (expected if repeat else [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]])


def test_rows_name_the_documents_of_a_text_batch(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / "texts" / f"{number:02}.txt").write_text(f"{number:02}")
    data = dict(reader="files", path=str(tmp_path / "texts"), tokenizer="bytes", packing="none")
    source = text.make(**data, context=3, cache=str(tmp_path), split="train", seed=0, batch=8)
    documents = sorted(path.read_text() for path in (tmp_path / "texts").iterdir())
    documents = [name for name in documents if in_split(f"{name}.txt", "train")]
    batch = take(source.batches(), 6)[5]
    texts = [source.tokenizer.decode(row) for row in batch["targets"]]
    assert texts == [documents[row] for row in source.rows(5)]


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
    for step in range(4, 15):
        if step % 3 == 0:  # more often than one batch would be tried
            for process in multiprocessing.active_children():
                process.kill()
                process.join()
        found.append(next(batches))
    assert_equal(found, take(source()(3), 12))
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
