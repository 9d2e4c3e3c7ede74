"""Cleans text in a pass that can be killed, shared by processes, and gives the same bytes always.

    python -m research.data.clean --path=texts/ --out=clean/ --processes=8 --near.threshold=0.9
    anneal train ... --config.data.reader=jsonl --config.data.path=clean/

Each step is a file of research/data/cleaning, done in the order of --steps, with its arguments as
--STEP.ARGUMENT=VALUE. The same command goes on with a pass that was cut, or, on another terminal or
host with the same files, joins one that runs. In --out lie then

    train-00000-of-00012.jsonl ...   {"id": "train-17", "text": ...}, documents in their order
    removed.jsonl                    {"id", "name", "step", "reason"} and, of a duplicate, "of"
    report.json                      documents and bytes into and out of each step, why, examples
    config.json                      every argument, and fingerprints of all that was read
"""

import argparse
import bisect
import fcntl
import functools
import inspect
import json
import multiprocessing
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from research.arguments import Count, InputError, RunError, Text, complete
from research.data import stages
from research.data.cleaning import Step
from research.lookup import find

FORMAT = 1  # of the output: raise it when the same config gives other bytes
STEPS = ("unicode", "personal", "language", "quality", "repetition", "exact", "near")


def clean(
    out: str,
    path: str | None = None,
    reader: str = "files",
    field: str = "text",
    splits: tuple = ("train", "validation"),
    steps: tuple = STEPS,
    shard: Count = 1000,
    processes: Count = 1,
    **sections: dict[str, Any],
) -> dict[str, Any]:
    """Cleans the documents that `reader` finds at `path` into the folder `out`; returns the report.

    `sections` are the arguments of the steps, by name. Documents are taken `shard` at a time; of
    duplicates the first one stays, in the order of `splits`. Neither `processes` nor a kill changes
    a byte of the output. Raises InputError for arguments that do not fit, for a folder that belongs
    to another pass, and if nothing is left.
    """
    arguments = dict(out=out, path=path, reader=reader, field=field, splits=splits, steps=steps)
    arguments |= dict(shard=shard) | sections
    folder = Path(out).expanduser()
    config, run = _prepare(**arguments)
    with _shared(folder, config):
        if not (folder / "report.json").exists():
            # spawn: a fork would copy threads of libraries in whatever state they are
            context = multiprocessing.get_context("spawn")
            others = [
                context.Process(target=_join, args=(arguments,)) for _ in range(processes - 1)
            ]
            for process in others:
                process.start()
            try:
                _work(folder, run)
            finally:
                for process in others:
                    process.join()
    report = json.loads((folder / "report.json").read_text())
    if not report["documents_out"]:
        worst = max(report["steps"], key=lambda step: sum(step["removed"].values()))
        why = f"{worst['step']} removed {json.dumps(worst['removed'])}"
        given = f"nothing is left of {report['documents_in']} documents: {why}"
        raise InputError(
            f"{given}; see {folder / 'report.json'}, then relax or leave out that step"
        )
    return report


def _join(arguments: dict[str, Any]) -> None:
    """What another process does. What goes wrong, the first one meets too, and says."""
    folder = Path(arguments["out"]).expanduser()
    with suppress(InputError, RunError, KeyboardInterrupt):
        config, run = _prepare(**arguments)
        with _shared(folder, config):
            if not (folder / "report.json").exists():
                _work(folder, run)


def _prepare(
    out: str,
    path: str,
    reader: str,
    field: str,
    splits: tuple,
    steps: tuple,
    shard: int,
    **sections,
) -> tuple[dict[str, Any], stages.Pass]:
    """Returns all that the output depends on, and the pass."""
    folder = Path(out).expanduser()
    if not out or "://" in out:
        raise InputError(f"--out={out!r} is no local folder; name one, and copy it afterwards")
    root = Path(path).expanduser() if path else None
    if root and root.exists() and folder.resolve().is_relative_to(root.resolve()):
        raise InputError(f"--out={out} lies in --path={path}; the output would be read as input")
    made, config = [], dict(format=FORMAT, reader=reader, field=field, splits=list(splits))
    config |= dict(unicode=unicodedata.unidata_version, shard=shard, steps=list(steps))
    for what, names in (("step", steps), ("split", splits)):
        if len(set(names)) < len(names) or not names:
            raise InputError(f"--{what}s={','.join(names)}: expected names, each of them once")
    if extra := sorted(set(sections) - set(steps)):
        given = f"--{extra[0]}.* are arguments of a step that is not done"
        raise InputError(f"{given}; add it to --steps={','.join(steps)}")
    for name in steps:
        make = find("data.cleaning", name)
        section = complete(make, sections.get(name, {}), f"--{name}")
        step: Step = make(**section)
        made.append((name, step))
        config[name] = section | (dict(files=step.fingerprint) if step.fingerprint else {})
    found = stages.open_splits(find("data.readers", reader), path, field, splits)
    config["data"] = {split: records.fingerprint for split, records in found.items()}
    plan = stages.shards_of(found, shard)
    return config, stages.Pass(folder / "work", found, plan, stages.stages_of(made))


