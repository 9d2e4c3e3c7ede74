"""Storage that fails: training goes on, tries again, and at last gives up with a code."""

import os
import subprocess
import sys
from concurrent.futures import Future

import jax.numpy as jnp
import pytest

from research import saver as saver_lib
from research.checkpoint import Checkpoints, NonFiniteError
from research.saver import Saver, StorageError


class Store:
    """Checkpoints whose saves fail or take long, as told."""

    def __init__(self):
        self.saved, self.fails, self.slow = [], 0, False
        self.result = None

    def save(self, step, *_):
        self.step, self.result = step, Future()
        if self.fails:
            self.fails -= 1
            self.result.set_exception(OSError("No space left on device"))
        elif not self.slow:
            self.result.set_result(None)

    def is_saving(self):
        return self.result is not None and not self.result.done()

    def wait(self):
        if self.result is None:
            return
        if not self.result.done():
            self.result.set_result(None)
        result, self.result = self.result, None
        result.result()
        self.saved.append(self.step)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(saver_lib, "time", clock)
    return clock


def drive(saver, clock, steps, seconds=1.0):
    for step in steps:
        clock.now += seconds
        if saver.wants(step):
            saver.save(step, None, {}, {})


@pytest.mark.fault("transient storage error")
def test_a_failed_save_is_tried_again_later_and_training_goes_on(clock, capsys, record_property):
    store = Store()
    saver, store.fails = Saver(store, every=100), 2
    drive(saver, clock, range(1, 200))
    saver._collect()
    # Step 100 fails, 10 s later 111 does, 20 s later 132 does not.
    assert store.saved == [132] or store.saved == [131] or store.saved == [133], store.saved
    assert saver.failed == 2 and saver.counts() == {"time/saves_failed": 2}
    out = capsys.readouterr().out
    assert out.count("No space left on device; training goes on and tries again") == 2
    record_property("observed", f"2 failures said and retried, step {store.saved[0]} saved")


def test_three_intervals_without_a_checkpoint_end_the_run_with_its_own_code(clock):
    store = Store()
    saver, store.fails = Saver(store, every=100), 10**6
    with pytest.raises(StorageError, match="3 intervals passed .*No space left") as error:
        drive(saver, clock, range(1, 10_000))
    assert error.value.code == 74
    store.fails = 0


def test_a_success_forgets_the_misses(clock):
    store = Store()
    saver = Saver(store, every=10)
    for block in range(6):
        store.fails = 2  # the first interval of 30 s has no checkpoint
        drive(saver, clock, range(30 * block + 1, 30 * block + 31), seconds=3.0)
    assert saver.failed == 12 and len(store.saved) >= 6


@pytest.mark.fault("slow storage")
def test_a_save_slower_than_its_interval_is_waited_for_said_and_counted(
    clock, capsys, record_property
):
    store = Store()
    saver, store.slow = Saver(store, every=10), True
    drive(saver, clock, range(1, 41))
    assert store.saved == [10, 20, 30] and saver.counts() == {"time/saves_late": 3}
    out = capsys.readouterr().out
    assert "step 20: the save before is still being written; save more rarely" in out
    record_property("observed", "waited for, said, counted in time/saves_late; nothing queues")


def test_the_last_save_is_tried_three_times_and_then_is_an_error(clock):
    store = Store()
    saver, store.fails = Saver(store, every=None), 2
    saver.finish(7, None, {}, {})
    assert store.saved == [7]
    store.fails = 3
    with pytest.raises(StorageError, match="the last checkpoint could not be written"):
        saver.finish(9, None, {}, {})


def test_weights_that_are_not_finite_are_never_committed(tmp_path, capsys):
    with Checkpoints(tmp_path) as checkpoints:
        saver = Saver(checkpoints, every=1)
        bad = {
            "params": {"w": jnp.array([1.0, jnp.nan])},
            "opt_state": {"best": jnp.array(jnp.inf)},
        }
        assert saver.wants(1)
        saver.save(1, bad, {}, {})
        assert "step 1 is not saved: params/w is not finite" in capsys.readouterr().out
        saver = Saver(checkpoints, every=1)
        with pytest.raises(NonFiniteError, match="params/w"):
            saver.finish(2, bad, {}, {})
        bad["params"]["w"] = jnp.ones(2)  # an infinity in the optimizer may be meant
        saver.finish(3, bad, {}, {})
        assert checkpoints.steps() == [3]


