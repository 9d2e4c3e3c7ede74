"""A config file -> checked, complete, frozen values.

`load("configs/nlp/gpt.py:tiny", ["config.optim.lr.peak=3e-4"])` runs the file's `get_config`,
applies the overrides, checks every key against the signature that will receive it, and fills in
every default, so that config.json says all there is to know about a run.
"""

import importlib.util
import inspect
import json
import math
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import ml_collections
import optax

from research import contradictions, lookup
from research.arguments import (
    Count,
    InputError,
    NonNegative,
    Positive,
    Precision,
    Rate,
    Seed,
    Size,
    Text,
    check,
    complete,
    masked,
    nearest,
)  # fmt: skip

# The installed tree: config files are found here when they are not below the current folder.
ROOT = Path(__file__).resolve().parent.parent

# Sections that name a file, and the folder the file is in.
NAMED = {"model": "models", "task": "tasks", "data": "data"}
# Sections that hold an ordered tuple of names, `chain`, and a section for each name.
CHAINS = {"optim": "optim", "gradients": "gradients"}
# Tuples of names that have a section each beside them.
LISTS = ("chain", "names", "pipeline", "eval_pipeline")
# Arguments that the program passes itself; a config does not set them.
SUPPLIED = {
    "model": ("precision",),
    "task": (),
    "data": ("split", "seed", "batch"),
    "optim": (),
    "gradients": ("grad_fn",),
}
# What may differ when a run is resumed: none of it changes the numbers a step computes.
MAY_DIFFER = (
    "mesh", "log", "checkpoint", "data.workers", "guard.replicas_every", "guard.hang_after",
)  # fmt: skip


# A section of fixed keys is described like everything else: by a signature.
def top(
    steps: Count,
    batch: Count,
    model: dict,
    task: dict,
    data: dict,
    optim: dict,
    gradients: dict | None = None,
    seed: Seed = 0,
    precision: Precision = "fp32",
    freeze: tuple = (),
    lora: dict | None = None,
    init_from: str | None = None,
    init_rules: tuple = (),
    ema: Rate | None = None,
    swa: dict | None = None,
    mesh: dict | None = None,
    eval: dict | None = None,
    checkpoint: dict | None = None,
    guard: dict | None = None,
    log: dict | None = None,
) -> None:
    """The top level. `steps` = global batches; `batch` = examples in one, over all devices;
    `freeze` = regexes over paths of parameters that stay as they are; `ema` = decay of an average
    of the weights. `init_from` = hf:FOLDER or a workdir that a new run takes its parameters from,
    `init_rules` = what to take instead of the same path: (regex, "skip" or a path there), ordered.
    """


def swa(start: Size | None = None, every: Count = 1) -> None:
    """Stochastic weight averaging: equal weights from step `start` (None: off) at every n-th."""


def lora(
    rank: Count | None = None,
    alpha: Positive = 16.0,
    targets: tuple = (r"(attention|cross)/([qkv]|out)$",),
    train: tuple = (),
) -> None:
    """Low-rank adapters (None: off) at the weights that match a regex of `targets`; what matches
    none of `train` stays as it is. Updates are scaled by alpha / rank."""


def mesh(
    stage: Count = 1,
    data: Count | None = None,  # None: all the devices that the other axes leave
    fsdp: Count = 1,
    seq: Count = 1,
    tensor: Count = 1,
    expert: Count = 1,
    replicate: tuple = (),  # logical axes that may be replicated where they do not divide
) -> None:
    """Devices along each axis of the mesh."""


def eval(
    every: Count | None = None,
    split: str = "validation",
    batch: Count | None = None,
    beams: Count | None = None,
    length_penalty: NonNegative = 0.6,
) -> None:
    """Steps between evaluations (None: at the end); `batch` None: the training batch. `beams`: also
    decode the split, by beam search with `length_penalty` (1: greedy), and judge the texts (None:
    only `anneal evaluate` does, greedily)."""


def checkpoint(
    every: Count | None = None,
    keep: Count = 2,
    keep_every: Count | None = None,
    best: str | None = None,
    best_mode: Literal["min", "max"] = "min",
    sign: str | None = None,
    verify: str | None = None,
) -> None:
    """Steps between saves (None: at the end); keeps the newest, every n-th and the best. `sign` is
    a PEM file with a private key, `verify` one with a public key: then only signed ones are read.
    """


def guard(
    spike: Positive | None = 10.0,
    refuse_spikes: bool = False,
    window: Count = 64,
    rollback_after: Count | None = 5,
    replicas_every: Count | None = None,
    hang_after: Positive | None = 1800.0,
) -> None:
    """A loss `spike` deviations above the median of the last `window` is reported, or refused.
    After `rollback_after` refused updates in a row the run goes back to a good checkpoint and skips
    the batches since. Every `replicas_every` steps (None: at saves) all copies of the state are
    compared. After `hang_after` seconds without a step (the first one compiles) the run ends."""


