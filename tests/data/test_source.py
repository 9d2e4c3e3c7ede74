"""Batches are a pure function of (seed, step); nobody is left behind when something breaks."""

import itertools
import multiprocessing
import os
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
from research.arguments import InputError
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
    return make_batches(row, num_rows, **options)


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
    plain, workers = (source(corrupt={2}, skip_budget=1, workers=count) for count in (0, 2))
    assert_equal(take(workers(3), 9), take(plain(3), 9))


def test_a_corrupt_record_in_a_worker_is_named_in_its_place():
    batches = source(corrupt={5}, repeat=False, workers=1)()
    assert next(batches)["index"][:, 0].tolist() == [1, 2, 3, 4]
    with pytest.raises(RecordError, match="record 5 is broken"):
        next(batches)


def test_an_error_in_a_worker_reaches_the_caller():
    def row(index, epoch, random):
        raise ZeroDivisionError("a fault of the program")

    options = dict(spec=SPEC, batch=4, seed=0, shuffle=False, repeat=True, workers=1)
    with pytest.raises(Exception, match="a fault of the program"):
        next(make_batches(row, 10, **options)())


@pytest.mark.core
def test_a_corrupt_record_is_an_error_that_names_it():
    with pytest.raises(RecordError, match="record 7 is broken; repair it"):
        take(source(corrupt={7})(), 3)


@pytest.mark.core
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


def start_writer(folder, seconds):
    environment = dict(os.environ, PYTHONPATH=str(Path(research.__file__).parents[1]))
    command = [sys.executable, "-c", WRITER, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


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
