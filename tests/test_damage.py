"""Damaged and foreign checkpoints: what is found, named, set aside or refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from research import build, manifest
from research import workdir as workdir_lib
from research.__main__ import main
from research.arguments import InputError, RunError
from research.checkpoint import Checkpoints
from research.evaluate import evaluate
from research.manifest import DamagedError
from research.train import train
from tests.faulty_runs import leaves, load, numbers


def flip(path, place=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1 << 3
    path.write_bytes(data)


def largest(folder):
    return max((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.fixture
def copied(whole, tmp_path):
    """A finished run of steps 16, 20 and 24 that one may damage."""
    return shutil.copytree(whole, tmp_path / "run")


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


@pytest.mark.fault("kill in a deletion")
def test_a_finished_run_that_was_killed_while_it_tidied_up_is_tidied_by_the_next_start(
    text, copied
):
    remains = copied / "checkpoints" / "12.deleted"
    shutil.copytree(copied / "checkpoints" / "20", remains)
    assert train(load(text), str(copied)).step == 24  # nothing to do
    assert not remains.exists()


def test_damaged_metrics_are_left_out_and_named(text, whole, copied, capfd):
    shutil.rmtree(copied / "checkpoints" / "24")
    path = copied / "metrics.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(rows[0] + b'{"step": 4, "lo\x00ss": 3}x\n' + b"".join(rows[2:]))
    assert train(load(text), str(copied)).step == 24
    assert "metrics.jsonl:2 is damaged and left out" in capfd.readouterr().err
    assert [n for n in numbers(whole) if n["step"] != 4] == numbers(copied)
