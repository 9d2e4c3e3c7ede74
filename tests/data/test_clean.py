"""The pass that cleans documents: nothing changes its bytes, and nothing is lost unaccounted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from research.arguments import InputError
from research.data.clean import clean, main
from research.data.readers import jsonl
from research.data.source import RecordError
from tests.documents import encode, gone, kept, outputs, prose, write

ROOT = Path(__file__).resolve().parents[2]
NAMED = dict(reader="jsonl", shard=10)


@pytest.fixture
def corpus(tmp_path):
    """35 documents: duplicates, near duplicates and junk among them."""
    texts = [prose(seed) for seed in range(30)]
    texts += [texts[3], " ".join(texts[4].split()[:-3]), "too short", f"{prose(77)} a@b.org", ""]
    return write(tmp_path / "raw", texts)


def test_every_document_is_kept_or_accounted_for(corpus, tmp_path):
    report = clean(str(tmp_path / "out"), corpus, **NAMED)
    lines = gone(tmp_path / "out")
    assert [(one["id"], one["step"], one["reason"], one.get("of")) for one in lines] == [
        ("train-30", "exact", "duplicate", "train-3"),
        ("train-31", "near", "duplicate", "train-4"),
        ("train-32", "language", "unknown", None),
        ("train-34", "read", "empty", None),
    ]
    assert lines[0]["name"].endswith("train.jsonl line 31")
    texts = kept(tmp_path / "out")
    assert texts == [*map(prose, range(30)), f"{prose(77)} [EMAIL]"]
    assert report["documents_in"] == 36 and report["documents_out"] == 32
    size = sum(len(text.encode()) for text in [*texts, prose(999)])
    assert report["bytes_out"] == size
    for before, after in zip(report["steps"], report["steps"][1:], strict=False):
        assert before["documents_out"] == after["documents_in"]
        assert before["bytes_out"] == after["bytes_in"]
    for step in report["steps"]:
        assert step["documents_in"] - step["documents_out"] == sum(step["removed"].values())
    found = {step["step"]: step for step in report["steps"]}
    assert found["personal"]["changed"] == {"email": {"documents": 1, "places": 1}}
    assert found["language"]["examples"] == {"unknown": ["too short"]}
    assert not (tmp_path / "out" / "work").exists()


def test_a_comparison_sees_what_the_one_before_it_left(tmp_path):
    texts = [prose(1), prose(1), " ".join(prose(1).split()[:-2])]
    clean(str(tmp_path / "out"), write(tmp_path / "raw", texts), **NAMED, steps=("near", "exact"))
    report = json.loads(outputs(tmp_path / "out")["report.json"])
    assert [step["documents_out"] for step in report["steps"]] == [4, 2, 2]
    assert {one["step"] for one in gone(tmp_path / "out")} == {"near"}


def test_a_folder_made_anew_is_a_new_pass(tmp_path):
    out, raw = tmp_path / "out", tmp_path / "raw"
    clean(str(out), write(raw, [prose(1), prose(1), prose(2)]), **NAMED)
    shutil.rmtree(out)
    clean(str(out), write(raw, [prose(1), prose(2), prose(1)]), **NAMED)
    assert [one["id"] for one in gone(out)] == ["train-2"]


def test_plain_text_files_are_cleaned_by_default(tmp_path):
    (tmp_path / "raw").mkdir()
    for seed in range(60):
        (tmp_path / "raw" / f"{seed}.txt").write_text(prose(seed % 50))
    report = clean(str(tmp_path / "out"), str(tmp_path / "raw"))
    assert (report["documents_in"], report["documents_out"]) == (60, 50)
    with pytest.raises(
        InputError, match=r"split validation; .* \(--splits=validation asked for it"
    ):
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "1.txt").write_text(prose(1))
        clean(str(tmp_path / "out2"), str(tmp_path / "one"))


def test_steps_behind_a_comparison_see_what_it_left(corpus, tmp_path):
    first = clean(
        str(tmp_path / "a"), corpus, **NAMED, steps=("exact", "unicode", "near", "quality")
    )
    assert [step["step"] for step in first["steps"]] == [
        "read",
        "exact",
        "unicode",
        "near",
        "quality",
    ]
    reasons = {(one["id"], one["step"]) for one in gone(tmp_path / "a")}
    assert reasons == {
        ("train-30", "exact"),
        ("train-31", "near"),
        ("train-32", "quality"),
        ("train-34", "read"),
    }


def test_what_was_cleaned_can_be_trained_from(corpus, tmp_path):
    clean(str(tmp_path / "out"), corpus, **NAMED)
    records = jsonl.make(str(tmp_path / "out"), "train", "text")
    assert [records.read(index) for index in range(records.count)] == kept(tmp_path / "out")
    assert jsonl.make(str(tmp_path / "out"), "validation", "text").count == 1


KILLER = """
import os, signal
from pathlib import Path
from research.data.cleaning import Cleaned, Step

