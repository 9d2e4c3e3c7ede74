"""Bad input is one line and exit code 2, and leaves nothing half-written."""

import io
import json
import signal
import subprocess
import sys
import time

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
@pytest.mark.fault("empty dataset")
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
        ["train", "--config=configs/nlp/gpt.py:tiny", "--workdir="],
        ["train", "--conf=configs/nlp/gpt.py:tiny", "--work=w"],
        ["evaluate", "--workdir=foo://bucket/run"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("anneal: ") and "\n" not in error


def test_a_bucket_without_the_package_for_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # importing it raises ImportError
    assert main(["evaluate", "--workdir=gs://bucket/run"]) == 2
    error = capsys.readouterr().err.strip()
    assert "pip install gcsfs" in error and "\n" not in error


@pytest.mark.core
def test_train_evaluate_generate_from_the_command_line(text, tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "run"
    short = ("--config.steps=6", "--config.eval.every=6", "--config.mesh.fsdp=8")
    assert main(command(text, workdir, *short)) == 0
    assert "Limited by" in capsys.readouterr().out
    assert main(["evaluate", f"--workdir={workdir}"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["bits_per_byte"] > 0

    other = ["--config.mesh.fsdp=2", "--config.mesh.data=4", "--config.eval.batch=8"]
    moved = text.rename(tmp_path / "moved")
    other.append(f"--config.data.path={moved}")
    assert main(["evaluate", f"--workdir={workdir}", *other]) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(numbers, rel=1e-5)
    assert main(["evaluate", f"--workdir={workdir}", *other, "--config.mesh.fsdp=3"]) == 2
    assert "does not fit 8 devices" in capsys.readouterr().err
    assert main(["evaluate", f"--workdir={workdir}", *other, "--config.data.context=64"]) == 2
    assert "less than the data's" in capsys.readouterr().err
    moved.rename(text)

    lines = "".join(json.dumps({"prompt": p}) + "\n" for p in ("hello", "doc"))
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    out = tmp_path / "out.jsonl"
    again = ["generate", f"--workdir={workdir}"]
    assert main([*again, "--input=-", f"--output={out}", *other]) == 0
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["prompt"] for r in results] == ["hello", "doc"] and results[0]["text"]
    check_that_neighbours_do_not_matter(workdir)

    capsys.readouterr()
    files = sorted(tmp_path.iterdir())
    for wrong, message in (
        (["--prompt=" + "long " * 50], "shorten it"),
        (["--prompt=a", "--temperature=-1"], "--temperature=-1.0 is out of range"),
        (["--prompt=a", "--temperature=nan"], "--temperature=nan is not a finite number"),
        (["--prompt=a", "--temperature=inf"], "--temperature=inf is not a finite number"),
        (["--prompt=a", "--top-p=0"], "--top-p=0.0 is out of range; expected above 0"),
        (["--prompt=a", "--max-tokens=0"], "--max-tokens=0 is out of range"),
        (["--prompt=a", "--seed=4294967296"], "--seed=4294967296 is out of range"),
        (["--prompt=a", f"--seed={2**70}"], "is out of range"),
        (["--prompt=a", "--output=/nope/x"], "--output=/nope/x cannot be written"),
        (["--prompt=a", f"--output={tmp_path}"], "cannot be written"),
        (["--prompt=" + "long " * 50, f"--output={tmp_path}/new"], "shorten it"),
        (["--prompt=a", "--config.mesh.fsdp=3"], "does not fit 8 devices"),
        (["--prompt=a", "--step=77"], "no"),
        (["--prompt=a", "--weights=ema"], "kept no average"),
        (["--input=/no/such.jsonl"], "cannot be read"),
    ):
        assert main(again + wrong) == 2
        assert message in capsys.readouterr().err
        assert sorted(tmp_path.iterdir()) == files
    monkeypatch.setattr("sys.stdin", io.StringIO("not json\n"))
    assert main([*again, "--input=-"]) == 2
    assert ":1 is not a JSON object" in capsys.readouterr().err
    assert main(command(text, workdir, "--config.model.width=64")) == 2
    assert "model.width: 32 -> 64" in capsys.readouterr().err


def check_that_neighbours_do_not_matter(workdir):
    from research.generate import generate

    prompts = ["document 1 says hello", "document 22 says hello", "", ""]
    together = list(generate(str(workdir), prompts))
    assert together == list(generate(str(workdir), prompts, batch=1))
    lengths = [max(len(prompt), 1) for prompt in prompts]
    rooms = [32 - length for length in lengths]
    tokens = [result["tokens"] for result in together]
    assert all(t <= room for t, room in zip(tokens, rooms, strict=True)) and max(tokens) > rooms[0]
    assert together[2] != together[3]  # each place in the order has its own draws


def test_a_locked_workdir_is_exit_code_3(text, tmp_path, capsys):
    from research.lock import locked

    with locked(str(tmp_path / "run")):
        assert main(command(text, tmp_path / "run")) == 3
    assert "locked by another run" in capsys.readouterr().err


def test_each_result_is_written_before_the_next_one_is_made(tmp_path, monkeypatch):
    seen = []

    def results(*_, **__):
        for number in range(3):
            seen.append(out.with_name("out.part").read_text().count("\n"))
            yield {"text": str(number)}

    out = tmp_path / "out"
    monkeypatch.setattr("research.generate.generate", results)
    assert main(["generate", "--workdir=w", "--prompt=a", f"--output={out}"]) == 0
    assert seen == [0, 1, 2] and len(out.read_text().splitlines()) == 3
    assert not out.with_name("out.part").exists()


@pytest.mark.slow
def test_a_preempted_command_exits_with_75_and_the_same_command_goes_on(text, tmp_path):
    workdir = tmp_path / "run"
    more = ("--config.steps=400", "--config.log.every=1", "--config.log.tensorboard=False")
    start = [sys.executable, "-m", "research", *command(text, workdir, *more)]
    process = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = workdir / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75, process.stdout.read()
    stopped = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert 1 <= stopped < 400 and not (workdir / "lock").exists()
    again = subprocess.run(start, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert again.returncode == 0, again.stdout
    assert f"going on after step {stopped} of 400" in again.stdout
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in steps if line["split"] == "train"] == list(range(1, 401))
