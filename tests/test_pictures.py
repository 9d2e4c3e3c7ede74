"""Pictures are drawn where they can be, and cost no run anything where they cannot."""

import builtins
import json
import math

import numpy as np
import pytest

from research import pictures
from research.tasks import Task, classify, figures

TOTALS = {"_confusion": (np.array([[30.0, 2], [5, 10]]), 47)}


@pytest.fixture
def losses(tmp_path):
    lines = [
        dict(step=step, split="train", loss=None if step == 3 else 5 / step) for step in range(1, 8)
    ]
    lines.append(dict(step=7, split="validation", loss=1.0))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    return tmp_path


def test_loss_picture_is_a_png_and_survives_gaps(losses):
    pictures.at_end(losses)
    assert (losses / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_lines_has_no_loss_picture(tmp_path):
    pictures.at_end(tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_nothing_is_drawn_and_the_message_says_what_to_install(
    losses, monkeypatch, capsys
):
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name, name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    pictures.at_end(losses)
    said = capsys.readouterr()
    assert "no loss.png: matplotlib" in said.out + said.err and "anneal[nlp]" in said.out + said.err
    assert not (losses / "loss.png").exists()


def test_a_picture_that_fails_is_said_and_ends_nothing(tmp_path, capsys):
    def fail(totals, info):
        raise ZeroDivisionError("no examples")

    drawn = {"broken": fail, "confusion": figures.confusion}
    task = Task(None, None, figures=drawn)
    pictures.of_evaluation(tmp_path, task, TOTALS, dict(classes=["no", "yes"]))
    said = capsys.readouterr()
    assert "no broken.png: ZeroDivisionError: no examples" in said.out + said.err
    assert [png.name for png in (tmp_path / "pictures").iterdir()] == ["confusion.png"]


def test_the_confusion_matrix_shows_truth_in_rows_and_each_count():
    figure = classify.make(labels=2).figures["confusion"](TOTALS, dict(classes=["no", "yes"]))
    (axes,) = figure.axes
    assert axes.get_ylabel() == "in truth" and axes.get_xlabel() == "named"
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "30", (1, 0): "2", (0, 1): "5", (1, 1): "10"}
    np.testing.assert_allclose(axes.images[0].get_array(), [[30 / 32, 2 / 32], [1 / 3, 2 / 3]])


def test_many_classes_are_drawn_without_names():
    counts = np.eye(1_000) * 3
    figure = figures.confusion({"_confusion": (counts, 3_000)}, dict(classes=None))
    assert not figure.axes[0].texts and math.isclose(figure.axes[0].images[0].get_array()[5, 5], 1)


def test_precision_over_recall_is_drawn_for_each_class_there_is_and_their_mean():
    precision = np.full((10, 101, 3), -1.0)
    precision[..., 0], precision[..., 1] = 1.0, np.linspace(1, 0, 101)
    (axes,) = figures.precision_recall(precision, ["a", "b", "never seen"]).axes
    labels = [line.get_label() for line in axes.lines]
    assert labels[:2] == ["a", "b"] and labels[2] == "all at IoU 0.50: AP 0.750"
    np.testing.assert_allclose(axes.lines[2].get_ydata(), (1 + np.linspace(1, 0, 101)) / 2)


def test_a_split_without_objects_has_empty_axes():
    (axes,) = figures.precision_recall(np.full((10, 101, 2), -1.0), ["a", "b"]).axes
    assert not axes.lines
