"""Whole runs: resume to the last bit, preemption, foreign workdirs, and what is written."""

import json
import os
import signal
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from research import config as config_lib
from research import lock as lock_lib
from research import workdir as workdir_lib
from research.arguments import InputError, RunError
from research.evaluate import evaluate
from research.generate import generate
from research.train import train


def load(text, *overrides, steps=12):
    return config_lib.load(
        "configs/nlp/gpt.py:tiny",
        [
            "config.data.reader=files",
            f"config.data.path={text}",
            "config.data.tokenizer=bytes",
            f"config.steps={steps}",
            "config.model.dropout=0.1",
            "config.ema=0.9",
            "config.log.every=2",
            "config.eval.every=6",
            "config.eval.batch=64",
            "config.checkpoint.every=4",
            "config.checkpoint.keep=9",
            "config.log.tensorboard=False",
            *overrides,
        ],
    )


def lines(folder):
    """metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in found]


def final_state(config, folder):
    from research import build
    from research.checkpoint import Checkpoints

    run = build.build(workdir_lib.read_config(folder), with_data=False)
    checkpoints = Checkpoints(f"{folder}/checkpoints")
    return jax.device_get(checkpoints.restore(checkpoints.latest(), run.abstract))


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    result = train(load(text), str(folder))
    assert result.step == 12 and not result.preempted
    return folder


@pytest.mark.core
@pytest.mark.parametrize("cuts", [(5,), (4, 7, 11)], ids=str)
def test_resume_is_bitwise_equal(cuts, text, whole, tmp_path):
    config = load(text)
    for cut in cuts:
        assert train(config, str(tmp_path), stop_after=cut).step == cut
    train(config, str(tmp_path))
    assert lines(tmp_path) == lines(whole)
    a, b = final_state(config, tmp_path), final_state(config, whole)
    assert int(a.step) == 12
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
@pytest.mark.fault("other number of workers")
def test_resume_with_other_loader_workers_is_bitwise_equal(text, whole, tmp_path):
    train(load(text, "config.data.workers=2"), str(tmp_path), stop_after=5)
    train(load(text, "config.data.workers=0"), str(tmp_path), stop_after=9)
    train(load(text, "config.data.workers=2"), str(tmp_path))
    assert lines(tmp_path) == lines(whole)
    a, b = final_state(load(text), tmp_path), final_state(load(text), whole)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_resume_on_another_mesh_goes_on_with_the_same_losses(text, whole, tmp_path):
    train(load(text), str(tmp_path), stop_after=6)
    train(load(text, "config.mesh.fsdp=2", "config.mesh.tensor=2"), str(tmp_path))
    for ours, theirs in zip(lines(tmp_path), lines(whole), strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], atol=1e-4)


def test_a_signal_saves_and_the_run_goes_on(text, whole, tmp_path):
    config = load(text)

    # The lock appears when the run starts: signal it soon after.
    def send():
        while not (tmp_path / "metrics.jsonl").exists():
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    result = train(config, str(tmp_path))
    thread.join()
    assert result.preempted and 0 < result.step < 12
    train(config, str(tmp_path))
    assert lines(tmp_path) == lines(whole)


def test_a_finished_workdir_says_so(text, whole, capsys):
    before = (whole / "metrics.jsonl").read_bytes()
    assert train(load(text), str(whole)).step == 12
    assert "nothing to do" in capsys.readouterr().out
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_a_workdir_of_another_config_is_refused_with_a_diff(text, whole):
    with pytest.raises(InputError, match=r"model.width: 32 -> 64.*--allow-drift"):
        train(load(text, "config.model.width=64"), str(whole))
    with pytest.raises(InputError, match=r"steps: 12 -> 20"):
        train(load(text, steps=20), str(whole))


def test_a_workdir_in_use_is_refused(text, tmp_path):
    with lock_lib.locked(str(tmp_path)):
        with pytest.raises(lock_lib.LockedError, match=str(os.getpid())):
            train(load(text), str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == []


@pytest.mark.core
def test_the_workdir_holds_what_a_reader_looks_for(whole):
    names = {path.name for path in whole.iterdir()}
    assert {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "tokenizer.json",
    } <= names
    assert "lock" not in names
    config = json.loads((whole / "config.json").read_text())
    assert config["model"]["vocab_size"] == 257  # decided by the data, and recorded
    train_lines = [line for line in lines(whole) if line["split"] == "train"]
    assert [line["step"] for line in train_lines] == [1, 2, 4, 6, 8, 10, 12]
    times = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-2])
    assert {"time/input", "time/host", "time/device", "time/duty_cycle", "time/step"} <= set(times)
    evaluations = [line for line in lines(whole) if line["split"] == "validation"]
    assert [line["step"] for line in evaluations] == [6, 12]
    assert evaluations[-1]["bits_per_byte"] > 0


def test_evaluate_repeats_what_training_measured(text, whole):
    result = evaluate(str(whole))
    last = [line for line in lines(whole) if line["split"] == "validation"][-1]
    assert result["step"] == 12
    np.testing.assert_allclose(result["loss"], last["loss"], rtol=1e-6)
    raw = evaluate(str(whole), weights="raw")
    assert raw["loss"] != result["loss"]
    assert evaluate(str(whole), step="4")["step"] == 4
    assert evaluate(str(whole), split="train")["loss"] > 0  # one pass, though training repeats it
    with pytest.raises(InputError, match="no such checkpoint|no checkpoint"):
        evaluate(str(whole), step="5")
    with pytest.raises(InputError, match="train into it first"):
        evaluate(str(text))


def test_evaluation_counts_the_padded_last_batch_exactly(text, whole, tmp_path):
    """The same split in batches that divide it differently."""
    import shutil

    results = []
    for batch in (64, 24):
        shutil.copytree(whole, tmp_path / str(batch))
        path = tmp_path / str(batch) / "config.json"
        config = json.loads(path.read_text())
        config["eval"]["batch"] = batch
        path.write_text(json.dumps(config))
        results.append(evaluate(str(tmp_path / str(batch))))
    np.testing.assert_allclose(results[0]["loss"], results[1]["loss"], rtol=1e-6)


def test_generation_in_a_batch_equals_generation_alone(whole):
    prompts = ["the cat", "a", "", "on a mat and ran"]
    together = list(generate(str(whole), prompts, temperature=0.0, max_tokens=8))
    for prompt, result in zip(prompts, together, strict=True):
        (alone,) = generate(str(whole), [prompt], temperature=0.0, max_tokens=8)
        assert alone == result


def test_a_prompt_longer_than_the_context_is_refused(whole):
    with pytest.raises(InputError, match="shorten it"):
        list(generate(str(whole), ["x" * 100]))


def test_drift_that_is_allowed_by_name_goes_on(text, tmp_path):
    train(load(text, steps=6), str(tmp_path))
    allow = ("steps", "optim.lr.steps")
    assert train(load(text, steps=8), str(tmp_path), allow_drift=allow).step == 8


def test_a_rule_of_the_model_that_goes_back_to_its_default_is_drift(text, tmp_path):
    train(load(text, "config.model.window=4"), str(tmp_path), stop_after=4)
    with pytest.raises(InputError, match="model.window: 4 -> None"):
        train(load(text), str(tmp_path))


def test_changed_data_is_refused_on_resume(text, tmp_path):
    import shutil

    copy = tmp_path / "text"
    shutil.copytree(text, copy)
    train(load(copy), str(tmp_path / "run"), stop_after=4)
    for number in range(20):
        (copy / f"{number}.txt").write_text("something else " * 40)
    with pytest.raises(InputError, match="the data is not what.*--allow-drift=data"):
        train(load(copy), str(tmp_path / "run"))
    result = train(load(copy), str(tmp_path / "run"), stop_after=6, allow_drift=("data",))
    assert result.step == 6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("config.eval.split=nothing", "nothing"),
        ("config.eval.batch=60", "batch of 60 does not divide"),
        ("config.checkpoint.best=eval/loss", "did you mean 'loss'"),
        ("config.model.context=16", "config.model.context=16 is less than the data's 32"),
        ("config.task.vocab_size=50", "config.task.vocab_size=50 is less than the data's 257"),
        ("config.mesh.seq=8", "no model is split along 'seq'"),
        ("config.model.attention=cudnn", "it runs on gpu"),
    ],
)
def test_what_would_fail_later_is_refused_before_anything_is_written(
    override, message, text, tmp_path
):
    with pytest.raises(InputError, match=message):
        train(load(text, f"--{override}"), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_micro_batches_smaller_than_the_mesh_are_refused(text, tmp_path):
    parts = ["config.gradients.chain=accumulate", "config.gradients.accumulate.micro_batches=2"]
    with pytest.raises(InputError, match="micro_batches=2 for each of 8"):
        train(load(text, *parts), str(tmp_path / "run"))


def test_a_profile_is_written_and_must_lie_within_the_run(text, tmp_path):
    for wrong in ((5, 2), (5, 99)):
        with pytest.raises(InputError, match="not within steps"):
            train(load(text), str(tmp_path), profile=wrong)
    train(load(text), str(tmp_path), profile=(2, 3), stop_after=3)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_run_whose_updates_are_all_refused_ends_with_an_error_and_saves_nothing_bad(
    text, tmp_path, capsys
):
    wild = ["config.optim.chain=lr", "config.optim.lr.peak=1e30", "config.optim.lr.warmup=1"]
    with pytest.raises(RunError, match="5 updates in a row were refused .* no checkpoint is older"):
        train(load(text, *wild), str(tmp_path))
    assert "update refused" in capsys.readouterr().out


def test_bf16_trains_on_one_device(text, tmp_path):
    """The tied head on a single CPU device is the layout for which XLA has no bfloat16 product."""
    from research import build

    run = build.build(load(text, "config.precision=bf16"), jax.devices()[:1])
    state = build.init(run)
    with jax.set_mesh(run.mesh):
        batch = next(build.batches(run, run.source))
        _, metrics = build.jit_train_step(run)(state, batch)
    assert np.isfinite(metrics["loss"])


def test_the_best_step_is_saved_where_it_was_measured(text, tmp_path):
    best = ["config.checkpoint.best=loss", "config.checkpoint.every=None", "config.eval.every=5"]
    train(load(text, *best, "config.checkpoint.keep=1"), str(tmp_path))
    from research.checkpoint import Checkpoints

    with Checkpoints(tmp_path / "checkpoints", best=("loss", "min")) as checkpoints:
        measured = {s: checkpoints.notes(s)["metrics"]["loss"] for s in checkpoints.steps()}
        losses = {x["step"]: x["loss"] for x in lines(tmp_path) if x["split"] == "validation"}
        assert checkpoints.best() == min(losses, key=losses.get) and sorted(losses) == [5, 10, 12]
    assert all(measured[step] == losses[step] for step in measured)
    assert evaluate(str(tmp_path), step="best")["step"] == min(losses, key=losses.get)


def test_a_key_that_cannot_be_used_is_refused_before_anything_is_written(text, tmp_path):
    with pytest.raises(InputError, match="no.pem"):
        train(load(text, "config.checkpoint.sign=/no.pem"), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()
