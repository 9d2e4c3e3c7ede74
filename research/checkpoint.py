"""Saves the training state while training goes on, and restores it onto any mesh, bit for bit.

    checkpoints = Checkpoints(f"{workdir}/checkpoints", keep=3, best=("loss", "min"))
    checkpoints.save(step, state, metrics={"loss": 1.9}, extra={"data": fingerprint})
    step = checkpoints.newest()                       # the newest one that is sound
    state = checkpoints.restore(step, abstract_state)

A step is one folder: `state/` holds each leaf under its path, as orbax writes it, and manifest.json
a checksum of every leaf and a digest of every file. orbax copies, writes, commits and reads the
arrays. Its manager is not used: with it a flipped bit is restored as if nothing had happened, a NaN
metric evicts the best step, a changed dtype is cast silently, a changed shape is reported without a
name, and the remains of killed saves stay.
"""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from etils import epath

from research import hosts, manifest, signing, storage, tree
from research.arguments import InputError, RunError
from research.checksum import checksums
from research.manifest import DamagedError
from research.storage import StoreError, is_remote

COMMITTED = "commit_success.txt"  # written last
UNFINISHED = (".orbax-checkpoint-tmp", ".deleted")
DAMAGED = ".damaged"
OURS, PROBE = (*UNFINISHED, DAMAGED), f"probe{UNFINISHED[0]}"
WEIGHTS = ("params", "model_state", "ema")  # an optimizer may hold an infinity on purpose


class NonFiniteError(RunError):
    """A state whose weights are not finite is never saved."""


