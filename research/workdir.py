"""The folder of a run: config.json, environment.json and the tokenizer.

workdir/  config.json  environment.json  metrics.jsonl  events.*  checkpoints/  loss.png  pictures/
"""

import importlib.metadata
import json
import platform
import sys
from typing import Any

import jax
import ml_collections
from etils import epath

from research import config as config_lib
from research.arguments import InputError, masked
from research.storage import StoreError

PACKAGES = ("anneal", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def read_config(workdir: str) -> ml_collections.FrozenConfigDict | None:
    """Returns the config of a workdir, None if it has none yet."""
    path = epath.Path(workdir) / "config.json"
    try:
        return config_lib.from_json(path.read_bytes()) if path.exists() else None
    except OSError as error:
        raise InputError(f"--workdir={workdir} cannot be read: {error}") from None


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


def write_config(
    folder: epath.Path, config: ml_collections.FrozenConfigDict, tokenizer: Any = None
) -> None:
    """Writes config.json, environment.json and the tokenizer, each whole or not at all. Raises
    StoreError where there is no room, before the first step is paid for."""
    if jax.process_index() != 0:
        return
    writers = {
        "config.json": lambda path: path.write_text(config_lib.to_json(config)),
        "environment.json": lambda path: path.write_text(json.dumps(environment(), indent=2)),
    }
    if tokenizer is not None:
        writers["tokenizer.json"] = tokenizer.save
    for name, write in writers.items():
        try:
            write(folder / f"{name}.tmp")
            (folder / f"{name}.tmp").replace(folder / name)
        except OSError as error:
            raise StoreError(f"{folder / name} cannot be written: {error}") from error


def environment() -> dict:
    """Returns versions and devices: what a result depends on beside the config."""
    return {
        "argv": [_public(argument) for argument in sys.argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
    }


def _public(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return f"{name}={masked(name, value)}" if equals else masked("", argument)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