def make():
    left = {name: int(os.environ.get(name, -1)) for name in ("KILL_CLEAN", "KILL_RENAME")}

    def kill(name):
        left[name] -= 1
        if left[name] == -1:
            os.kill(os.getpid(), signal.SIGKILL)

    for verb in ("rename", "replace"):
        def moved(self, target, original=getattr(Path, verb)):
            if self.exists():
                kill("KILL_RENAME")
            return original(self, target)
        setattr(Path, verb, moved)
    left["KILL_CLEAN"] += left["KILL_CLEAN"] < 0 and -10**9
    left["KILL_RENAME"] += left["KILL_RENAME"] < 0 and -10**9

    def clean(text):
        kill("KILL_CLEAN")
        return Cleaned(text)

    return Step(clean)
"""
STEPS = "--steps=killer.step,unicode,personal,exact,quality,near"


@pytest.fixture
def command(corpus, tmp_path):
    """Starts a pass in a process that may be killed; returns its exit code when asked to wait."""
    (tmp_path / "killer").mkdir()
    (tmp_path / "killer" / "step.py").write_text(KILLER)

    def start(out, *flags, wait=True, **kill):
        environment = os.environ | {key: str(value) for key, value in kill.items()}
        environment["PYTHONPATH"] = f"{ROOT}:{tmp_path}"
        line = [sys.executable, "-m", "research.data.clean", f"--path={corpus}", f"--out={out}"]
        process = subprocess.Popen(
            [*line, "--reader=jsonl", "--shard=10", STEPS, *flags],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        return process.wait() if wait else process

    return start


def test_a_killed_pass_goes_on_to_the_same_bytes(command, tmp_path):
    assert command(tmp_path / "whole") == 0
    whole = outputs(tmp_path / "whole")
    assert command(tmp_path / "cut", KILL_CLEAN=3) == -9  # in the first shard
    assert command(tmp_path / "cut", KILL_CLEAN=13) == -9  # and in the second
    kills = 0
    # Each time it gets three tasks further, and dies before the fourth is given its name.
    while (code := command(tmp_path / "cut", KILL_RENAME=3)) == -9:
        kills += 1
        assert kills < 20
    assert code == 0 and kills >= 4
    assert outputs(tmp_path / "cut") == whole
    assert command(tmp_path / "cut") == 0  # a finished one stays as it is
    assert outputs(tmp_path / "cut") == whole


def test_two_processes_give_the_output_of_one(command, tmp_path):
    assert command(tmp_path / "one") == 0
    assert command(tmp_path / "two", "--processes=2") == 0
    started = [command(tmp_path / "joined", wait=False) for _ in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two") == outputs(tmp_path / "joined")


def test_the_size_of_a_shard_changes_no_document(corpus, tmp_path):
    for size in (7, 100):
        clean(str(tmp_path / str(size)), corpus, reader="jsonl", shard=size)
    assert kept(tmp_path / "7") == kept(tmp_path / "100")
    assert gone(tmp_path / "7") == gone(tmp_path / "100")
    reports = [outputs(tmp_path / name)["report.json"] for name in ("7", "100")]
    assert reports[0] == reports[1]


def test_the_folder_of_another_pass_is_refused_with_a_diff(corpus, tmp_path):
    out = str(tmp_path / "out")
    clean(out, corpus, **NAMED)
    before = outputs(out)
    with pytest.raises(InputError, match=r"\(near.threshold: 0.8 -> 0.7\); name another --out"):
        clean(out, corpus, **NAMED, near=dict(threshold=0.7))
    with pytest.raises(InputError, match="steps: "):
        clean(out, corpus, **NAMED, steps=("exact",))
    with open(Path(corpus) / "train.jsonl", "ab") as file:
        file.write(b"\n" + encode("more"))
    with pytest.raises(InputError, match="data.train: .* -> "):
        clean(out, corpus, **NAMED)
    assert outputs(out) == before
    with pytest.raises(InputError, match="raw holds 'train.jsonl', of no pass|lies in --path"):
        clean(corpus, corpus, **NAMED)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="holds 'mine.txt', of no pass; name a new folder"):
        clean(str(tmp_path / "full"), corpus, **NAMED)


def test_a_changed_list_of_names_is_another_pass(corpus, tmp_path):
    (tmp_path / "names").write_text("Ann")
    section = dict(personal=dict(names=str(tmp_path / "names")))
    clean(str(tmp_path / "out"), corpus, **NAMED, **section)
    (tmp_path / "names").write_text("Bob")
    with pytest.raises(InputError, match="personal.files"):
        clean(str(tmp_path / "out"), corpus, **NAMED, **section)


def test_what_cannot_be_read_is_counted_and_named(tmp_path):
    lines = [
        encode(prose(1)),
        b'{"text": "caf\xe9"}',
        b'{"text": 3}',
        encode(" \n"),
        b"{",
        b'{"text": "\\ud800"}',
    ]
    path = write(tmp_path / "raw", lines)
    report = clean(str(tmp_path / "out"), path, **NAMED)
    assert report["steps"][0]["removed"] == {"unreadable": 4, "empty": 1}
    errors = {one["id"]: one.get("error", "") for one in gone(tmp_path / "out")}
    assert "is not UTF-8 text (byte 13)" in errors["train-1"]
    assert "has no text in field 'text'" in errors["train-2"]
    assert kept(tmp_path / "out") == [prose(1)]


def test_a_pass_that_leaves_nothing_says_why(corpus, tmp_path, capsys):
    line = [f"--path={corpus}", f"--out={tmp_path / 'out'}", "--reader=jsonl", "--steps=quality"]
    for _ in range(2):
        assert main([*line, "--quality.min_words=5000"]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        expected = 'nothing is left of 36 documents: quality removed {"too_few_words": 35}'
        assert expected in printed
    assert (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--near.treshold=0.7"], "--near.treshold is not known; did you mean 'threshold'?"),
        (["--near.threshold=2"], "--near.threshold=2.0 is out of range"),
        (["--steps=unicode,nearr"], "'nearr' is not in research/data.cleaning; did you mean"),
        (["--steps=near,near"], "--steps=near,near: expected names, each of them once"),
        (["--steps=exact", "--near.bands=3"], "--near.* are arguments of a step that is not done"),
        (["--shard=0"], "--.shard=0 is out of range"),
        (["--path=missing"], "does not exist"),
        (["--splits=test"], "split='test' is not known here"),
        (["--out=gs://bucket/x"], "is no local folder"),
        (["--language.keep=xx"], "language.keep='xx' is not known here"),
        (["--personal.kinds=email,fax"], "personal.kinds='fax' is not known"),
        (["--what"], "unknown argument '--what'; expected --STEP.ARGUMENT=VALUE"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(flags, message, corpus, tmp_path, capsys):
    assert main([f"--path={corpus}", f"--out={tmp_path / 'out'}", "--reader=jsonl", *flags]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_full_or_closed_folder_is_one_line(corpus, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be used as a folder"):
        clean(str(tmp_path / "file"), corpus, **NAMED)


# ---- the reader of what a pass writes


def test_json_lines_are_named_held_out_and_checked(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n\n".join(encode(f"text {n}") for n in range(200)))
    found = {split: jsonl.make(str(tmp_path), split, "text") for split in ("train", "validation")}
    texts = [records.read(i) for records in found.values() for i in range(records.count)]
    assert sorted(texts) == sorted(f"text {n}" for n in range(200))
    assert 0 < found["validation"].count < 30
    assert (
        found["train"].name(1).endswith(f"a.jsonl line {1 + 2 * int(found['train'].read(1)[5:])}")
    )
    with pytest.raises(RecordError, match=r"line 1 has no text in field 'body'; it has \['text'\]"):
        jsonl.make(str(tmp_path / "a.jsonl"), "train", "body").read(0)
    with pytest.raises(InputError, match="has no JSON lines of split train"):
        (tmp_path / "empty.jsonl").write_bytes(b"\n")
        jsonl.make(str(tmp_path / "empty.jsonl"), "train", "text")
    with pytest.raises(InputError, match="does not exist; give a .jsonl file"):
        jsonl.make(None, "train", "text")
