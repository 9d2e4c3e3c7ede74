"""The folder of a run: config.json, environment.json, and a lock that keeps a second writer out.

workdir/  config.json  environment.json  metrics.jsonl  events.*  checkpoints/  loss.png
"""

import importlib.metadata
import json
import os
import platform
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import jax
import ml_collections
from etils import epath

from research import config as config_lib
from research.arguments import InputError

PACKAGES = ("anneal", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class LockedError(Exception):
    """Another run writes to the workdir."""


def read_config(workdir: str) -> ml_collections.FrozenConfigDict | None:
    """Returns the config of a workdir, None if it has none yet."""
    path = epath.Path(workdir) / "config.json"
    return config_lib.from_json(path.read_text()) if path.exists() else None


def existing_config(workdir: str) -> ml_collections.FrozenConfigDict:
    """Returns the config of a workdir that must have one. Raises InputError."""
    config = read_config(workdir)
    if config is None:
        raise InputError(f"--workdir={workdir} has no config.json; train into it first")
    return config


def refuse_drift(
    stored: ml_collections.FrozenConfigDict,
    wanted: ml_collections.FrozenConfigDict,
    allowed: set[str],
) -> None:
    """Raises InputError with a diff when `wanted` would continue another run than `stored`."""
    drift = config_lib.drift(stored, wanted)
    drift = {key: change for key, change in drift.items() if key not in allowed}
    if drift:
        diff = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in drift.items())
        raise InputError(
            f"the workdir was trained with another config ({diff}); "
            "use another --workdir, or accept each key with --allow-drift=KEY"
        )


@contextmanager
def locked(workdir: str) -> Iterator[epath.Path]:
    """Creates the workdir and holds its lock. Raises InputError if it cannot be written and
    LockedError when a living run holds it; the lock of a dead process here is taken over."""
    folder = epath.Path(workdir)
    if jax.process_index() != 0:
        yield folder
        return
    lock = folder / "lock"
    owner = {"host": socket.gethostname(), "pid": os.getpid()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            try:
                # Create-if-absent is the whole protocol; epath cannot, object stores can.
                with fsspec.open(os.fspath(lock), "xb") as file:
                    file.write(json.dumps(owner).encode())
                break
            except FileExistsError:
                if _is_stale(lock, owner["host"]):
                    lock.unlink(missing_ok=True)
        else:
            raise LockedError(
                f"{workdir} is locked by another run ({lock.read_text()}); wait for it, "
                f"or remove {lock} if that run is gone"
            )
        if (folder / "checkpoints").is_file():
            raise NotADirectoryError("checkpoints is a file")
    except (OSError, NotADirectoryError) as error:
        raise InputError(f"--workdir={workdir} cannot be written: {error}") from error
    try:
        yield folder
    finally:
        lock.unlink(missing_ok=True)


def _is_stale(lock: epath.Path, host: str) -> bool:
    try:
        owner = json.loads(lock.read_text())
    except (ValueError, OSError):
        return False  # just being written, or just removed
    if owner["host"] != host:
        return False  # cannot be known from here
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def write_config(
    folder: epath.Path, config: ml_collections.FrozenConfigDict, tokenizer: Any = None
) -> None:
    """Writes config.json, environment.json and the tokenizer, each whole or not at all."""
    if jax.process_index() != 0:
        return
    writers = {
        "config.json": lambda path: path.write_text(config_lib.to_json(config)),
        "environment.json": lambda path: path.write_text(json.dumps(environment(), indent=2)),
    }
    if tokenizer is not None:
        writers["tokenizer.json"] = tokenizer.save
    for name, write in writers.items():
        write(folder / f"{name}.tmp")
        (folder / f"{name}.tmp").replace(folder / name)


def environment() -> dict:
    """Returns versions and devices: what a result depends on beside the config."""
    return {
        "argv": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
