"""Where the numbers of a run go: metrics.jsonl always, TensorBoard, W&B, a live line.

    with Writer(workdir, total_steps=2000, resume_step=400) as writer:
        writer.write(step, "train", {"loss": 1.98, "time/step": 0.12, "time/tokens_per_s": 12_300})
        writer.flush()  # at each save

A line of metrics.jsonl is {"step": n, "split": "train", name: number, ...}, sorted by name. What is
not under "time/" is equal when a run is repeated. A number that is not finite is null, and its name
is listed under "nonfinite".
"""

import contextlib
import datetime
import importlib.util
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from research.arguments import InputError
from research.storage import is_remote

# What the live line shows of a training step, where it is known.
SHOWN = {
    "loss": "loss {:.4f}",
    "learning_rate": "lr {:.1e}",
    "time/tokens_per_s": "{:>9,.0f} tok/s",
    "time/examples_per_s": "{:>9,.0f} examples/s",
    "time/mfu_full": "mfu full {:.1%}",
    "time/mfu_causal": "mfu causal {:.1%}",
}


class Writer:
    """Writes the numbers of one run; on processes that are not `active` it does nothing.

    What the run had written after `resume_step` is removed; 0 starts afresh. In a remote workdir
    files are written locally and copied there by `flush`. `wandb` names a project, which shows
    `config`; InputError if the package is missing.

    Storage that fails stops no training: lines that could not be written wait, and are written in
    their order, once, when it works again.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        total_steps: int,
        resume_step: int = 0,
        tensorboard: bool = True,
        wandb: str | None = None,
        config: dict | None = None,
        active: bool = True,
    ):
        self.workdir, self.total_steps, self.active = epath.Path(workdir), total_steps, active
        self._tensorboard = self._wandb = self._bar = None
        self._complained = False
        self._closing = contextlib.ExitStack()  # closes in the opposite order
        self._local, path = self.workdir, self.workdir / "metrics.jsonl"
        if not active:
            return
        if wandb is not None and importlib.util.find_spec("wandb") is None:
            raise InputError(f"config.log.wandb={wandb!r} needs wandb; run pip install wandb")
        self.workdir.mkdir(parents=True, exist_ok=True)
        truncate(path, resume_step or -1)
        if is_remote(path):
            self._local = epath.Path(self._closing.enter_context(tempfile.TemporaryDirectory()))
            path = path.copy(self._local / path.name)
            self._closing.callback(self.flush)
        # No buffer: what was written is known, so that a line is never there one and a half times.
        self._lines = self._closing.enter_context(open(os.fspath(path), "r+b", buffering=0))
        self._end, self._waiting = self._lines.seek(0, os.SEEK_END), b""
        self._closing.callback(self._append, "")  # what still waits
        folder = str(self._local)
        if tensorboard:
            from tensorboardX import SummaryWriter  # slow to import

            # purge_step hides what is redone; two starts in one second would share a file name.
            purge, suffix = resume_step and resume_step + 1, f".{resume_step}"
            self._tensorboard = SummaryWriter(folder, purge_step=purge, filename_suffix=suffix)
            self._closing.callback(self._close_tensorboard)
        if wandb is not None:
            init = importlib.import_module("wandb").init
            self._wandb = init(project=wandb, name=self.workdir.name, dir=folder, config=config)
            self._closing.callback(self._wandb.finish)
        if Console().is_terminal:
            columns = BarColumn(), TextColumn("{task.fields[text]}")
            # No refresh thread: the line changes when there is something new to show.
            self._bar = self._closing.enter_context(Progress(*columns, auto_refresh=False))
            self._task = self._bar.add_task("", total=total_steps, completed=resume_step, text="")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def write(self, step: int, split: str, numbers: Mapping[str, Any]) -> None:
        """Writes numbers (floats or 0-d arrays) everywhere; the remaining time shown is of steps
        alone, from "time/step" in seconds: compilation, evaluation and saving do not count."""
        if not self.active:
            return
        numbers = {name: np.asarray(numbers[name]).item() for name in sorted(numbers)}
        bad = [name for name, number in numbers.items() if not math.isfinite(number)]
        line = {"step": step, "split": split} | numbers | dict.fromkeys(bad)
        self._append(json.dumps(line | ({"nonfinite": bad} if bad else {})) + "\n")
        if self._tensorboard_lives():
            for name, number in numbers.items():
                self._tensorboard.add_scalar(f"{split}/{name}", number, step)
        if self._wandb:
            self._wandb.log({f"{split}/{name}": x for name, x in numbers.items()}, step=step)
        text = progress_line(step, self.total_steps, split, numbers)
        if self._bar and split == "train":
            self._bar.update(self._task, completed=step, text=text, refresh=True)
        else:
            with contextlib.suppress(OSError):  # a full disk behind stdout
                print(text, flush=True)  # above the bar, where there is one

    def flush(self) -> None:
        """Copies the files to a remote workdir; TensorBoard's last numbers may follow later."""
        if not self.active:
            return
        if not self._lines.closed:
            self._append("")
        with self._tolerant():
            if self._tensorboard_lives():
                self._tensorboard.flush()
            files = self._local.iterdir() if self._local != self.workdir else ()
            for path in (path for path in files if path.is_file()):
                path.copy(self.workdir / path.name, overwrite=True)

    def _tensorboard_lives(self) -> bool:
        """tensorboardX's thread dies of its first OSError, and then all who write to it wait for
        ever. metrics.jsonl has every number; TensorBoard misses those until the next start."""
        if self._tensorboard is None:
            return False
        writer = getattr(self._tensorboard.file_writer, "event_writer", None)
        worker = getattr(writer, "_worker", None)
        if worker is None or worker.is_alive():
            return True
        self._tensorboard = None
        with contextlib.suppress(OSError):
            text = "anneal: TensorBoard cannot be written, and is left out until the next start"
            print(text, file=sys.stderr, flush=True)
        return False

    def _close_tensorboard(self) -> None:
        with self._tolerant():
            if self._tensorboard_lives():
                self._tensorboard.close()

    def _append(self, line: str) -> None:
        self._waiting += line.encode()
        with self._tolerant():
            try:
                self._lines.seek(self._end)
                written = 0
                while written < len(self._waiting):
                    written += self._lines.write(self._waiting[written:])
            except OSError:
                self._lines.truncate(self._end)  # half a line would be read as none
                raise
            self._end, self._waiting = self._end + written, b""
            self._complained = False

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Says that storage fails, once until it works again, and goes on."""
        try:
            yield
        except OSError as error:
            if not self._complained:
                print(f"metrics are not written for now: {error}", file=sys.stderr, flush=True)
            self._complained = True


def read(path: epath.PathLike) -> list[dict]:
    """Returns the lines of a metrics.jsonl. A half-written last one, from a kill, is left out, and
    so is a damaged one, with a warning."""
    lines, found = epath.Path(path).read_bytes().splitlines(), []
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
            if not isinstance(line["step"], int):
                raise ValueError("no step")
            found.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            if number < len(lines) or text.endswith(b"}"):
                print(f"anneal: {path}:{number} is damaged and left out", file=sys.stderr)
    return found


def truncate(path: epath.PathLike, step: int) -> None:
    """Removes lines after `step` and a half-written last one; makes an empty file of none."""
    path = epath.Path(path)
    lines = read(path) if path.exists() else []
    new = path.with_name(path.name + ".new")
    new.write_text("".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step))
    new.replace(path)


def progress_line(step: int, total: int, split: str, numbers: Mapping[str, float]) -> str:
    """Returns `step   200/2000  loss 1.9823  lr 1.8e-03     12,345 tok/s  eta 0:01:23`."""
    parts = [f"step {step:>{len(str(total))}}/{total}"]
    if split != "train":
        shown = [f"{name} {x:.4f}" for name, x in numbers.items() if not name.startswith("time/")]
        return "  ".join([*parts, split, *shown])
    parts += [form.format(numbers[name]) for name, form in SHOWN.items() if name in numbers]
    if "time/step" in numbers:
        seconds = round((total - step) * numbers["time/step"])
        parts.append(f"eta {datetime.timedelta(seconds=seconds)}")
    return "  ".join(parts)
