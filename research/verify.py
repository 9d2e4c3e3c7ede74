"""Is a workdir sound? Every file by its digest, every array by its checksum, and what lies beside.

for line in verify("runs/gpt").lines: print(line)
"""

from collections.abc import Callable
from typing import NamedTuple

from research import metrics, workdir
from research.arguments import InputError, RunError
from research.checkpoint import Checkpoints
from research.data import tokenizer
from research.storage import StoreError


class Report(NamedTuple):
    """A line for each part, and whether all of them are sound."""

    lines: list[str]
    sound: bool


def verify(folder: str, public_key: str | None = None) -> Report:
    """Looks at everything in a workdir that a run would go on from, and changes nothing.

    Arrays are read one at a time onto one device. `public_key` is a PEM file: then a checkpoint
    without its signature is not sound. Raises InputError where there is no workdir.
    """
    path = workdir.epath.Path(folder)
    if not path.is_dir():
        raise InputError(f"--workdir={folder} is not a folder")
    lines, sound = [], True

    def look(name: str, check: Callable[[], str]) -> None:
        nonlocal sound
        try:
            lines.append(f"{name}: {check()}")
        except StoreError:
            raise  # the store is away: that says nothing of what is in it
        except (InputError, RunError, OSError, ValueError) as error:
            lines.append(f"{name}: DAMAGED: {error}")
            sound = False

    look("config.json", lambda: f"sound, {workdir.existing_config(folder).model.name}")
    if (path / "tokenizer.json").exists():
        look("tokenizer.json", lambda: f"sound, {tokenizer.load(path / 'tokenizer.json').kind}")
    if (path / "metrics.jsonl").exists():
        look("metrics.jsonl", lambda: _metrics(path / "metrics.jsonl"))
    with Checkpoints(path / "checkpoints", verify=public_key) as checkpoints:
        for step in checkpoints.steps():
            look(f"checkpoint {step}", lambda: _checkpoint(checkpoints, step))  # noqa: B023
        for name in checkpoints.others():
            lines.append(f"{name}: no checkpoint; set aside, unfinished or foreign")
        if not checkpoints.steps():
            lines.append("no checkpoint")
            sound &= not checkpoints.others()
    return Report(lines, sound)


def _metrics(path: workdir.epath.Path) -> str:
    found = metrics.read(path)
    steps = [line["step"] for line in found if line.get("split") == "train"]
    if steps != sorted(set(steps)):
        raise ValueError("its steps are not in order, each once")
    return f"sound, {len(found)} lines"


def _checkpoint(checkpoints: Checkpoints, step: int) -> str:
    notes = checkpoints.notes(step)
    checkpoints.check_arrays(step)
    size = sum(size for size, _ in notes["files"].values())
    return f"sound, {len(notes['leaves'])} arrays, {size / 1e6:,.1f} MB"