def log(every: Count = 10, tensorboard: bool = True, wandb: str | None = None) -> None:
    """Steps between lines of metrics.jsonl; `wandb` names a Weights & Biases project."""


FIXED = {
    "mesh": mesh, "eval": eval, "checkpoint": checkpoint, "guard": guard, "log": log, "swa": swa,
    "lora": lora,
}  # fmt: skip


def load(spec: str, overrides: Iterable[str] = ()) -> ml_collections.FrozenConfigDict:
    """Returns the complete config of `FILE[:variant]` with `config.key=value` overrides.

    Raises InputError for a missing file, an unknown variant or key, a wrong type or range.
    """
    file, _, variant = spec.partition(":")
    path = None
    with suppress(OSError):  # a name too long for a file
        files = (path for path in (Path(file), ROOT / file) if path.is_file())
        path = next((path for path in files if path.suffix == ".py"), None)
    if path is None:
        known = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "configs").glob("*/*.py"))]
        raise InputError(
            f"--config={file} is not a Python file here or in the project{nearest(file, known)}"
        )
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(module_spec)
    given = {"variant": variant} if variant else {}
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError(
                f"--config={file} has no function get_config(); add one that returns a dict"
            )
        if variant and "variant" not in inspect.signature(module.get_config).parameters:
            raise InputError(f"--config={spec}: {file} has no variants; leave out ':{variant}'")
        given = complete(module.get_config, given, f"--config={file}")
        config = ml_collections.ConfigDict(module.get_config(**given))
    except InputError:
        raise
    except Exception as error:  # whatever the file does wrong; a SyntaxError names its own line
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f":{frame.lineno}" for frame in frames if frame.filename == module.__file__]
        where = f"--config={file}{lines[-1] if lines else ''}"
        raise InputError(f"{where} fails with {type(error).__name__}: {error}; mend it") from error
    return override(config, overrides)


def override(
    config: ml_collections.ConfigDict, overrides: Iterable[str]
) -> ml_collections.FrozenConfigDict:
    """Returns `config` with `config.key=value` overrides, checked and complete."""
    values = config.to_dict()
    with _in_one_line():
        for text in overrides:
            _override(values, text)
    return resolve(values)


def resolve(values: dict) -> ml_collections.FrozenConfigDict:
    """Checks `values` against the signatures they go to and adds the defaults of those."""
    with _in_one_line():
        config = _resolve(values)
        _refuse_odd(config, "config")
        return ml_collections.FrozenConfigDict(config)


def _resolve(values: dict) -> dict:
    config = complete(top, values, "config")
    for key, signature in FIXED.items():
        config[key] = complete(signature, config[key] or {}, f"config.{key}")
    for key, folder in NAMED.items():
        config[key] = lookup.section(folder, config[key], f"config.{key}", SUPPLIED[key])
    config["freeze"] = tuple(check(path, str, "config.freeze") for path in config["freeze"])
    rules = [check(rule, tuple, "config.init_rules") for rule in config["init_rules"]]
    if not all([type(text) for text in rule] == [str, str] for rule in rules):
        raise InputError(f"config.init_rules={rules} are no pairs; expected (regex, skip or path)")
    # What None in an optimizer's part stands for: a schedule spans the run, some know the model.
    of_model = ("width", "base_width", "num_layers")
    known = {"steps": config["steps"]} | {name: config["model"].get(name) for name in of_model}
    for key, folder in CHAINS.items():
        config[key] = _resolve_chain(key, folder, dict(config[key] or {}), known)
    if config["precision"] == "fp16" and "loss_scale" not in config["gradients"]["chain"]:
        # Behind what adds gradients up or takes two, in front of what looks at them.
        chain = config["gradients"]["chain"]
        adds = [i for i, n in enumerate(chain) if n in ("accumulate", "noise_scale", "sam")]
        end = max(adds, default=-1) + 1
        chain = (*chain[:end], "loss_scale", *chain[end:])
        given = config["gradients"] | {"chain": chain}
        config["gradients"] = _resolve_chain("gradients", "gradients", given, known)
    contradictions.refuse(config)
    return config


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Shortens what is said about a value that is long; a value too large or too deep to be read
    is bad input too."""
    try:
        yield
    except InputError as error:
        text = " ".join(str(error).split())
        raise InputError(text if len(text) < 1000 else f"{text[:600]} ... {text[-300:]}") from error
    except (OverflowError, RecursionError, MemoryError) as error:
        reason = str(error) or "too deep"
        raise InputError(f"the config has a value that cannot be read ({reason})") from error


def _refuse_odd(value: Any, where: str) -> None:
    """Raises InputError for what JSON cannot hold: then config.json would not be what was run."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or "." in key:
                raise InputError(f"{where} has the key {key!r}; expected a name without dots")
            _refuse_odd(item, f"{where}.{key}")
    elif isinstance(value, tuple | list):
        for item in value:
            _refuse_odd(item, where)
            if isinstance(item, dict):
                raise InputError(f"{where} holds a dict in a tuple; expected numbers, text, tuples")
    elif not isinstance(value, str | int | float | None):
        shown = masked(where, value)
        raise InputError(f"{where}={shown!r} is no number, text, tuple or dict")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}={value} is not a finite number")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise InputError(f"{where}={value} does not fit into 64 bits; set a smaller number")


