"""Back-translation (arXiv:1511.06709): texts of the target language alone become training pairs.

    python -m research.recipes.back_translation --config=configs/nlp/translation.py \\
        --workdir=runs/bt --monolingual=de.txt --config.data.path=M30K

A model of the reverse direction makes a source for each line, by sampling (arXiv:1808.09381); what
looks wrong is left out, the rest is marked by a tag (arXiv:1906.06442), and the model is trained on
it beside the real pairs. In the workdir, in this order:

    recipe.json   the arguments        reverse/   the run from target to source, and its tokenizer
    synthetic/    lines.jsonl: what became of each line
    mixed/        train.jsonl and the split of evaluations; report.json counts what was left out
    forward/      the run on both: `anneal evaluate --workdir=runs/bt/forward`

The same command goes on with what was cut, and the result is the same.
"""

import argparse
import gzip
import hashlib
import inspect
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import ml_collections

from research import config as config_lib
from research import hosts
from research.arguments import InputError, NonNegative, Positive, Range, RunError, Seed, Size, Text
from research.arguments import complete as completed
from research.data import table
from research.data import tokenizer as tokenizer_lib
from research.data.readers import decode
from research.data.source import cached
from research.generate import generate
from research.lock import locked
from research.signals import catch_signals
from research.train import Result, train

PREEMPTED = 75


class Stopped(RunError):
    """A signal came while no run was there to save: the stage begins anew."""

    code = PREEMPTED


def back_translate(
    config: ml_collections.FrozenConfigDict,
    workdir: str,
    monolingual: str,
    *,
    ratio: Positive = 1.0,
    tag: str = "<BT> ",
    temperature: NonNegative = 1.0,
    top_k: Size = 0,
    max_ratio: Annotated[float, Range(1)] = 3.0,
    seed: Seed = 0,
) -> Result:
    """Does what is left to do of a recipe, and returns how its last training ended.

    `config` is that of the forward run, over data "pairs"; `monolingual` a file of lines in its
    target language (or a .gz). At most `ratio` lines for each real pair are taken, the first ones;
    `tag` begins each made source; `temperature`, `top_k` and `seed` are those of generate; sides of
    a pair whose numbers of characters differ by more than `max_ratio` times are left out.

    Raises InputError for other data, arguments that are not those that the workdir began with, and
    what train and generate refuse.
    """
    if config.data.name != "pairs":
        raise InputError(f"config.data.name={config.data.name}: back-translation needs pairs")
    if config.eval.split == "train":
        raise InputError("config.eval.split=train: the made pairs go there; name another split")
    if "://" in workdir:
        raise InputError(f"--workdir={workdir}: the stages lie in a local folder; name one")
    folder, data = Path(workdir).expanduser().resolve(), config.data.to_dict()
    text = _lines(monolingual)
    rules = dict(ratio=ratio, tag=tag, temperature=temperature, top_k=top_k, max_ratio=max_ratio)
    rules |= dict(seed=seed, lines=hashlib.sha256("\n".join(text).encode()).hexdigest())
    fields = (data["source"], data["target"])
    real = table.read(data["path"], "train", data["columns"], fields).rows
    with locked(str(folder)):
        _refuse_others(folder / "recipe.json", rules)
        hosts.say("back-translation 1 of 4: the reverse run")
        width, height = data["context"], data["target_context"] or data["context"]
        swapped = dict(source=fields[1], target=fields[0], context=height, target_context=width)
        result = train(_with(config, **swapped), str(folder / "reverse"))
        if result.preempted:
            return result

        hosts.say("back-translation 2 of 4: a source for each line")
        tokenizer = tokenizer_lib.load(folder / "reverse" / "tokenizer.json")
        report: Counter = Counter()
        lines = _fitting(text, tokenizer, height, report)[: round(ratio * len(real))]

        def translate(new: Path) -> None:
            options = dict(temperature=temperature, top_k=top_k, seed=seed, batch=config.batch)
            answers = generate(str(folder / "reverse"), lines, **options)
            file = open(new / "lines.jsonl", "w", encoding="utf-8")
            with file, catch_signals() as stopping:
                for answer in answers:
                    if stopping():
                        raise Stopped("stopped while sources were drawn; they are drawn again")
                    file.write(json.dumps(answer, ensure_ascii=False) + "\n")

        cached(folder / "synthetic", translate, "free some space")

        hosts.say("back-translation 3 of 4: both kinds of pairs in one folder")

        def mix(new: Path) -> None:
            made = (folder / "synthetic" / "lines.jsonl").read_text("utf-8").split("\n")[:-1]
            known = {tuple(row[name] for name in fields) for row in real}
            room = width - len(tokenizer.encode([tag], bare=True)[0])
            kept = sift(map(json.loads, made), known, room, max_ratio, report)
            if not kept:
                raise RunError(
                    f"no made pair is worth learning from ({dict(report)}): train the reverse run "
                    "for longer, in another workdir"
                )
            rows = real + [dict(zip(fields, (tag + a, b), strict=True)) for a, b in kept]
            judged = table.read(data["path"], config.eval.split, data["columns"], fields).rows
            for split, found in (("train", rows), (config.eval.split, judged)):
                texts = [{name: row[name] for name in fields} for row in found]
                _write_lines(new / f"{split}.jsonl", texts)
            counts = dict(real=len(real), lines=len(text), tried=len(made), kept=len(kept))
            counts |= dict(left_out=dict(sorted(report.items())))
            (new / "report.json").write_text(json.dumps(counts, indent=2) + "\n")

        mixed = cached(folder / "mixed", mix, "free some space")
        hosts.say((mixed / "report.json").read_text().strip())

        hosts.say("back-translation 4 of 4: the run on both")
        # The tokenizer knows real text alone: a run without the made pairs has the same one.
        path = data["tokenizer_path"] or str(folder / "reverse" / "tokenizer.json")
        both = dict(path=str(mixed), columns=None, tokenizer_path=path)
        return train(_with(config, **both), str(folder / "forward"))


