"""Numbers that are not finite: what is lost, when a run goes back, that a cut changes nothing."""

import jax
import numpy as np
import pytest

from research import build
from research.arguments import RunError
from research.checkpoint import Checkpoints
from research.train import train
from tests.faulty_runs import leaves, load, numbers


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
