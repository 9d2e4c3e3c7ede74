"""Saves the training state while training goes on, and restores it onto any mesh, bit for bit.

    checkpoints = Checkpoints(f"{workdir}/checkpoints", keep=3, best=("loss", "min"))
    checkpoints.save(step, state, metrics={"loss": 1.9}, extra={"data": fingerprint})
    state = checkpoints.restore(checkpoints.latest(), abstract_state)

orbax copies, writes, commits and reads the arrays. Its manager is not used: with it a NaN metric
evicts the best step, a changed dtype is cast silently, a changed shape is reported without a name,
and the remains of killed saves stay. A step is one folder: `state/` holds each leaf under its path,
`notes/metadata` is JSON, and COMMITTED is written last: without it there is no checkpoint.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from research import tree
from research.arguments import InputError

COMMITTED = "commit_success.txt"
UNFINISHED = (".orbax-checkpoint-tmp", ".deleted")


class Checkpoints:
    """The checkpoints of one run, in a folder that all processes share; every process calls this.

    Kept are the newest `keep` (at least 1), every step divisible by `keep_every`, and the best by a
    metric, as in ("loss", "min"). A step without that number, or with NaN, is never the best.
    Only `save` starts changing the folder, so one may evaluate what another run is still writing.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        keep: int = 1,
        keep_every: int | None = None,
        best: tuple[str, str] | None = None,
    ):
        self.folder = epath.Path(folder).absolute()  # orbax refuses a relative one, at the save
        self.keep, self.keep_every, self.best_metric = keep, keep_every, best
        self._is_remote = "://" in str(folder)
        mode = ocp.options.FileOptions(path_permission_mode=0o750)
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), file_options=mode)
        self._pending: int | None = None  # the step being written
        self._notes: dict[int, dict] = {}

    def save(
        self, step: int, state: Any, metrics: dict | None = None, extra: dict | None = None
    ) -> None:
        """Copies the arrays and returns; writing goes on behind, and `state` may be donated.

        First waits for the save before it, and raises OSError if that one failed. A step that is
        already there is not written again. `metrics` are numbers to judge the step by, `extra` is
        anything JSON; `notes` returns both.
        """
        self.wait()
        self._prune()
        if step in self.steps():
            return
        leaves = tree.flatten(state)
        numbers = {name: float(x) for name, x in (metrics or {}).items() if math.isfinite(x)}
        notes = {"step": step, "metrics": numbers, "extra": extra or {}}
        notes["leaves"] = {path: _describe(leaf) for path, leaf in leaves.items()}
        items = {"state": ocp.args.PyTreeSave(leaves), "notes": ocp.args.JsonSave(notes)}
        self._pending = step
        self._orbax.save(self.folder / str(step), args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Returns when the last save is on disk and old steps are gone; OSError if it failed."""
        step, self._pending = self._pending, None
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise OSError(f"{self.folder / str(step)} was not saved: {reason}") from error
        if step is not None:
            self._prune()
            multihost_utils.sync_global_devices("pruned")  # all see the same steps

    def close(self) -> None:
        """Waits, then ends the background threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def steps(self) -> list[int]:
        """Returns the complete steps, ascending."""
        names = (path.parent.name for path in self.folder.glob(f"*/{COMMITTED}"))
        return sorted(int(name) for name in names if name.isdecimal())

    def latest(self) -> int | None:
        """Returns the newest complete step."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Returns the complete step with the best metric, the earliest among equals."""
        name, mode = self.best_metric or ("", "min")
        metrics = {step: self.notes(step)["metrics"] for step in self.steps() if name}
        values = {step: found[name] for step, found in metrics.items() if name in found}
        return (min if mode == "min" else max)(values, key=values.get, default=None)

    def notes(self, step: int) -> dict:
        """Returns what is beside the arrays: step, metrics, extra, leaves; InputError if absent."""
        if step not in self._notes:
            if step not in self.steps():
                there = ", ".join(map(str, self.steps())) or "none"
                raise InputError(f"no checkpoint of step {step} in {self.folder}; there: {there}")
            text = (self.folder / str(step) / "notes" / "metadata").read_text()
            self._notes[step] = json.loads(text)
        return self._notes[step]

    def restore(self, step: int, abstract: Any, only: Iterable[str] | None = None) -> Any:
        """Returns the state of `step` in the structure and with the shardings of `abstract`.

        `abstract` has ShapeDtypeStructs of any mesh. `only` names the fields to read, as in
        ("params", "model_state"); the leaves of others come back as None and cost nothing.
        Raises InputError naming every leaf that is missing, unknown, or of another shape or dtype.
        """
        fields = None if only is None else set(only)
        stored, wanted = (
            {path: x for path, x in leaves.items() if not fields or path.split("/")[0] in fields}
            for leaves in (self.notes(step)["leaves"], tree.flatten(abstract))
        )
        _refuse_mismatch(stored, wanted, self.folder / str(step))
        placed = ocp.checkpoint_utils.construct_restore_args(wanted)
        items = {"state": ocp.args.PyTreeRestore(wanted, placed, partial_restore=True)}
        leaves = self._orbax.restore(
            self.folder / str(step), args=ocp.args.Composite(**items)
        ).state
        return tree.map_named(lambda path, _: leaves.get(path), abstract)

    def _prune(self) -> None:
        """Deletes steps that need not be kept, and what killed or failed saves left behind."""
        if jax.process_index() != 0:
            return
        steps = self.steps()
        for path in self.folder.glob("*"):
            is_torn = path.name.isdecimal() and int(path.name) not in steps
            if (is_torn and self._is_remote) or path.name.endswith(UNFINISHED):
                path.rmtree()
        kept = {self.best(), *steps[-self.keep :]}
        kept |= {step for step in steps if self.keep_every and step % self.keep_every == 0}
        for path in (self.folder / str(step) for step in steps if step not in kept):
            # Invisible in one move, so that a kill never leaves half a step listed.
            if self._is_remote:  # an object store cannot rename
                (path / COMMITTED).unlink()
            else:
                path = path.rename(path.with_name(path.name + ".deleted"))
            path.rmtree()


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _refuse_mismatch(stored: dict[str, str], wanted: dict[str, Any], where: epath.Path) -> None:
    wanted = {path: _describe(leaf) for path, leaf in wanted.items()}
    faults = [
        f"{path} is stored as {stored.get(path, 'nothing')}, wanted {wanted.get(path, 'nothing')}"
        for path in sorted({**stored, **wanted})
        if stored.get(path) != wanted.get(path)
    ]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise InputError(f"{where} does not fit this config: {'; '.join(faults[:5])}{more}")
