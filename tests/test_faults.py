"""Faults injected into whole runs: what is lost, what is said, and how the run goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from research import build, manifest
from research import config as config_lib
from research import workdir as workdir_lib
from research.__main__ import main
from research.arguments import InputError, RunError
from research.checkpoint import Checkpoints
from research.evaluate import evaluate
from research.manifest import DamagedError
from research.train import train


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "far", "away", "\n"]
    for number in range(60):
        (folder / f"{number}.txt").write_text(" ".join(rng.choice(words, 200)))
    return folder


def overrides(text, *more, steps=24):
    return [
        "config.data.name=tests.bad_data",
        f"config.data.path={text}",
        f"config.steps={steps}",
        "config.ema=0.9",
        "config.log.every=4",
        "config.eval.batch=64",
        "config.eval.every=None",
        "config.checkpoint.every=4",
        "config.checkpoint.keep=3",
        "config.log.tensorboard=False",
        *more,
    ]


def load(text, *more, **options):
    config = config_lib.load("configs/nlp/gpt.py:tiny")
    values = config.to_dict() | {"data": {"name": "tests.bad_data", "path": str(text)}}
    import ml_collections

    return config_lib.override(ml_collections.ConfigDict(values), overrides(text, *more, **options))


def numbers(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def leaves(folder, step):
    """The checksums of everything in a checkpoint."""
    return manifest.read(folder / "checkpoints" / str(step))["leaves"]


def flip(path, place=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1 << 3
    path.write_bytes(data)


def largest(folder):
    return max((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(load(text), str(folder))
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    """A finished run of steps 16, 20 and 24 that one may damage."""
    return shutil.copytree(whole, tmp_path / "run")


# Numbers.


def test_the_step_of_a_nan_batch_and_its_rows_are_named_and_one_update_is_lost(
    text, tmp_path, capsys
):
    train(load(text, "config.data.bad=(6,)"), str(tmp_path))
    out = capsys.readouterr().out
    rows = build.make_source(load(text), "train").rows(5)
    listed = ", ".join(map(str, rows))
    assert "step 6: update refused, loss nan" in out and f"rows {listed} of the training" in out
    assert "1 updates were refused" in out
    refused = [line["step"] for line in numbers(tmp_path) if line.get("refused")]
    assert refused == [6]


@pytest.mark.fault("NaN batches in a row")
def test_several_bad_batches_in_a_row_roll_back_and_are_skipped(
    text, tmp_path, capsys, record_property
):
    bad = ["config.data.bad=(10,11,12)", "config.guard.rollback_after=3"]
    folder = tmp_path / "run"
    train(load(text, *bad), str(folder))
    said = "3 updates in a row were refused (steps 10 to 12): going back to the state of step 8"
    assert said in capsys.readouterr().out
    record_property("observed", said)
    # A second source: the state of step 8, put at step 12 by hand, trained on.
    run = build.build(load(text, *bad))
    half = tmp_path / "half"
    train(load(text, *bad), str(half), stop_after=8)
    with Checkpoints(half / "checkpoints") as checkpoints:
        state = checkpoints.restore(8, run.abstract)._replace(step=np.int32(12))
    with jax.set_mesh(run.mesh):
        step = build.jit_train_step(run, donate=False)
        state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, run.abstract))
        batches = build.batches(run, run.source, 12)
        for _ in range(12):
            state, metrics = step(state, next(batches))
        batches.close()
    last = [line for line in numbers(folder) if line["step"] == 24][0]
    assert float(metrics["loss"]) == last["loss"]


@pytest.mark.parametrize(
    "cuts", [(12,), *(pytest.param(c, marks=pytest.mark.slow) for c in ((11,), (13,), (8, 10, 16)))]
)
def test_a_run_cut_around_a_rollback_is_bitwise_equal(text, tmp_path, cuts):
    bad = ["config.data.bad=(10,11,12)", "config.guard.rollback_after=3"]
    train(load(text, *bad), str(tmp_path / "a"))
    for cut in cuts:
        train(load(text, *bad), str(tmp_path / "b"), stop_after=cut)
    train(load(text, *bad), str(tmp_path / "b"))
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")
    assert leaves(tmp_path / "a", 24) == leaves(tmp_path / "b", 24)


def test_when_nothing_helps_after_a_rollback_the_run_ends_with_an_error(text, tmp_path):
    bad = [f"config.data.bad={tuple(range(10, 25))}", "config.guard.rollback_after=3"]
    with pytest.raises(RunError, match="after a rollback too"):
        train(load(text, *bad), str(tmp_path))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.newest() is not None  # and what there is, is sound


# Damage.


@pytest.mark.core
@pytest.mark.fault("damaged newest")
def test_a_damaged_newest_step_is_set_aside_and_the_one_before_is_used(
    text, whole, copied, capfd, record_property
):
    flip(largest(copied / "checkpoints" / "24"))
    assert main(["evaluate", f"--workdir={copied}"]) == 0  # a reader passes over it
    captured = capfd.readouterr()
    assert json.loads(captured.out)["step"] == 20 and "it is passed over" in captured.err
    assert train(load(text), str(copied)).step == 24
    said = capfd.readouterr()
    assert "is not as it was written (its digest differs); it is set aside" in said.err
    assert "going on after step 20 of 24" in said.out
    names = {path.name for path in (copied / "checkpoints").iterdir()}
    assert names == {"16", "20", "24", "24.damaged"}
    assert leaves(copied, 24) == leaves(whole, 24) and numbers(copied) == numbers(whole)
    record_property("observed", "24 renamed 24.damaged, went on from 20, equal to the bit, exit 0")


@pytest.mark.fault("all damaged")
def test_when_all_steps_are_damaged_they_are_listed_and_nothing_starts_afresh(
    text, copied, capsys, record_property
):
    for step in (16, 20, 24):
        flip(largest(copied / "checkpoints" / str(step)))
    for _ in range(2):  # the second time they are all set aside already
        with pytest.raises(DamagedError, match="no sound checkpoint is left") as error:
            train(load(text), str(copied))
        assert all(f"/{step}" in str(error.value) for step in (16, 20, 24))
        assert error.value.code == 1
    with pytest.raises(DamagedError):
        evaluate(str(copied))
    record_property("observed", "exit 1 with a list of the three; the same on the next start")


def test_damage_that_the_digests_of_files_cannot_see_is_found_by_the_arrays(text, copied, capfd):
    """Numbers that changed on their way to the disk: digests are of what was written."""
    shutil.rmtree(copied / "checkpoints" / "24")
    step = copied / "checkpoints" / "20"
    content = manifest.read(step)
    content["leaves"]["params/embed"][1] = "0123456789abcdef"
    manifest.write(step, content)
    assert train(load(text), str(copied)).step == 24
    assert "params/embed not as saved (checksums differ); it is set aside" in capfd.readouterr().err


@pytest.mark.fault("damaged metadata")
@pytest.mark.parametrize("harm", ["flip", "truncate", "delete", "zero"])
def test_damage_to_any_file_is_named(copied, harm, record_property):
    step = copied / "checkpoints" / "24"
    kept = shutil.copytree(step, copied / "kept")
    found = 0
    for name in [n for n in manifest.names(step) if n not in manifest.LATER]:
        shutil.rmtree(step)
        shutil.copytree(kept, step)
        path = step / name
        if harm == "flip":
            flip(path)
        elif harm == "truncate":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif harm == "zero":
            path.write_bytes(bytes(path.stat().st_size))
        else:
            path.unlink()
        with Checkpoints(copied / "checkpoints") as checkpoints:
            with pytest.raises(DamagedError) as error:
                checkpoints.notes(24)
        assert name in str(error.value)
        found += 1
    record_property("observed", f"{harm}: {found} of {found} files, each named")


@pytest.mark.fault("flipped bit")
def test_no_flipped_bit_is_restored_silently(copied, record_property):
    """The quick half of experiments/faults/flips.py."""
    run = build.build(workdir_lib.read_config(copied), with_data=False)
    step, rng = copied / "checkpoints" / "24", np.random.default_rng(0)
    kept = shutil.copytree(step, copied / "kept")
    for name in manifest.names(step):
        for _ in range(2):
            shutil.rmtree(step)
            shutil.copytree(kept, step)
            flip(step / name, int(rng.integers((step / name).stat().st_size)))
            with Checkpoints(copied / "checkpoints") as checkpoints:
                try:
                    checkpoints.restore(24, run.abstract)  # benign: holds the checksums
                    assert name in manifest.LATER
                except DamagedError as error:
                    assert name in str(error) or name in manifest.LATER
    log = "experiments/faults/results/flips.jsonl"
    summary = json.loads(open(log).read().splitlines()[-1])["summary"]["all checks"]
    flips = {key.split(": ")[1]: n for key, n in summary.items() if key.startswith("flips")}
    record_property("observed", f"of {sum(flips.values())} flips: {flips}")
    assert "SILENTLY WRONG" not in str(summary)


@pytest.mark.fault("foreign entry")
def test_foreign_entries_among_the_checkpoints_are_passed_over_with_a_word(
    text, copied, capfd, record_property
):
    (copied / "checkpoints" / "99").mkdir()
    (copied / "checkpoints" / "notes").mkdir()
    (copied / "checkpoints" / "readme.txt").write_text("mine")
    assert evaluate(str(copied))["step"] == 24
    err = capfd.readouterr().err
    assert "99, notes, readme.txt in" in err and "are not checkpoints" in err
    record_property("observed", "passed over with a warning that names them; step 24 used")


# Another run's state.


@pytest.mark.fault("config drift")
@pytest.mark.parametrize(
    ("override", "diff"),
    [
        ("config.optim.lr.peak=0.01", "optim.lr.peak: 0.001 -> 0.01"),
        ("config.batch=16", "batch: 8 -> 16"),
        ("config.seed=1", "seed: 0 -> 1"),
        ("config.model.width=64", "model.width: 32 -> 64"),
    ],
)
def test_another_config_is_refused_with_a_diff(text, whole, override, diff, record_property):
    with pytest.raises(InputError, match=diff.replace(".", r"\.")) as error:
        train(load(text, override), str(whole))
    assert "--allow-drift=KEY" in str(error.value)
    record_property("observed", f"exit 2: {diff}")


@pytest.mark.fault("S7 checkpoint of another model")
def test_checkpoints_of_another_run_in_this_workdir_are_refused(
    text, whole, copied, tmp_path, record_property
):
    """config.json is this run's, and every shape fits: only the manifest knows."""
    other = tmp_path / "other"
    train(
        load(text, "config.model.mlp=swiglu", "config.model.mlp_width=128", "config.seed=3"),
        str(other),
    )
    shutil.rmtree(copied / "checkpoints")
    shutil.copytree(other / "checkpoints", copied / "checkpoints")
    with pytest.raises(InputError, match="seed: 3 -> 0"):
        train(load(text), str(copied))
    with pytest.raises(InputError, match="was not trained with .*model.mlp"):
        evaluate(str(copied))
    record_property("observed", "exit 2 with the diff of both configs")


