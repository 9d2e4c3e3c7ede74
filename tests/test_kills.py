"""Kills, signals, hangs, and storage that fails: how a run ends, and how the next one goes on."""

import json
import os
import signal
import subprocess
import time

import pytest

from research import build
from research.__main__ import main
from research.arguments import RunError
from research.checkpoint import Checkpoints
from research.train import train
from tests.faulty_runs import committed, leaves, load, numbers, start, until


@pytest.mark.slow
@pytest.mark.fault("kill -9 in saves, deletions and the first step")
def test_a_killed_run_ends_as_the_one_that_was_never_cut(text, tmp_path, record_property):
    """The quick half of experiments/faults/kills.py."""
    a, b = tmp_path / "a", tmp_path / "b"
    process = start(text, a)
    assert process.wait(300) == 0, process.stdout.read()
    lost = []
    for kill in range(3):
        process = start(text, b)
        if kill:  # at a change in the checkpoints: a save begins, is committed, or an old one goes
            before = (b / "checkpoints").stat().st_mtime if (b / "checkpoints").exists() else 0
            until(lambda: (b / "checkpoints").exists()
                  and (b / "checkpoints").stat().st_mtime != before, process)  # noqa: B023  # fmt: skip
        else:  # before there is any checkpoint
            until(lambda: (b / "metrics.jsonl").exists(), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = [line["step"] for line in numbers(b)] if (b / "metrics.jsonl").exists() else []
        lost.append(max(done, default=0) - committed(b))
    process = start(text, b)
    assert process.wait(300) == 0, process.stdout.read()
    assert numbers(a) == numbers(b) and leaves(a, 24) == leaves(b, 24)
    names = [{p.name for at in ("*", "checkpoints/*") for p in f.glob(at)} for f in (a, b)]
    assert names[0] == names[1] and "lock" not in names[0]
    log = "experiments/faults/results/kills.jsonl"
    summary = json.loads(open(log).read().splitlines()[-1])
    record_property(
        "observed",
        f"{summary['kills']} kills: {summary['runs_equal_to_the_bit']} of {summary['runs']} runs "
        f"equal to the bit, at most {summary['most_steps_lost']} steps of an interval of "
        f"{summary['interval']} lost, no leftovers",
    )
    assert summary["runs_equal_to_the_bit"] == summary["runs"]


@pytest.mark.slow
@pytest.mark.fault("SIGTERM on one host")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_under_way_and_exits_with_75(
    text, tmp_path, number, record_property
):
    process = start(text, tmp_path, "config.checkpoint.every=None", "config.log.every=1",
                    "config.steps=4000")  # fmt: skip
    until(lambda: (tmp_path / "metrics.jsonl").exists() and len(numbers(tmp_path)) > 3, process)
    process.send_signal(number)
    assert process.wait(180) == 75
    last = numbers(tmp_path)[-1]["step"]
    assert committed(tmp_path) == last and not (tmp_path / "lock").exists()
    record_property("observed", f"{number.name}: saved at step {last}, the last one made; exit 75")


@pytest.mark.slow
@pytest.mark.fault("second signal")
def test_a_second_signal_ends_at_once(text, tmp_path, record_property):
    process = start(text, tmp_path, "config.data.slow=(3,)", "config.log.every=1")
    until(lambda: (tmp_path / "metrics.jsonl").exists() and numbers(tmp_path), process)
    process.send_signal(signal.SIGTERM)  # it waits for a batch that never comes
    time.sleep(1)
    assert process.poll() is None
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    record_property("observed", f"ended {time.monotonic() - begin:.1f} s after the second SIGTERM")


@pytest.mark.slow
@pytest.mark.fault("signal during a save")
def test_a_signal_during_a_save_leaves_it_committed_or_absent(text, tmp_path, record_property):
    outcomes = []
    for number in (signal.SIGTERM, signal.SIGINT):
        folder = tmp_path / number.name
        process = start(text, folder, "config.steps=4000", "config.checkpoint.every=5")
        until(lambda: list(folder.glob("checkpoints/*tmp")), process)  # noqa: B023
        process.send_signal(number)
        assert process.wait(180) == 75
        with Checkpoints(folder / "checkpoints") as checkpoints:
            for step in checkpoints.steps():
                checkpoints.check_arrays(step)
            outcomes.append(checkpoints.steps())
        assert not list(folder.glob("checkpoints/*tmp"))
    record_property("observed", f"exit 75, all steps sound, nothing half-written: {outcomes}")


@pytest.mark.slow
@pytest.mark.fault("hanging loader")
def test_a_batch_that_never_comes_ends_the_run_with_stacks(text, tmp_path, record_property):
    process = start(text, tmp_path, "config.data.slow=(9,)", "config.guard.hang_after=15.0")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 70, out
    assert "no step for" in out and "bad_data.py" in out  # where it hangs
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.newest() == 8
    record_property("observed", "exit 70, all stacks (the loader's too); step 8 is there, sound")


@pytest.mark.fault("two writers")
def test_a_second_run_in_the_same_workdir_is_exit_3(text, tmp_path, capsys, record_property):
    process = start(text, tmp_path / "run", "config.data.slow=(3,)")
    until(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), process)
    begin = time.monotonic()
    config = ["--config=configs/nlp/gpt.py:tiny", f"--workdir={tmp_path}/run"]
    reader = ["--config.data.reader=files", f"--config.data.path={text}"]
    assert main(["train", *config, *reader]) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"host {os.uname().nodename}, pid {process.pid}" in said
    record_property("observed", f"exit 3 in {time.monotonic() - begin:.1f} s, naming host and pid")
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_kill_while_files_are_written_leaves_nothing_that_stops_the_next_run(
    text, whole, tmp_path
):
    """config.json.tmp, a half line of metrics, an abandoned save: as a kill leaves them."""
    folder = tmp_path / "run"
    train(load(text), str(folder), stop_after=8)
    (folder / "config.json.tmp").write_text("{")
    (folder / "metrics.jsonl.new").write_text("")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')
    (folder / "checkpoints" / "12.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (folder / "checkpoints" / "4.deleted").mkdir()
    train(load(text), str(folder))
    assert numbers(folder) == numbers(whole)
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in whole.iterdir()}
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"16", "20", "24"}