@contextmanager
def _shared(folder: Path, config: dict[str, Any]) -> Iterator[None]:
    """Enters the folder of this pass; the last one to leave it removes the tasks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"--out={folder} cannot be used as a folder ({error.strerror})") from None
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_SH)
        _refuse_others(folder, json.loads(json.dumps(config)))
        yield
        with suppress(OSError):  # others are at work, and the last of them will do it
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder / "work", ignore_errors=True)
    finally:
        os.close(lock)


def _refuse_others(folder: Path, config: dict[str, Any]) -> None:
    """Makes an empty folder this pass's; raises InputError for what is another's."""
    file = folder / "config.json"
    if not file.exists():
        other = [name for name in os.listdir(folder) if not name.startswith(".config")]
        if other and not file.exists():  # else another process of this pass was first
            raise InputError(f"--out={folder} holds {other[0]!r}, of no pass; name a new folder")
        new = folder / f".config.{os.getpid()}"
        try:
            new.write_text(json.dumps(config, indent=2) + "\n")
            with suppress(FileExistsError):
                os.link(new, file)  # the first one decides; below the others compare
            new.unlink()
        except OSError as error:
            raise InputError(f"--out={folder} cannot be written ({error.strerror})") from None
    try:
        stored = json.loads(file.read_text())
    except ValueError:
        raise InputError(f"{file} is damaged; name another --out") from None
    old, new = _flat(stored), _flat(config)
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if keys:
        diff = "; ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys)
        raise InputError(f"--out={folder} belongs to another pass ({diff}); name another --out")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _work(folder: Path, run: stages.Pass) -> None:
    """Does all tasks, then moves what they made into the folder: report.json, the end, last."""
    stages.work(run)
    outputs = {
        run.folder / f"out-{shard.file}": functools.partial(stages.write, run, shard)
        for shard in run.shards
    }
    stages.done_all(run.folder, outputs)
    report = run.folder / "report"
    stages.done_all(run.folder, {report: functools.partial(_report, run)})
    made = [task / shard.file for task, shard in zip(outputs, run.shards, strict=True)]
    with stages.claim(run.folder / "locks" / "move", wait=True):
        for file in [*made, report / "removed.jsonl", report / "report.json"]:
            with suppress(FileNotFoundError):  # moved already
                file.replace(folder / file.name)


def _report(run: stages.Pass, folder: Path) -> None:
    """Writes removed.jsonl and report.json. Times are not in it: they differ each time."""
    with open(folder / "removed.jsonl", "w", encoding="utf-8") as file:
        for shard in run.shards:
            found = [
                one
                for number in range(len(run.stages))
                for one in stages.removed(run, number, shard)
            ]
            for one in sorted(found, key=lambda one: one["index"]):
                index = one.pop("index") - shard.first
                line = dict(id=f"{shard.split}-{index}", name=run.splits[shard.split].name(index))
                if "of" in one:
                    one["of"] = _id(run, one["of"])
                file.write(json.dumps(line | one, ensure_ascii=False) + "\n")
    steps = [dict(step=name) | count for name, count in stages.counts(run).items()]
    report = {f"{what}_in": steps[0][f"{what}_in"] for what in ("documents", "bytes")}
    report |= {f"{what}_out": steps[-1][f"{what}_out"] for what in ("documents", "bytes")}
    text = json.dumps(report | dict(steps=steps), indent=2, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")


def _id(run: stages.Pass, index: int) -> str:
    place = bisect.bisect(run.shards, index, key=lambda shard: shard.start) - 1
    return stages.name_of(run.shards[place], index)


def table(report: dict[str, Any]) -> str:
    """Returns the report as lines to read."""
    lines = [f"{'step':16}{'documents':>12}{'MB':>10}  removed; changed"]
    for step in report["steps"]:
        why = ", ".join(f"{reason} {count}" for reason, count in sorted(step["removed"].items()))
        changed = {what: found["places"] for what, found in sorted(step["changed"].items())}
        why += "; " + ", ".join(f"{what} {count}" for what, count in changed.items())
        size = f"{step['documents_out']:>12,}{step['bytes_out'] / 1e6:>10.2f}"
        lines.append(f"{step['step']:16}{size}  {why.strip('; ')}")
    kept = f"{report['documents_out']:,} of {report['documents_in']:,} documents"
    lines.append(f"{kept}, {report['bytes_out'] / 1e6:.2f} of {report['bytes_in'] / 1e6:.2f} MB")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a pass and returns the exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m research.data.clean",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        epilog="--STEP.ARGUMENT=VALUE sets an argument of a step, e.g. --near.threshold=0.9",
    )
    for name, parameter in inspect.signature(clean).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            default = parameter.default
            shown = ",".join(default) if isinstance(default, tuple) else default
            needed = default is parameter.empty
            text = None if needed else f"default: {shown}"
            parser.add_argument(f"--{name}", type=Text, required=needed, help=text)

    def refuse(message: str) -> None:
        raise InputError(f"{message}; see `{parser.prog} --help`")

    parser.error = refuse
    try:
        known, rest = parser.parse_known_args(argv)
        report = clean(**complete(clean, vars(known), "--"), **_sections(rest))
    except (InputError, RunError) as error:
        print(f"clean: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return error.code
    print(table(report))
    return 0


def _sections(rest: list[str]) -> dict[str, dict[str, Any]]:
    """Returns --STEP.ARGUMENT=VALUE flags by step."""
    sections: dict[str, dict[str, Any]] = {}
    for text in rest:
        key, equals, value = text.removeprefix("--").partition("=")
        step, dot, name = key.rpartition(".")
        if not (text.startswith("--") and equals and dot and step and name):
            raise InputError(f"unknown argument {text!r}; expected --STEP.ARGUMENT=VALUE")
        sections.setdefault(step, {})[name] = Text(value)
    return sections


if __name__ == "__main__":
    sys.exit(main())
