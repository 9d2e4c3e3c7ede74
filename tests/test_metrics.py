"""Numbers of a run: exact lines, clean resumption, nothing from idle processes, pictures."""

import importlib.machinery
import json
import math
import struct
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import metrics
from research.arguments import InputError
from research.log import Log
from research.metrics import Writer, progress_line, read, truncate


def make_writer(folder, **arguments):
    return Writer(folder, **{"total_steps": 10, "tensorboard": False} | arguments)


def event_steps(folder):
    """Returns the (step, tag, value) and purge marks of all event files, read as raw records."""
    from tensorboardX.proto.event_pb2 import Event

    scalars, marks = [], []
    for path in sorted(folder.glob("events.*")):
        data, start = path.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack("<Q", data[start : start + 8])
            event = Event.FromString(data[start + 12 : start + 12 + length])
            start += 16 + length
            scalars += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            if event.HasField("session_log"):
                marks.append(event.step)
    return scalars, marks


@pytest.mark.core
def test_a_line_is_exact_sorted_and_on_disk_at_once(tmp_path):
    with make_writer(tmp_path) as writer:
        loss = jnp.float32(1.1)
        writer.write(3, "train", {"weight": 7, "loss": loss, "accuracy": np.float64(0.25)})
        text = (tmp_path / "metrics.jsonl").read_text()  # before anything is closed
    expected = {"step": 3, "split": "train", "accuracy": 0.25, "loss": float(loss), "weight": 7}
    assert text == json.dumps(expected) + "\n"
    assert np.float32(json.loads(text)["loss"]) == np.float32(1.1)  # not a bit is lost