def test_another_tokenizer_beside_the_checkpoints_is_refused(copied):
    path = copied / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    other = {"kind": "characters"} if tokenizer["kind"] == "bytes" else {"kind": "bytes"}
    path.write_text(json.dumps(tokenizer | other | {"characters": list("abc")}))
    with pytest.raises(InputError):
        evaluate(str(copied))


# Kills and signals.


def start(text, workdir, *more, **options):
    args = ["--" + text for text in overrides(text, *more)]
    code = (
        "import sys, ml_collections; from research import config, train; from pathlib import Path\n"
        "base = config.load('configs/nlp/gpt.py:tiny').to_dict()\n"
        "base['data'] = dict(name='tests.bad_data', path=sys.argv[2])\n"
        "made = config.override(ml_collections.ConfigDict(base), sys.argv[3:])\n"
        "r = train.train(made, sys.argv[1]); sys.exit(75 if r.preempted else 0)\n"
    )
    command = [sys.executable, "-c", code, str(workdir), str(text), *args]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def until(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.stdout.read()
        time.sleep(0.002)


def committed(folder):
    steps = [int(p.parent.name) for p in folder.glob("checkpoints/[0-9]*/manifest.json")
             if p.parent.name.isdecimal()]  # fmt: skip
    return max(steps, default=0)


@pytest.mark.slow
@pytest.mark.fault("kill -9 in saves, deletions and the first step")
def test_a_killed_run_ends_as_the_one_that_was_never_cut(text, tmp_path, record_property):
    """The quick half of experiments/faults/kills.py."""
    a, b = tmp_path / "a", tmp_path / "b"
    process = start(text, a)
    assert process.wait(120) == 0, process.stdout.read()
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
    assert process.wait(120) == 0, process.stdout.read()
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
    assert process.wait(60) == 75
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
        assert process.wait(60) == 75
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


@pytest.mark.fault("kill in a restore")
def test_a_restore_changes_no_byte_on_disk(copied, record_property):
    """So it does not matter when it is killed."""

    def bytes_of(folder):
        return {p: (p.read_bytes(), p.stat().st_mtime) for p in folder.rglob("*") if p.is_file()}

    before = bytes_of(copied)
    run = build.build(workdir_lib.read_config(copied), with_data=False)
    with Checkpoints(copied / "checkpoints", keep=1) as checkpoints:
        checkpoints.restore(checkpoints.newest(set_aside=True), run.abstract)
    assert bytes_of(copied) == before
    record_property("observed", f"{len(before)} files unchanged")


# What a failure must not be mistaken for, or lead to.


def test_a_device_or_disk_that_fails_at_a_restore_condemns_no_checkpoint(text, copied, monkeypatch):
    from research import checkpoint as checkpoint_lib
    from research.storage import StoreError

    real = checkpoint_lib.ocp.AsyncCheckpointer.restore

    def no_room(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    def no_answer(*_, **__):
        raise OSError("[Errno 5] Input/output error")

    shutil.rmtree(copied / "checkpoints" / "24")
    for fails, kind in ((no_room, RunError), (no_answer, StoreError)):
        monkeypatch.setattr(checkpoint_lib.ocp.AsyncCheckpointer, "restore", fails)
        with pytest.raises(kind):
            train(load(text), str(copied))
    monkeypatch.setattr(checkpoint_lib.ocp.AsyncCheckpointer, "restore", real)
    assert {p.name for p in (copied / "checkpoints").iterdir()} == {"16", "20"}
    assert train(load(text), str(copied)).step == 24


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
            process.wait(120)
        else:
            process.communicate(timeout=120)
        assert process.returncode == 0
        steps = [n["step"] for n in numbers(disk / "run") if n["split"] == "train"]
        assert steps == list(range(1, 1001))  # no line lost, none twice
        assert committed(disk / "run") == 1000
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.fault("kill in a deletion")
def test_a_finished_run_that_was_killed_while_it_tidied_up_is_tidied_by_the_next_start(
    text, copied
):
    remains = copied / "checkpoints" / "12.deleted"
    shutil.copytree(copied / "checkpoints" / "20", remains)
    assert train(load(text), str(copied)).step == 24  # nothing to do
    assert not remains.exists()


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


@pytest.mark.slow
def test_a_streak_that_a_checkpoint_holds_does_not_outlive_a_rollback(text, tmp_path):
    bad = ["config.data.bad=(7,8,10,11,12,13)", "config.guard.rollback_after=3",
           "config.checkpoint.every=2", "config.checkpoint.keep=9"]  # fmt: skip
    assert train(load(text, *bad), str(tmp_path)).step == 24


@pytest.mark.slow
def test_a_preemption_before_a_rollback_changes_nothing(text, tmp_path):
    """With the default of two kept, what the signal saved must not crowd out what the uncut run
    goes back to."""
    bad = [
        "config.data.bad=(13,14,15)",
        "config.guard.rollback_after=3",
        "config.checkpoint.keep=2",
    ]
    train(load(text, *bad), str(tmp_path / "a"))
    for cut in (9, 10):
        train(load(text, *bad), str(tmp_path / "b"), stop_after=cut)
    train(load(text, *bad), str(tmp_path / "b"))
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")
    assert leaves(tmp_path / "a", 24) == leaves(tmp_path / "b", 24)


def test_damaged_metrics_are_left_out_and_named(text, whole, copied, capfd):
    shutil.rmtree(copied / "checkpoints" / "24")
    path = copied / "metrics.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(rows[0] + b'{"step": 4, "lo\x00ss": 3}x\n' + b"".join(rows[2:]))
    assert train(load(text), str(copied)).step == 24
    assert "metrics.jsonl:2 is damaged and left out" in capfd.readouterr().err
    assert [n for n in numbers(whole) if n["step"] != 4] == numbers(copied)