class Checkpoints:
    """The checkpoints of one run, in a folder that all processes share; every process calls this.

    Kept are the newest `keep` (at least 1), every step divisible by `keep_every`, and the best by a
    metric, as in ("loss", "min"). A step without that number, or with NaN, is never the best.
    `sign` and `verify` are PEM files of a private and a public key: each manifest is signed, and
    one without its signature is refused. Until a step is saved or set aside nothing changes.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        keep: int = 1,
        keep_every: int | None = None,
        best: tuple[str, str] | None = None,
        sign: str | None = None,
        verify: str | None = None,
    ):
        self._is_remote = is_remote(folder)
        # orbax refuses a relative one, at the save; absolute() would make gs://a into ./gs:/a.
        self.folder = epath.Path(folder) if self._is_remote else epath.Path(folder).absolute()
        self.keep, self.keep_every, self.best_metric = keep, keep_every, best
        self._keys = sign, verify
        # A store has no modes, and epath refuses any. A folder that fails to be made in the
        # background would leave threads that keep the process from ending for five minutes.
        mode = None if self._is_remote else 0o750
        now = ocp.options.AsyncOptions(
            post_finalization_callback=self._seal,
            create_directories_asynchronously=False,
            timeout_secs=600,  # one process that fails keeps the others waiting for so long
        )
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(async_options=now)
            ),
            file_options=ocp.options.FileOptions(path_permission_mode=mode),
            async_options=now,
        )
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future | None = None
        self._unsealed: str | None = None  # why the last manifest could not be written
        self._content: dict = {}  # of the manifest of the step being written
        self._notes: dict[int, dict] = {}
        self._sound: set[int] = set()

    def save(
        self,
        step: int,
        state: Any,
        metrics: dict | None = None,
        extra: dict | None = None,
        good: bool = True,
    ) -> None:
        """Copies the arrays and returns; writing goes on behind, and `state` may be donated.

        First waits for the save before it. A step that is already there is not written again.
        `metrics` are numbers to judge the step by, `extra` is anything JSON; `notes` returns both.
        One that is not `good` takes no place among the newest `keep`; the last one always stays.

        Raises OSError if this or the last save failed, NonFiniteError for weights that are not
        finite, ReplicaError when devices disagree about the state.
        """
        self.wait()
        hosts.on_first(self._prune)
        if not hosts.on_first(lambda: self._make_place(step)):
            return
        leaves = tree.flatten(state)
        sums = checksums(leaves)
        if bad := [path for path in sums.nonfinite if path.split("/")[0] in WEIGHTS]:
            raise NonFiniteError(f"step {step} is not saved: {', '.join(bad)} is not finite")
        numbers = {name: float(x) for name, x in (metrics or {}).items() if math.isfinite(x)}
        self._content = {
            "step": step,
            "good": good,
            "metrics": numbers,
            "extra": extra or {},
            "leaves": {path: [manifest.describe(x), sums[path]] for path, x in leaves.items()},
        }
        self._notes.pop(step, None)
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(leaves))
        self._attempt(lambda: self._orbax.save(self._where(), args=args))
        self._saving = self._pool.submit(self._orbax.wait_until_finished)

    def _make_place(self, step: int) -> bool:
        """Whether the step is not there yet. Sets aside what else has its name, tries the disk."""
        if step in self._steps():
            return False
        if (self.folder / str(step)).exists():
            self._set_aside(step)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            (self.folder / PROBE).write_bytes(bytes(1 << 16))
        finally:
            self._delete(self.folder / PROBE, is_step=False)
        return True

    def _seal(self) -> None:
        """Writes and signs the manifest; orbax calls it on the first process, before the commit. A
        failure is kept for `wait`: raised here, it would leave the others in a barrier."""
        self._unsealed = None
        folder = self.folder / str(self._content["step"])
        unfinished = folder.with_name(folder.name + UNFINISHED[0])  # in a store there is none
        folder = unfinished if unfinished.exists() else folder
        try:
            manifest.write(folder, self._content)
            if self._keys[0]:
                signing.sign(folder / manifest.NAME, self._keys[0], folder / manifest.SIGNATURE)
        except Exception as error:
            self._unsealed = str(error) or type(error).__name__

    def _discard_unsealed(self) -> str | None:
        if self._unsealed is not None:
            self._delete(self._where(), is_step=True)
        return self._unsealed

    def _attempt(self, call: Callable[[], Any]) -> None:
        """Turns whatever `call` raises into an OSError of one line, and removes what was begun: a
        full disk would stay full. One of several processes that fails ends, with PeerError: the
        others wait for it in the middle of orbax, which has no way back for them."""
        try:
            call()
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            told = f"{self._where()} was not saved: {reason}"
            if hosts.count() > 1:
                raise hosts.PeerError(f"{told}; start again") from error
            self._prune()
            raise OSError(told) from error

    def _where(self) -> epath.Path:
        return self.folder / str(self._content["step"])

    def is_saving(self) -> bool:
        """Tells whether the last save is still being written."""
        return self._saving is not None and not self._saving.done()

    def wait(self) -> None:
        """Returns when the last save is on disk and old steps are gone; OSError if it failed."""
        saving, self._saving = self._saving, None
        if saving is not None:
            self._attempt(saving.result)
            if reason := hosts.on_first(self._discard_unsealed):
                raise OSError(f"{self._where()} was not saved: {reason}")
            hosts.on_first(self._prune)  # all see the same steps afterwards

    def close(self) -> None:
        """Waits, then ends the background threads."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()
            self._orbax.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None or hosts.count() == 1:
            self.close()
        # Else the others may be gone, and the end of a save is waited for together.

    def steps(self) -> list[int]:
        """Returns the complete steps, ascending, sound or not."""
        return hosts.on_first(self._steps)

    def _steps(self) -> list[int]:
        # A local folder gets its name when it is complete: one of these two may have been lost.
        files = (COMMITTED,) if self._is_remote else (COMMITTED, manifest.NAME)
        names = {path.parent.name for file in files for path in self.folder.glob(f"*/{file}")}
        return sorted(int(name) for name in names if name.isdecimal())

    def latest(self) -> int | None:
        """Returns the newest complete step, sound or not."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Returns the complete step with the best metric, the earliest among equals."""
        return hosts.on_first(self._best)

    def _best(self) -> int | None:
        name, mode = self.best_metric or ("", "min")
        notes = {step: self._read(step) for step in self._steps() if name}
        metrics = {step: found["metrics"] for step, found in notes.items() if found}
        values = {step: numbers[name] for step, numbers in metrics.items() if name in numbers}
        return (min if mode == "min" else max)(values, key=values.get, default=None)

    def newest(
        self, set_aside: bool = False, before: int | None = None, every: int | None = None
    ) -> int | None:
        """Returns the newest sound step, None if none was ever saved. Only steps smaller than
        `before`, where it is given, and only multiples of `every` if there is one.

        A damaged one is reported and passed over; `set_aside` renames it to STEP.damaged, so that
        the step can be saved again. Raises DamagedError with a list when no sound one is left.
        """

        def find() -> list:
            found, faults = None, []
            if set_aside:  # so this process alone writes here
                self._tidy()
            if foreign := [n for n in self.others() if not any(k in n for k in OURS)]:
                hosts.warn(f"{', '.join(foreign)} in {self.folder} are not checkpoints; left alone")
            steps = [step for step in self._steps() if before is None or step < before]
            for step in reversed([s for s in steps if every and s % every == 0] or steps):
                try:
                    self._check(step)
                    found = step
                    break
                except DamagedError as error:
                    faults.append(str(error))
                    if set_aside:
                        self._set_aside(step)
            if found is None and before is None:
                gone = self.folder.glob(f"*{DAMAGED}*")
                faults += [f"{path} was set aside" for path in gone if not set_aside or not faults]
                if faults:
                    raise DamagedError(
                        f"no sound checkpoint is left in {self.folder}: {'; '.join(faults)}; "
                        "mend one of them, or use another --workdir to start afresh"
                    )
            return [found, faults]

        found, faults = hosts.on_first(find)
        for fault in faults:
            done = "it is set aside" if set_aside else "it is passed over"
            hosts.warn(f"damaged checkpoint: {fault}; {done}, going back to step {found}")
        return found

    def others(self) -> list[str]:
        """Returns the names in the folder that are no complete step."""
        steps = {str(step) for step in self._steps()}
        return sorted({path.name for path in self.folder.glob("*")} - steps)

    def set_aside(self, step: int) -> None:
        """Renames a step to STEP.damaged."""
        hosts.on_first(lambda: self._set_aside(step))

    def _set_aside(self, step: int) -> None:
        self._notes.pop(step, None)
        self._sound.discard(step)
        storage.move_aside(self.folder / str(step), DAMAGED, first=COMMITTED)

    def notes(self, step: int) -> dict:
        """Returns the manifest: step, metrics, extra, leaves, files. Raises InputError if there is
        no such step, DamagedError if it is not sound."""

        def read() -> dict:
            if step not in self._steps():
                there = ", ".join(map(str, self._steps())) or "none"
                raise InputError(f"no checkpoint of step {step} in {self.folder}; there: {there}")
            return self._check(step)

        return hosts.on_first(read)

    def _check(self, step: int) -> dict:
        """Reads the manifest, and once looks at the signature and at every file."""
        if step not in self._sound:
            folder = self.folder / str(step)
            if self._keys[1]:
                signing.verify(folder / manifest.NAME, self._keys[1], folder / manifest.SIGNATURE)
            self._notes[step] = manifest.read(folder)
            if self._notes[step].get("step") != step:  # signed perhaps, but for another place
                raise DamagedError(
                    f"{folder} is step {self._notes[step].get('step')} by its manifest"
                )
            manifest.check_files(folder, self._notes[step])
            self._sound.add(step)
        return self._notes[step]

    def _read(self, step: int) -> dict | None:
        """The manifest without looking at the files, None where it cannot be read."""
        if step not in self._notes:
            try:
                self._notes[step] = manifest.read(self.folder / str(step))
            except DamagedError:
                return None
        return self._notes[step]

    def restore(self, step: int, abstract: Any, only: Iterable[str] | None = None) -> Any:
        """Returns the state of `step` in the structure and with the shardings of `abstract`.

        `abstract` has ShapeDtypeStructs of any mesh. `only` names the fields to read, as in
        ("params", "model_state"); the leaves of others come back as None and cost nothing.
        Raises InputError naming every leaf that is missing, unknown, or of another shape or dtype,
        and DamagedError when a file or a restored array is not what was saved.
        """
        where, fields = self.folder / str(step), None if only is None else set(only)
        stored, wanted = (
            {path: x for path, x in leaves.items() if not fields or path.split("/")[0] in fields}
            for leaves in (self.notes(step)["leaves"], tree.flatten(abstract))
        )
        manifest.refuse_mismatch(stored, wanted, where)
        leaves = self.load(step, wanted)
        return tree.map_named(lambda path, _: leaves.get(path), abstract)

    def check_arrays(self, step: int) -> None:
        """Reads each array of a step, one at a time onto one device, and raises DamagedError when
        it is not what was saved; InputError and DamagedError as `notes`."""
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        for path, (described, _) in self.notes(step)["leaves"].items():
            dtype, sizes = manifest.parse(described)
            try:
                leaf = jax.ShapeDtypeStruct(sizes, jax.numpy.dtype(dtype), sharding=one)
            except TypeError:
                raise DamagedError(f"{path} of step {step} is said to be {described}") from None
            self.load(step, {path: leaf})

    def load(self, step: int, wanted: dict[str, Any]) -> dict[str, jax.Array]:
        """Reads leaves by path, as they lie there, and holds them against their checksums."""
        where = self.folder / str(step)
        placed = ocp.checkpoint_utils.construct_restore_args(wanted)
        items = {"state": ocp.args.PyTreeRestore(wanted, placed, partial_restore=True)}
        try:
            leaves = self._orbax.restore(where, args=ocp.args.Composite(**items)).state
        except (StoreError, jax.errors.JaxRuntimeError):  # a device without room, say
            raise
        except Exception as error:
            self._sound.discard(step)
            self.notes(step)  # raises if a file was damaged meanwhile; else nothing is proved
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise StoreError(f"{where} cannot be read: {reason}") from error
        stored = self.notes(step)["leaves"]
        found = checksums(
            {path: leaf for path, leaf in leaves.items() if isinstance(leaf, jax.Array)}
        )
        if changed := [path for path in wanted if found.get(path) != stored[path][1]]:
            raise DamagedError(f"{where}: {', '.join(changed)} not as saved (checksums differ)")
        return leaves

    def _tidy(self) -> None:
        """Deletes what killed or failed saves and deletions left behind."""
        steps = self._steps()
        for path in self.folder.glob("*"):
            is_torn = path.name.isdecimal() and int(path.name) not in steps
            if (is_torn and self._is_remote) or path.name.endswith(UNFINISHED):
                self._delete(path, is_step=False)

    def _prune(self) -> None:
        """Deletes steps that need not be kept, and remains."""
        self._tidy()
        steps = self._steps()
        notes = {step: self._read(step) for step in steps}
        good = [step for step, found in notes.items() if found and found["good"]]
        kept = {self._best(), *steps[-1:], *good[-self.keep :]}
        kept |= {step for step, found in notes.items() if not found}  # perhaps readable tomorrow
        kept |= {step for step in steps if self.keep_every and step % self.keep_every == 0}
        for step in (step for step in steps if step not in kept):
            self._delete(self.folder / str(step), is_step=True)

    def _delete(self, path: epath.Path, is_step: bool) -> None:
        """Hides a step in one move before it goes: half a step is never listed. Fails in words."""
        try:
            if is_step and self._is_remote:  # an object store cannot rename
                (path / COMMITTED).unlink()
            elif is_step:
                path = path.rename(path.with_name(path.name + UNFINISHED[1]))
            path.rmtree() if path.is_dir() else path.unlink()
        except OSError as error:
            hosts.warn(f"{path} cannot be deleted: {error}")