def sift(
    answers: Iterable[dict[str, Any]],
    known: set[tuple[str, str]],
    room: int,
    max_ratio: float,
    report: Counter,
) -> list[tuple[str, str]]:
    """Returns (source, target) of each answer of generate that is worth learning from, and counts
    the others in `report`: an empty source, one that did not end in the `room` it had, a copy of
    its target, one of quite another length, a pair that is `known` or came before."""
    kept, known = [], set(known)
    for answer in answers:
        pair = source, target = answer["text"].strip(), answer["prompt"]
        sizes = sorted((len(source), len(target)))
        reasons = {
            "empty source": not source,
            "source does not end": answer["tokens"] >= room,
            "copy": source == target,
            "length ratio": sizes[1] > max_ratio * sizes[0],
            "duplicate": pair in known,
        }
        reason = next((name for name, found in reasons.items() if found), None)
        if reason:
            report[reason] += 1
        else:
            kept.append(pair)
            known.add(pair)
    return kept


def _fitting(lines: list[str], tokenizer: Any, context: int, report: Counter) -> list[str]:
    """The lines that a run can read and learn to write, each once."""
    lines = [line.strip() for line in lines]
    full = [line for line in lines if line]
    once = list(dict.fromkeys(full))
    ids = tokenizer.encode(once)
    fitting = [line for line, own in zip(once, ids, strict=True) if len(own) < context]
    counts = [len(kind) for kind in (lines, full, once, fitting)]
    names = ("empty line", "repeated line", "line too long")
    for name, before, after in zip(names, counts, counts[1:], strict=False):
        report[name] += before - after
    if not fitting:
        raise InputError("--monolingual has no line that fits config.data.context; give other text")
    return fitting


def _lines(file: str) -> list[str]:
    try:
        data = Path(file).expanduser().read_bytes()
        data = gzip.decompress(data) if file.endswith(".gz") else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"--monolingual={file} cannot be read: {error}; give a file") from None
    return decode(data, file).removesuffix("\n").split("\n")


def _write_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _refuse_others(file: Path, rules: dict[str, Any]) -> None:
    if not file.exists():
        new = file.with_suffix(".new")
        new.write_text(json.dumps(rules, indent=2) + "\n")
        new.replace(file)
    stored = json.loads(file.read_text())
    if diff := [f"{key}: {stored.get(key)!r} -> {rules[key]!r}" for key in rules
                if stored.get(key) != rules[key]]:  # fmt: skip
        raise InputError(
            f"{file.parent} began otherwise ({'; '.join(diff)}); use another --workdir"
        )


def _with(config: ml_collections.FrozenConfigDict, **data: Any) -> ml_collections.FrozenConfigDict:
    values = config.to_dict()
    return config_lib.resolve(values | {"data": values["data"] | data})


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe and returns the exit code, as `anneal train` does."""
    parser = argparse.ArgumentParser(
        prog="python -m research.recipes.back_translation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for name, parameter in inspect.signature(back_translate).parameters.items():
        needed = parameter.default is parameter.empty
        text = None if needed else f"default: {parameter.default!r}"
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=Text, required=needed, help=text)

    def refuse(message: str) -> None:
        raise InputError(f"{message}; see `{parser.prog} --help`")

    parser.error = refuse
    try:
        known, overrides = parser.parse_known_args(argv)
        config = config_lib.load(known.config, overrides)
        given = completed(back_translate, vars(known) | dict(config=config), "--")
        return PREEMPTED if back_translate(**given).preempted else 0
    except (InputError, RunError) as error:
        print(f"back_translation: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main())