def test_numbers_that_are_not_finite_are_null_and_named(tmp_path):
    with make_writer(tmp_path) as writer:
        writer.write(1, "train", {"loss": math.nan, "grad_norm": math.inf, "weight": 2.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line["loss"] is None and line["grad_norm"] is None and line["weight"] == 2.0
    assert line["nonfinite"] == ["grad_norm", "loss"]


@pytest.mark.core
def test_a_killed_and_resumed_file_equals_the_uninterrupted_one(tmp_path):
    def run(folder, start, stop):
        with make_writer(folder, resume_step=start) as writer:
            for step in range(start + 1, stop + 1):
                writer.write(step, "train", {"loss": 1 / step})
                if step % 4 == 0:
                    writer.write(step, "validation", {"loss": 2 / step})

    run(tmp_path / "straight", 0, 10)
    run(tmp_path / "killed", 0, 7)
    with (tmp_path / "killed/metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "split": "tr')  # the kill came in the middle of a line
    run(tmp_path / "killed", 4, 10)
    straight = (tmp_path / "straight/metrics.jsonl").read_text()
    assert (tmp_path / "killed/metrics.jsonl").read_text() == straight
    run(tmp_path / "killed", 0, 10)  # from the start again: nothing is left of before
    assert (tmp_path / "killed/metrics.jsonl").read_text() == straight


def test_truncate_drops_later_lines_and_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 3, "a": 2}\n{"step": 2, "a": 3}\n{"step": 1, "a')
    truncate(path, 2)
    assert [line["a"] for line in read(path)] == [1, 3]
    assert path.read_text().endswith("}\n")
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_inactive_writers_touch_nothing(tmp_path, capsys):
    with make_writer(tmp_path / "none", active=False, tensorboard=True, wandb="x") as writer:
        writer.write(1, "train", {"loss": 1.0})
        writer.flush()
    assert not (tmp_path / "none").exists() and capsys.readouterr().out == ""


def test_tensorboard_gets_every_number_and_forgets_what_is_redone(tmp_path):
    with make_writer(tmp_path, tensorboard=True) as writer:
        writer.write(1, "train", {"loss": 2.0, "time/step": 0.5})
        writer.write(2, "train", {"loss": 1.5})
    with make_writer(tmp_path, tensorboard=True, resume_step=1) as writer:
        writer.write(2, "validation", {"loss": 1.0})
    scalars, marks = event_steps(tmp_path)
    assert (1, "train/loss", 2.0) in scalars and (1, "train/time/step", 0.5) in scalars
    assert (2, "train/loss", 1.5) in scalars and (2, "validation/loss", 1.0) in scalars
    assert 2 in marks  # step 1 stays, what was written from step 2 on is hidden


def test_wandb_is_asked_for_but_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="config.log.wandb='mine' needs wandb; run pip install"):
        make_writer(tmp_path, wandb="mine")


def test_wandb_gets_project_config_and_numbers(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda numbers, step: calls.append((step, numbers)), finish=lambda: calls.append("end")
    )
    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.init = lambda **arguments: calls.append(arguments) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with make_writer(tmp_path / "run7", wandb="mine", config={"seed": 0}) as writer:
        writer.write(1, "train", {"loss": 2.0})
    start, logged, end = calls
    assert (start["project"], start["name"], start["config"]) == ("mine", "run7", {"seed": 0})
    assert logged == (1, {"train/loss": 2.0}) and end == "end"


def test_remote_files_arrive_at_flush_and_at_the_end_and_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "is_remote", lambda path: True)
    path = tmp_path / "metrics.jsonl"
    with make_writer(tmp_path, tensorboard=True) as writer:
        writer.write(1, "train", {"loss": 1.0})
        assert read(path) == []  # an object store has no append
        writer.flush()
        assert len(read(path)) == 1 and list(tmp_path.glob("events.*"))
        writer.write(2, "train", {"loss": 1.0})
    assert [line["step"] for line in read(path)] == [1, 2]
    with make_writer(tmp_path, resume_step=1) as writer:
        writer.write(2, "train", {"loss": 3.0})
    assert [line["loss"] for line in read(path)] == [1.0, 3.0]


def test_the_plain_line_is_compact_and_aligned(tmp_path, capsys):
    numbers = {"loss": 1.98234, "learning_rate": 0.0018, "time/tokens_per_s": 12345.0}
    numbers |= {"time/step": 0.5, "grad_norm": 3.0, "time/mfu_full": 0.412}
    assert progress_line(200, 2000, "train", numbers) == (
        "step  200/2000  loss 1.9823  lr 1.8e-03     12,345 tok/s  mfu full 41.2%  eta 0:15:00"
    )
    assert progress_line(10, 2000, "train", {"loss": math.nan}) == "step   10/2000  loss nan"
    with make_writer(tmp_path) as writer:
        writer.write(2, "validation", {"loss": 2.0, "accuracy": 0.5, "time/step": 1.0})
    assert capsys.readouterr().out == "step  2/10  validation  accuracy 0.5000  loss 2.0000\n"


def test_a_terminal_gets_a_live_bar_and_evaluations_above_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    with make_writer(tmp_path) as writer:
        writer.write(1, "train", {"loss": 1.25})
        writer.write(1, "validation", {"loss": 1.5})
        writer.write(2, "train", {"loss": 1.125})
    out = capsys.readouterr().out
    assert "━" in out and "loss 1.2500" in out and "validation  loss 1.5000" in out
    assert "\x1b[2K" in out  # the line is rewritten in place
    assert sys.stdout.write is not None and "rich" not in type(sys.stdout).__module__  # given back


@pytest.mark.parametrize(
    ("leaf", "name", "speed"),
    [((8,), "examples", 16), ((8, 64), "tokens", 100), (None, "tokens", 100)],
)
def test_speed_counts_rows_where_rows_have_a_weight_and_else_tokens(leaf, name, speed):
    """Of detection the weight of the loss is a number of objects: no measure of speed."""
    spec = {} if leaf is None else {"weight": jax.ShapeDtypeStruct(leaf, "float32")}
    run = types.SimpleNamespace(source=types.SimpleNamespace(spec=spec))
    found = Log._speed(
        types.SimpleNamespace(run=run, peak=None), {"time/step": 0.5, "weight": 50.0}
    )
    assert found == {f"time/{name}_per_s": speed}