def test_weights_that_stay_non_finite_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(saver_lib, "RETRY", 0.0)
    with Checkpoints(tmp_path) as checkpoints:
        saver = Saver(checkpoints, every=1)
        with pytest.raises(StorageError, match="intervals passed .* params/w is not finite"):
            for step in range(1, 9):
                if saver.wants(step):
                    saver.save(step, {"params": {"w": jnp.array([jnp.nan])}}, {}, {})
        assert saver.counts()["time/saves_failed"] >= 3


def test_an_old_step_that_cannot_be_deleted_costs_no_save(tmp_path, monkeypatch, capsys):
    state = {"params": {"w": jnp.ones(3)}}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()

        def refuse(*_, **__):
            raise OSError("Device or resource busy")

        monkeypatch.setattr(type(checkpoints.folder), "rename", refuse)
        monkeypatch.setattr(type(checkpoints.folder), "rmtree", refuse)
        checkpoints._prune()  # nothing to do yet
        checkpoints.keep = 1
        monkeypatch.undo()
        checkpoints.save(2, state)
        checkpoints._saving.result()  # committed
        monkeypatch.setattr(type(checkpoints.folder), "rename", refuse)
        checkpoints.wait()
        monkeypatch.undo()
        checkpoints.save(3, state)
        checkpoints.wait()
        assert checkpoints.steps() == [3]
    assert "cannot be deleted: Device or resource busy" in capsys.readouterr().err


def test_a_foreign_folder_of_the_name_of_a_step_is_set_aside(tmp_path):
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "mine.txt").write_text("x")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, {"params": {"w": jnp.ones(3)}})
        checkpoints.wait()
        assert checkpoints.newest() == 3
    assert (tmp_path / "3.damaged" / "mine.txt").read_text() == "x"


FULL = """
import os, sys, time, jax.numpy as jnp
from research import saver as saver_lib
from research.checkpoint import Checkpoints
from research.saver import Saver
saver_lib.RETRY = 0.05
folder, state = sys.argv[1], lambda step: {"params": {"w": jnp.full((1 << 20,), step, jnp.float32)}}
with Checkpoints(folder + "/checkpoints", keep=2) as checkpoints:
    saver = Saver(checkpoints, every=2)
    for step in range(1, 60):
        time.sleep(0.05)
        if step == 6:
            filler = open(folder + "/filler", "wb")
            try:
                while True:
                    filler.write(os.urandom(1 << 16)); filler.flush()
            except OSError:
                pass
        if step == 9 and sys.argv[2] == "freed":
            filler.close(); os.unlink(folder + "/filler")
        if saver.wants(step):
            saver.save(step, state(step), {}, {})
    saver.finish(60, state(60), {}, {})
    print("steps", checkpoints.steps(), "failed", saver.failed)
"""


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.fault("disk full")
@pytest.mark.parametrize("then", ["freed", "stays full"])
def test_a_full_disk_costs_no_old_checkpoint_and_leaves_no_remains(
    small_disk, then, record_property
):
    command = [sys.executable, "-c", FULL, str(small_disk), then.split()[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "training goes on and tries again" in done.stdout, done.stdout + done.stderr
    left = sorted(path.name for path in (small_disk / "checkpoints").iterdir())
    if then == "freed":
        assert done.returncode == 0, done.stderr
        assert "steps [58, 60]" in done.stdout and left == ["58", "60"]
    else:
        assert "StorageError" in done.stderr and "intervals passed" in done.stderr
        assert all(name.isdecimal() for name in left) and left
        (small_disk / "filler").unlink()
    with Checkpoints(small_disk / "checkpoints") as reader:
        for step in reader.steps():
            reader.check_arrays(step)
    record_property("observed", f"{then}: {done.stdout.splitlines()[-1][:90]}; left {left}")
