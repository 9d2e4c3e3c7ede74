"""Bad input is one line and exit code 2, and leaves nothing half-written."""

import io
import json

import pytest

from research.__main__ import main


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"document {number} says hello to the world. " * 20)
    return folder


def command(text, workdir, *more):
    return [
        "train",
        "--config=configs/nlp/gpt.py:tiny",
        f"--workdir={workdir}",
        "--config.data.reader=files",
        f"--config.data.path={text}",
        "--config.eval.batch=64",
        *more,
    ]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANNEAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("research.__main__._keep_compilations", lambda: None)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("config.optim.lr.peak=nan", "config.optim.lr.peak"),
        ("config.model.num_layers=-3", "at least 1"),
        ("config.model.num_layers=True", "expected int"),
        ("config.model.num_layer=3", "did you mean 'num_layers'"),
        ("config.batch=4", "batch of 4 does not divide"),
        ("config.mesh.tensor=3", "does not fit 8 devices"),
        ("config.data.path=/no/such/folder", "/no/such/folder"),
        ("config.data.reader=flies", "did you mean 'files'"),
        ("config.optim.lr.warmup=20", "does not fit into 20 steps"),
        ("config.data.context=100000", "context"),
        ("config.log.wandb=project", "install wandb"),
    ],
)
def test_a_wrong_value_is_one_line_and_exit_code_2(override, expected, text, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert main(command(text, workdir, f"--{override}")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("anneal: ") and expected in error
    assert not (workdir / "config.json").exists()
    assert not (workdir / "lock").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "empty"), (b"\x00\x01\xff\xfe" * 100, "text"), (b"abc\xff\xfe def" * 100, "text")],
)
def test_a_file_that_is_empty_or_not_text_is_refused_by_name(content, expected, tmp_path, capsys):
    path = tmp_path / "input.txt"
    path.write_bytes(content)
    assert main(command(path, tmp_path / "run")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "input.txt" in error and expected in error.lower()
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_written_is_refused(text, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        assert main(command(text, workdir)) == 2
        assert "cannot be written" in capsys.readouterr().err


def test_an_axis_that_does_not_divide_a_parameter_is_refused(text, tmp_path, capsys):
    wide = ["--config.model.width=256", "--config.mesh.tensor=8"]
    assert main(command(text, tmp_path / "run", *wide)) == 2
    error = capsys.readouterr().err
    assert "heads" in error and "tensor" in error and "(2, 256, 2, 128)" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["trian"],
        ["train", "--config=x.py", "--workdir=w"],
        ["train", "--config=configs/nlp/gpt.py:tiny", "--workdir=w", "--confg.seed=1"],
        ["train", "--config=configs/nlp/gpt.py:tiny", "--workdir=w", "--profile=5"],
        ["train", "--config=configs/nlp/gpt.py:tiny", "--workdir=w", "--stop-after=0"],
        ["evaluate", "--workdir=/no/such"],
        ["evaluate", "--workdir=/no/such", "--config.seed=1"],
        ["generate", "--workdir=/no/such", "--prompt=a"],
        ["generate", "--workdir=/no/such"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("anneal: ") and "\n" not in error


@pytest.mark.core
def test_train_evaluate_generate_from_the_command_line(text, tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "run"
    assert main(command(text, workdir, "--config.steps=6", "--config.eval.every=6")) == 0
    assert "Limited by" in capsys.readouterr().out
    assert main(["evaluate", f"--workdir={workdir}"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_byte"] > 0

    lines = "".join(json.dumps({"prompt": p}) + "\n" for p in ("hello", "doc"))
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    out = tmp_path / "out.jsonl"
    assert main(["generate", f"--workdir={workdir}", "--input=-", f"--output={out}"]) == 0
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["prompt"] for r in results] == ["hello", "doc"] and results[0]["text"]

    again = ["generate", f"--workdir={workdir}"]
    capsys.readouterr()
    for wrong, message in (
        (["--prompt=" + "long " * 50], "shorten it"),
        (["--prompt=a", "--temperature=-1"], "temperature >= 0"),
        (["--prompt=a", "--step=77"], "no"),
        (["--prompt=a", "--weights=ema"], "kept no average"),
        (["--input=/no/such.jsonl"], "cannot be read"),
    ):
        assert main(again + wrong) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("not json\n"))
    assert main([*again, "--input=-"]) == 2
    assert ":1 is not a JSON object" in capsys.readouterr().err
    assert main(command(text, workdir, "--config.model.width=64")) == 2
    assert "model.width: 32 -> 64" in capsys.readouterr().err


def test_a_locked_workdir_is_exit_code_3(text, tmp_path, capsys):
    from research.workdir import locked

    with locked(str(tmp_path / "run")):
        assert main(command(text, tmp_path / "run")) == 3
    assert "locked by another run" in capsys.readouterr().err