def _resolve_chain(key: str, folder: str, section: dict, known: dict) -> dict:
    result: dict[str, Any] = {}
    if key == "optim":
        given = section.pop("state_dtype", "fp32")
        kinds = Literal["fp32", "bf16", "fp8"]
        result["state_dtype"] = check(given, kinds, f"config.{key}.state_dtype")
    where = f"config.{key}.chain"
    chain = check(section.pop("chain", ()), tuple, where)
    chain = tuple(check(name, str, where) for name in chain)
    where = f"{where}={','.join(chain)}"
    if len(set(chain)) < len(chain):
        raise InputError(f"{where} holds a name twice; name each once, as it has one section")
    for name in section:
        if name not in chain:
            raise InputError(f"config.{key}.{name} is not in {where}; add it there")
    result["chain"] = chain
    for name in chain:
        make = lookup.find(folder, name, optax if folder == "optim" else None)
        given = section.get(name)
        given = check({} if given is None else given, dict, f"config.{key}.{name}")
        result[name] = complete(make, given, f"config.{key}.{name}", SUPPLIED[key])
        result[name] |= {k: known[k] for k, v in result[name].items() if v is None and k in known}
    # Updates point uphill until a learning rate turns them around: none climbs, two climb again.
    rates = sum(_applies_rate(name, result[name]) for name in chain)
    if key == "optim" and rates != 1 and not any("." in name for name in chain):
        advice = "add 'lr'" if rates == 0 else "keep one"
        raise InputError(f"{where} applies a learning rate {rates} times, not once; {advice}")
    return result


def _applies_rate(name: str, arguments: dict) -> bool:
    """Whether an update leaves the part `name` of a chain with its sign turned: ours is `lr`;
    optax's take a learning rate, of which only one scale_by_... turns the sign."""
    if name.startswith("scale_by_"):
        return name == "scale_by_learning_rate"
    return name == "lr" or any(key.endswith("learning_rate") for key in arguments)


def _override(values: dict, override: str) -> None:
    path, equals, text = override.removeprefix("--").partition("=")
    keys = path.split(".")
    if not equals or keys[0] != "config" or len(keys) < 2:
        raise InputError(f"override {override!r} is not of the form --config.key=value")
    for depth, key in enumerate(keys[1:-1], start=2):
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise InputError(f"{'.'.join(keys[:depth])} is a value, so {path} cannot be set")
    # Another chain, mix or pipeline leaves behind the sections that the file wrote for its own.
    if keys[-1] in LISTS:
        rest = [_listed(values.get(key, ())) for key in LISTS if key != keys[-1]]
        for name in _listed(values.get(keys[-1], ())).difference(_listed(text), *rest):
            values.pop(name, None)
    values[keys[-1]] = Text(text)


def _listed(names: Any) -> set[str]:
    """Returns the names of a tuple, or of what was typed for one."""
    names = names.split(",") if isinstance(names, str) else names
    names = names if isinstance(names, tuple | list) else ()
    return {name.strip(" ()'\"") for name in names if isinstance(name, str)}


def to_json(config: ml_collections.FrozenConfigDict) -> str:
    """Returns the config as the text of config.json, with secrets masked."""
    return json.dumps(public(config.to_dict()), indent=2, default=list) + "\n"


def public(values: dict) -> dict:
    """Returns nested values with secrets masked (arguments.masked)."""
    return {
        key: public(value) if isinstance(value, dict) else masked(key, value)
        for key, value in values.items()
    }


def from_json(text: str | bytes) -> ml_collections.FrozenConfigDict:
    """Inverse of `to_json`: lists become the tuples they were. Raises InputError for other text."""

    def freeze(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: freeze(item) for key, item in value.items()}
        return tuple(freeze(item) for item in value) if isinstance(value, list) else value

    try:
        if not isinstance(values := json.loads(text), dict):
            raise ValueError("it is not an object")
        return ml_collections.FrozenConfigDict(freeze(values))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"the workdir's config.json is damaged ({error}); mend it, or use another --workdir"
        ) from None


def drift(stored: ml_collections.FrozenConfigDict, wanted: ml_collections.FrozenConfigDict) -> dict:
    """Returns {key: (stored, wanted)} of all that differs and may not when a run is resumed."""
    old, new = _leaves(public(stored.to_dict())), _leaves(public(wanted.to_dict()))
    return {
        key: (old.get(key, "absent"), new.get(key, "absent"))
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
        and not any(key == free or key.startswith(free + ".") for free in MAY_DIFFER)
    }


def _leaves(values: dict, prefix: str = "") -> dict[str, Any]:
    result = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        result |= _leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return result
