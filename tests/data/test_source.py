"""Batches are a pure function of (seed, step); nobody is left behind when something breaks."""

import itertools
import multiprocessing
import signal
import threading
import time

import jax
import numpy as np
import pytest

from research.arguments import InputError
from research.data import text
from research.data.readers import in_split
from research.data.source import RecordError, cached, make_batches, prefetch
from tests.data.batches import SPEC, assert_equal, source, start, take


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