@pytest.mark.fault("read-only")
def test_a_workdir_that_loses_its_permission_costs_no_training(
    text, tmp_path, monkeypatch, capsys, record_property
):
    """As root no permission is ever lost, so the writes are made to fail."""
    from research import saver as saver_lib
    from research import train as train_lib

    monkeypatch.setattr(saver_lib, "RETRY", 0.0)
    real, fails = Checkpoints.save, iter([True, True, False])

    def save(self, step, *arguments):
        if next(fails, False):
            raise OSError(f"[Errno 30] Read-only file system: {step}")
        return real(self, step, *arguments)

    monkeypatch.setattr(Checkpoints, "save", save)
    assert train_lib.train(load(text), str(tmp_path)).step == 24
    out = capsys.readouterr().out
    assert out.count("Read-only file system: ") == 2 and "training goes on and tries again" in out
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-2])
    assert last["time/saves_failed"] == 2
    record_property("observed", "2 failed saves said and counted, the next one made, exit 0")


@pytest.mark.fault("out of memory")
def test_an_exhausted_device_is_one_line_with_what_to_try(text, tmp_path, monkeypatch):
    import jax.numpy as jnp

    def jit(run, donate):
        return lambda state, batch: jnp.zeros((1 << 44,)).block_until_ready()

    monkeypatch.setattr(build, "jit_train_step", jit)
    with pytest.raises(RunError, match="out of device memory .*--config.batch=4.*micro_batches=2"):
        train(load(text), str(tmp_path))


@pytest.mark.fault("clock jump")
def test_a_jump_of_the_wall_clock_changes_nothing(
    text, whole, tmp_path, monkeypatch, record_property
):
    """Once, by a day, in the middle. orbax counts its deadlines by that clock: a save under way
    fails, and is made again."""
    from research import saver as saver_lib

    monkeypatch.setattr(saver_lib, "RETRY", 0.0)
    real, calls = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + 86_400 * (next(calls) > 60))
    train(load(text, "config.guard.hang_after=60.0"), str(tmp_path))
    assert next(calls) > 100
    assert numbers(tmp_path) == numbers(whole) and leaves(tmp_path, 24) == leaves(whole, 24)
    record_property("observed", "a day ahead in the middle of a run: equal to the bit, no alarm")


@pytest.mark.slow
@pytest.mark.parametrize("log", ["read", "to a closed pipe"])
def test_neither_tensorboard_nor_stdout_on_a_full_disk_ends_a_training(text, tmp_path, log):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        process = start(text, disk / "run", "config.log.tensorboard=True", "config.log.every=1",
                        "config.steps=1000", "config.checkpoint.every=500")  # fmt: skip
        until(lambda: (disk / "run" / "tokenizer.json").exists(), process)
        with open(disk / "filler", "wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:
                pass
        if log == "to a closed pipe":
            process.stdout.close()
        time.sleep(3)
        (disk / "filler").unlink()
        if log == "to a closed pipe":
            process.wait(300)
        else:
            process.communicate(timeout=120)
        assert process.returncode == 0
        steps = [n["step"] for n in numbers(disk / "run") if n["split"] == "train"]
        assert steps == list(range(1, 1001))  # no line lost, none twice
        assert committed(disk / "run") == 1000
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.fault("disk full")
def test_a_run_that_cannot_write_its_config_ends_before_the_first_step(
    text, tmp_path, monkeypatch, record_property
):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("research.config.to_json", fails)
    with pytest.raises(RunError, match="config.json cannot be written") as caught:
        train(load(text), str(tmp_path))
    assert caught.value.code == 74 and not numbers(tmp_path)
    record_property("observed", "at the start: one line, exit 74")
