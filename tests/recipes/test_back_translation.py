"""Back-translation: cut anywhere it comes to the same, and says what it left out."""

import json
import shutil
import signal
from collections import Counter

import pytest

from research import config as config_lib
from research import manifest
from research.arguments import InputError, RunError
from research.recipes import back_translation
from research.recipes.back_translation import back_translate, main, sift

DIGITS = dict(zip("0123456789", "null eins zwei drei vier fünf sechs sieben acht neun".split()))  # noqa: B905
OPTIONS = dict(temperature=0.5, ratio=0.5, max_ratio=9.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Numbers of two digits and what they are called; and names alone."""
    folder = tmp_path_factory.mktemp("data")
    names = {f"{n:02}": " ".join(DIGITS[digit] for digit in f"{n:02}") for n in range(100)}
    rows = [dict(de=name, number=number) for number, name in names.items()]
    for split, kept in (("train", rows[:64]), ("validation", rows[90:])):
        text = "".join(json.dumps(row | {"other": "x"}) + "\n" for row in kept)
        (folder / f"{split}.jsonl").write_text(text)
    alone = [row["de"] for row in rows[58:90]] + [""] + [rows[58]["de"]] + ["neun " * 9]
    (folder / "mono.txt").write_text("".join(line + "\n" for line in alone), "utf-8")
    return folder


def load(data, *more):
    given = [f"config.data.path={data}", "config.data.source=number", "config.data.target=de"]
    given += ["config.data.context=16", "config.data.target_context=24", "config.steps=40"]
    given += ["config.optim.lr.peak=1e-2", "config.checkpoint.every=10"]
    given += ["config.log.tensorboard=False", "config.eval.every=40", *more]
    return config_lib.load("configs/nlp/translation.py:tiny", given)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A workdir in which all was done at once."""
    folder = tmp_path_factory.mktemp("whole") / "bt"
    result = back_translate(load(data), str(folder), str(data / "mono.txt"), **OPTIONS)
    assert result.step == 40 and not result.preempted
    return folder


def rows(file):
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_cut_anywhere_it_goes_on_and_comes_to_the_same(data, whole, tmp_path, monkeypatch):
    folder = tmp_path / "bt"
    run = lambda: back_translate(load(data), str(folder), str(data / "mono.txt"), **OPTIONS)  # noqa: E731

    class Kill(BaseException):
        pass

    def killed(name, call):
        with monkeypatch.context() as patch:
            patch.setattr(back_translation, name, call)
            with pytest.raises(Kill):
                run()

    def part(step, which):
        def call(config, workdir):
            if workdir.endswith(which):
                train(config, workdir, stop_after=step)
                raise Kill
            return train(config, workdir)

        return call

    def some(*arguments, **options):
        for number, answer in enumerate(generate(*arguments, **options)):
            if number == 20:
                raise Kill
            yield answer

    def none(*_):
        raise Kill

    train, generate = back_translation.train, back_translation.generate
    killed("train", part(10, "reverse"))
    killed("generate", some)
    assert not (folder / "synthetic").exists()
    killed("sift", none)
    made = (folder / "synthetic" / "lines.jsonl").read_bytes()
    assert not (folder / "mixed").exists()
    killed("train", part(30, "forward"))
    run()
    assert made == (whole / "synthetic" / "lines.jsonl").read_bytes()
    for name in ("train.jsonl", "validation.jsonl", "report.json"):
        assert (folder / "mixed" / name).read_bytes() == (whole / "mixed" / name).read_bytes()
    last = lambda root: manifest.read(root / "forward" / "checkpoints" / "40")["leaves"]  # noqa: E731
    assert last(folder) == last(whole)
    assert not list(folder.glob("*.unfinished"))


@pytest.mark.slow
def test_a_signal_while_sources_are_drawn_ends_with_75(data, whole, tmp_path, monkeypatch):
    shutil.copytree(whole / "reverse", tmp_path / "bt" / "reverse")
    generate = back_translation.generate

    def told(*arguments, **options):
        for answer in generate(*arguments, **options):
            signal.raise_signal(signal.SIGTERM)
            yield answer
            raise AssertionError("it went on")

    monkeypatch.setattr(back_translation, "generate", told)
    with pytest.raises(RunError, match="stopped while sources were drawn") as error:
        back_translate(load(data), str(tmp_path / "bt"), str(data / "mono.txt"), **OPTIONS)
    assert error.value.code == 75 and not (tmp_path / "bt" / "synthetic").exists()
    with pytest.raises(InputError, match="the stages lie in a local folder"):
        back_translate(load(data), "gs://bucket/bt", str(data / "mono.txt"), **OPTIONS)


@pytest.mark.slow
def test_made_pairs_stand_beside_the_real_ones_and_every_line_is_accounted_for(data, whole):
    mixed, real = rows(whole / "mixed" / "train.jsonl"), rows(data / "train.jsonl")
    assert mixed[:64] == [{name: row[name] for name in ("number", "de")} for row in real]
    made, lines = mixed[64:], (data / "mono.txt").read_text("utf-8").splitlines()
    assert made and all(row["number"].startswith("<BT> ") for row in made)
    assert {row["de"] for row in made} <= set(lines)
    assert rows(whole / "mixed" / "validation.jsonl")[0] == {"number": "90", "de": "neun null"}
    report = json.loads((whole / "mixed" / "report.json").read_text())
    assert report["real"] == 64 and report["lines"] == 35 and report["tried"] == 32
    assert report["kept"] == len(made) and len(made) + sum(report["left_out"].values()) == 35
    unfit = {name: report["left_out"][name] for name in ("empty line", "repeated line")}
    assert unfit == {"empty line": 1, "repeated line": 1} and report["left_out"]["line too long"]
    # The forward run reads numbers, the reverse run wrote them, with one tokenizer.
    tokenizers = [(whole / run / "tokenizer.json").read_text() for run in ("reverse", "forward")]
    assert tokenizers[0] == tokenizers[1]
    reverse = json.loads((whole / "reverse" / "config.json").read_text())["data"]
    assert (reverse["source"], reverse["context"], reverse["target_context"]) == ("de", 24, 16)


def test_a_made_source_is_left_out_for_each_reason():
    answer = lambda text, prompt, tokens=5: dict(text=text, prompt=prompt, tokens=tokens)  # noqa: E731
    good = [answer("a house", "ein Haus"), answer("one house", "ein Haus")]
    bad = {
        "empty source": answer(" ", "ein Haus"),
        "source does not end": answer("a house a house", "ein Haus", 16),
        "copy": answer("ein Haus", "ein Haus"),
        "length ratio": answer("a", "ein Haus"),
        "duplicate": answer("a house", "ein Haus"),
    }
    report = Counter()
    kept = sift([*good, *bad.values()], set(), 16, 3.0, report)
    assert kept == [("a house", "ein Haus"), ("one house", "ein Haus")]
    assert report == dict.fromkeys(bad, 1)
    assert sift(good, {("a house", "ein Haus")}, 16, 3.0, Counter()) == [("one house", "ein Haus")]


def test_another_recipe_in_its_workdir_and_other_data_are_refused(data, tmp_path, capsys):
    (tmp_path / "recipe.json").write_text('{"top_k": 0}')
    given = ["--config=configs/nlp/translation.py:tiny", f"--workdir={tmp_path}"]
    mono = f"--monolingual={data / 'mono.txt'}"
    path = f"--config.data.path={data}"
    names = ["--config.data.source=number", "--config.data.target=de"]
    for arguments, message in (
        ([*given, path, *names, mono, "--top-k=3"], "top_k: 0 -> 3"),
        ([*given, path, *names, "--monolingual=/no/such"], "--monolingual=/no/such cannot be read"),
        ([*given, path, *names, mono, "--ratio=0"], "ratio=0.0 is out of range"),
        ([*given, path, *names], "required: --monolingual"),
        (["--config=configs/nlp/gpt.py:tiny", *given[1:], mono], "back-translation needs pairs"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error
    with pytest.raises(InputError, match="no line that fits"):
        back_translation._fitting(["", "x" * 50], back_translation.tokenizer_lib.train("bytes", []),
                                  16, Counter())  # fmt: skip
