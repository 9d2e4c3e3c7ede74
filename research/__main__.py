"""The command line: `anneal VERB ...`. A verb is listed once it works.

Exit codes: 0 done, 2 bad input, 3 locked by another run, 70 no step for long or another process
is gone, 74 checkpoints cannot be written, 75 preempted and saved, 1 anything else.
launch/requeue.sh starts a command again after 70 and 75.
"""

import argparse
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from research.arguments import InputError, RunError

PREEMPTED = 75
OVERRIDES = "--config.key=value overrides any value of the config"


class Parser(argparse.ArgumentParser):
    """Reports bad usage as one line, like every other bad input; no option may be abbreviated."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, **arguments)

    def error(self, message: str) -> None:
        raise InputError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("anneal").setLevel(logging.INFO)
    try:
        arguments, rest = parser().parse_known_args(argv)
        unknown = [text for text in rest if not text.startswith("--config.")]
        if unknown:
            raise InputError(f"unknown argument {unknown[0]!r}; see `anneal --help`")
        _check_workdir(arguments.workdir)
        with _joined(arguments.distributed):
            _keep_compilations()
            return arguments.verb(arguments, rest)
    except (InputError, RunError) as error:
        return _report(error)
    except BrokenPipeError:
        if arguments.verb is train:
            raise
        # `anneal generate | head` is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _report(error: InputError | RunError) -> int:
    print(f"anneal: {' '.join(str(error).splitlines())}", file=sys.stderr, flush=True)
    return error.code


@contextmanager
def _joined(distributed: bool) -> Iterator[None]:
    """Makes this process one of many where it was started as one."""
    if not distributed and "JAX_COORDINATOR_ADDRESS" not in os.environ:
        yield
        return
    from research import hosts

    hosts.join()
    try:
        yield
    except Exception as error:
        # At once: an orderly end waits for the others, who may wait for this one, or be gone.
        error, code = hosts.explain(error), 1
        if isinstance(error, InputError | RunError):
            code = _report(error)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)


def parser() -> Parser:
    """Returns the parser of all verbs."""
    top = Parser(prog="anneal", description=__doc__.splitlines()[0])
    top.add_argument("--distributed", action="store_true", help="one process of many: a cluster's")
    verbs = top.add_subparsers(required=True, metavar="VERB", parser_class=Parser)

    verb = verbs.add_parser("train", help="train a config in a workdir, or go on there")
    verb.add_argument("--config", required=True, metavar="FILE[:variant]")
    verb.add_argument("--workdir", required=True, metavar="DIR", help="a folder, or gs://...")
    verb.add_argument(
        "--stop-after", type=int, metavar="STEP", help="save and stop after this step"
    )
    verb.add_argument("--profile", metavar="START:STOP", help="trace these steps into DIR/profile")
    verb.add_argument("--debug-nans", action="store_true", help="stop where a NaN first appears")
    verb.add_argument("--allow-drift", action="append", default=[], metavar="KEY")
    verb.epilog = f"{OVERRIDES}, e.g. --config.optim.lr.peak=3e-4"
    verb.set_defaults(verb=train)

    verb = verbs.add_parser("evaluate", help="evaluate a checkpoint on a whole split")
    _add_weights(verb)
    verb.add_argument("--split", help="default: the config's eval.split")
    verb.set_defaults(verb=evaluate)

    verb = verbs.add_parser("verify", help="say what of a workdir is sound: every file and array")
    verb.add_argument("--workdir", required=True, metavar="DIR")
    verb.add_argument("--public-key", metavar="PEM", help="refuse checkpoints it has not signed")
    verb.set_defaults(verb=verify)

    verb = verbs.add_parser("generate", help="continue prompts; JSON lines in and out")
    _add_weights(verb)
    source = verb.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="TEXT")
    source.add_argument("--input", metavar="FILE", help='lines of {"prompt": TEXT}; - is stdin')
    verb.add_argument("--output", metavar="FILE", help="default: stdout")
    verb.add_argument("--max-tokens", type=int, metavar="N", help="default: what the context holds")
    verb.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    verb.add_argument("--top-k", type=int, default=0, help="0 keeps all")
    verb.add_argument("--top-p", type=float, default=1.0)
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--beams", type=int, metavar="N", help="beam search instead of sampling")
    verb.add_argument("--length-penalty", type=float, metavar="A", help="of beams; default: 0.6")
    verb.set_defaults(verb=generate)

    verb = verbs.add_parser("review", help="list the labels that a run doubts, for a person")
    _add_weights(verb)
    verb.add_argument("--output", required=True, metavar="FILE", help="lines of JSON, a new file")
    verb.add_argument("--split", default="train", help="better: what the run has not learned from")
    verb.add_argument("--top", type=int, metavar="N", help="default: all counted as wrong")
    verb.add_argument("--by", default="margin", metavar="margin|confidence")
    verb.set_defaults(verb=review)

    verb = verbs.add_parser("export", help="write a checkpoint as a Hugging Face folder")
    _add_weights(verb)
    verb.add_argument("--output", required=True, metavar="FOLDER", help="a new one")
    verb.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    verb.set_defaults(verb=export)
    return top


def _add_weights(verb: Parser) -> None:
    verb.add_argument("--workdir", required=True, metavar="DIR")
    verb.add_argument("--step", default="latest", metavar="latest|best|N")
    verb.add_argument("--weights", choices=("raw", "ema"), help="default: ema if the run kept it")
    verb.epilog = f"{OVERRIDES} of the workdir, e.g. --config.mesh.fsdp=1"


def _check_workdir(folder: str) -> None:
    if not folder:
        raise InputError("--workdir= is empty; name a folder, or gs://...")
    if "://" in folder:
        import fsspec

        import research.storage  # noqa: F401  says what gs:// is

        try:
            fsspec.get_filesystem_class(folder.partition("://")[0])
        except (ImportError, ValueError) as error:
            raise InputError(
                f"--workdir={folder}: {error}; gs:// needs: pip install gcsfs"
            ) from None


# Each verb imports what it needs, so that --help and bad usage answer at once.
def train(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """anneal train"""
    from research import config as config_lib

    config = config_lib.load(arguments.config, overrides)  # refused before much is imported
    profile = None
    if arguments.profile:
        try:
            first, stop = (int(part) for part in arguments.profile.split(":"))
        except ValueError:
            raise InputError(f"--profile={arguments.profile} is not START:STOP") from None
        profile = (first, stop)
    if arguments.stop_after is not None and arguments.stop_after < 1:
        raise InputError(f"--stop-after={arguments.stop_after} is not a step; expected at least 1")
    from research import train

    result = train.train(
        config,
        arguments.workdir,
        stop_after=arguments.stop_after,
        profile=profile,
        debug_nans=arguments.debug_nans,
        allow_drift=tuple(arguments.allow_drift),
    )
    return PREEMPTED if result.preempted else 0


def evaluate(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """anneal evaluate"""
    from research.evaluate import evaluate

    a = arguments
    print(json.dumps(evaluate(a.workdir, a.step, a.weights, a.split, overrides)))
    return 0


def verify(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """anneal verify"""
    from research.verify import verify

    if overrides:
        raise InputError(f"{overrides[0]}: verify takes no overrides")
    report = verify(arguments.workdir, arguments.public_key)
    for line in report.lines:
        print(line)
    return 0 if report.sound else 1


def generate(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """anneal generate"""
    from research.generate import generate

    a = arguments
    prompts = [a.prompt] if a.prompt is not None else list(_read_prompts(a.input))
    results = generate(
        a.workdir,
        prompts,
        step=a.step,
        weights=a.weights,
        max_tokens=a.max_tokens,
        temperature=a.temperature,
        top_k=a.top_k,
        top_p=a.top_p,
        seed=a.seed,
        beams=a.beams,
        length_penalty=a.length_penalty,
        overrides=overrides,
    )
    with _writing(a.output) as output:
        for result in results:
            print(json.dumps(result, ensure_ascii=False), file=output, flush=True)
    return 0


def review(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """anneal review"""
    from research.review import review

    a = arguments
    if Path(a.output).exists():  # it may hold a person's work
        raise InputError(f"--output={a.output} is there already; name a new file")
    with _writing(a.output) as output:
        lines, count = review(a.workdir, a.split, a.top, a.by, a.step, a.weights, overrides)
        for line in lines:
            print(json.dumps(line, ensure_ascii=False), file=output)
    print(f"{a.output}: {len(lines)} of {count} labels of split {a.split} are in doubt")
    return 0


def export(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """anneal export"""
    from research.export import export

    a = arguments
    files = export(a.workdir, a.output, a.step, a.weights, a.dtype, overrides)
    print(f"{a.output}: {', '.join(files)}")
    return 0


@contextmanager
def _writing(file: str | None) -> Iterator[TextIO]:
    """stdout, or FILE.part, which becomes FILE at the end; bad input leaves nothing behind."""
    if file is None:
        yield sys.stdout
        return
    part = Path(f"{file}.part")
    try:
        if Path(file).exists() and not Path(file).is_file():
            raise OSError("it is not a file")
        output = open(part, "w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output={file} cannot be written: {error}") from None
    try:
        with output:
            yield output
    except InputError:
        part.unlink()
        raise
    part.replace(file)


def _read_prompts(file: str) -> Iterator[str]:
    try:
        lines = (sys.stdin if file == "-" else open(file, encoding="utf-8")).readlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--input={file} cannot be read as text: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            prompt = None
        if not isinstance(prompt, str):
            raise InputError(f'{file}:{number} is not a JSON object like {{"prompt": "text"}}')
        yield prompt


def _keep_compilations() -> None:
    """Compiled programs are kept between runs, so that the second start is fast."""
    import jax

    from research import compilation_cache

    cache = os.environ.get("ANNEAL_CACHE", os.path.expanduser("~/.cache/anneal"))
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.join(cache, "xla"))
    if folder:  # JAX_COMPILATION_CACHE_DIR= asks for none
        compilation_cache.keep(folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


if __name__ == "__main__":
    sys.exit(main())
