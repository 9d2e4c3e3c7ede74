"""Hugging Face weights in and out: make() -> Family, one file for each `model_type`.

    weights = load("folder")                     # .model: keywords of config.model; .read(path)
    config, tensors = describe(model, shapes)    # the way back: config.json, and every tensor

A family is a description, and both ways are read from it, so that they cannot drift apart: which of
their config's keys are which of ours, what the others must be, and for each of their tensors which
of our parameters lie in it. Paths are those of single layers, `layers/3/attention/q`.
"""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research import lookup, tensor_files
from research.arguments import InputError

Shape = tuple[int, ...]


class Tensor(NamedTuple):
    """One of their tensors. Several of `ours` lie side by side on the last axis of the matrix;
    a tuple of `theirs` is one of ours, stacked on its first axis (experts). Where ours has the
    same rank and more elements, it is padded with zeros at the end (the vocabulary)."""

    theirs: str | tuple[str, ...]
    shape: Shape
    ours: dict[str, Shape]
    transpose: bool = False  # torch's Linear is (out, in), ours are (in, out)


class Family(NamedTuple):
    """A kind of model over there, as ours."""

    architecture: str  # the class that transformers loads it with
    prefix: str  # of all tensors but the head; files of the bare model lack it
    model: dict[str, Any]  # keywords of config.model that all of the family share
    fields: tuple[tuple[str, str, Any], ...]  # (their key, our keyword, their default)
    fixed: dict[str, tuple]  # their key: what it may be; the first is the default, and is written
    harmless: tuple[str, ...]  # their keys that do not change what the model computes
    tensors: Callable[[dict], list[Tensor]]  # of a config.model in which nothing is None
    complete: Callable[[dict, dict[str, Shape]], dict]  # makes it so, by the parameters' shapes
    ignored: str = "(?!)"  # regex: buffers that some files hold and that are no weights
    repeated: dict[str, str] = {}  # tensors that a file may hold twice: the copy, the original
    read: Callable[[dict], dict] = lambda config: config  # old spellings of theirs become today's
    write: Callable[[dict], dict] = lambda config: config


class Weights(NamedTuple):
    """The weights of a folder as our parameters."""

    model: dict[str, Any]  # keywords of config.model, `name` among them
    shapes: dict[str, Shape]  # of each of our paths
    read: Callable[[str], np.ndarray]  # float32


# Keys that any config may hold: names, token ids, numbers of training and of generation.
HARMLESS = (
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "task_specific_params",
    "_name_or_path", "return_dict", "id2label", "label2id", "problem_type", "output_past",
    "attention_dropout", "max_length", "gradient_checkpointing", "chunk_size_feed_forward",
    "transformers.js_config",
)  # fmt: skip


# Settings of config.model that no family has.
ABSENT = {"base_width": None, "window": None}


def padded(vocab_size: int) -> int:
    """Returns the rows of our embedding for a vocabulary."""
    return -(-vocab_size // 128) * 128


def families() -> dict[str, Family]:
    """Returns all families by their `model_type`."""
    return {name: lookup.find("interop", name)() for name in lookup.names("interop")}


def load(folder: str) -> Weights:
    """Opens the weights of a local folder with config.json and safetensors.

    Raises InputError for a config that our models do not compute, naming the key, and for a tensor
    that is missing, superfluous or of another shape, naming tensor and file; when read, for one
    that is damaged.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(
            f"hf:{folder} is no folder here; give one with config.json and model.safetensors "
            "(fetch it first: hf download NAME --local-dir FOLDER)"
        )
    config = tensor_files.read_json(path / "config.json")
    kind, known = str(config.get("model_type")), families()
    if kind not in known:
        raise InputError(
            f"{path / 'config.json'}: model_type {kind!r} is not supported; "
            f"known: {', '.join(known)}"
        )
    family = known[kind]
    model = to_model(family, config, str(path / "config.json"))
    files = tensor_files.open_folder(path)
    table = family.tensors(model)
    names = _check_names(family, table, files)
    owners = {ours: (tensor, i) for tensor in table for i, ours in enumerate(tensor.ours)}

    def read(ours: str) -> np.ndarray:
        tensor, index = owners[ours]
        parts = [
            import_tensor(tensor, files.read(names[name]))[index] for name in _names(tensor.theirs)
        ]
        return np.stack(parts) if isinstance(tensor.theirs, tuple) else parts[0]

    shapes = {ours: shape for tensor in table for ours, shape in tensor.ours.items()}
    return Weights(model, shapes, read)


def _names(theirs: str | tuple[str, ...]) -> tuple[str, ...]:
    return (theirs,) if isinstance(theirs, str) else theirs


def _check_names(
    family: Family, table: list[Tensor], files: tensor_files.TensorFiles
) -> dict[str, str]:
    """Returns the name in the files of each tensor of the table."""
    bare = not any(name.startswith(family.prefix) for name in files.shapes)
    spell = lambda name: name.removeprefix(family.prefix) if bare else name  # noqa: E731
    names = {name: spell(name) for tensor in table for name in _names(tensor.theirs)}
    some = next(iter(files.files.values()), None)
    for tensor in table:
        for name in _names(tensor.theirs):
            there = files.shapes.get(names[name])
            if there is None:
                where = some if len(set(files.files.values())) == 1 else some and some.parent
                raise InputError(f"tensor {names[name]} is missing in {where}; fetch it again")
            if there != tensor.shape:
                raise InputError(
                    f"{files.files[names[name]]}: tensor {names[name]} has shape {there}, by "
                    f"config.json it has {tensor.shape}; fetch both files from one place"
                )
    for name in files.shapes.keys() - set(names.values()):
        if re.search(family.ignored, name):
            continue
        original = names.get(family.repeated.get(name, ""))
        if original is None:
            raise InputError(
                f"{files.files[name]}: tensor {name} is not part of this {family.architecture}; "
                "its config.json may be another model's"
            )
        if not np.array_equal(files.read(name), files.read(original)):
            raise InputError(
                f"{files.files[name]}: tensor {name} differs from {original}, which config.json "
                "says it is tied to; set tie_word_embeddings there to false"
            )
    return names


def import_tensor(tensor: Tensor, value: np.ndarray) -> list[np.ndarray]:
    """Returns the value of each of `tensor.ours` (of one slice of it, where theirs are several)."""
    matrix = value.T if tensor.transpose else value
    parts = np.split(matrix, len(tensor.ours), axis=-1)
    return [
        _fit(part, shape[1:] if isinstance(tensor.theirs, tuple) else shape)
        for part, shape in zip(parts, tensor.ours.values(), strict=True)
    ]


def _fit(part: np.ndarray, shape: Shape) -> np.ndarray:
    if part.size == np.prod(shape):
        return part.reshape(shape)
    return np.pad(part, [(0, size - had) for size, had in zip(shape, part.shape, strict=True)])


def export_tensor(tensor: Tensor, values: list[np.ndarray]) -> np.ndarray:
    """Returns the value of their tensor: the inverse of `import_tensor`."""
    shape = tensor.shape[::-1] if tensor.transpose else tensor.shape
    shape = (*shape[:-1], shape[-1] // len(values))
    parts = [
        value.reshape(shape)
        if value.size == np.prod(shape)
        else value[tuple(slice(size) for size in shape)]
        for value in values
    ]
    matrix = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
    return matrix.T if tensor.transpose else matrix


def export_all(
    table: list[Tensor], read: Callable[[str], np.ndarray]
) -> list[tuple[str, Shape, Callable[[], np.ndarray]]]:
    """Returns name, shape and value of each of their tensors; `read` gives a parameter by path,
    and is asked when a value is."""

    def value(tensor: Tensor, index: int) -> np.ndarray:
        ours = [read(path) for path in tensor.ours]
        is_stack = isinstance(tensor.theirs, tuple)
        return export_tensor(tensor, [x[index] if is_stack else x for x in ours])

    return [
        (name, tensor.shape, functools.partial(value, tensor, index))
        for tensor in table
        for index, name in enumerate(_names(tensor.theirs))
    ]


def to_model(family: Family, config: dict, where: str) -> dict[str, Any]:
    """Returns the keywords of config.model for their config. Raises InputError for what our model
    does not compute, by name: a key that is unknown and set is never ignored."""
    try:
        config = family.read(dict(config))
    except (TypeError, ArithmeticError) as error:  # text for a number, no heads
        raise InputError(f"{where} has a value of the wrong kind ({error}); mend it") from None
    model = ABSENT | family.model
    for key, ours, default in family.fields:
        value = config.get(key, default)
        legal = (int, float) if type(default) is float else (type(default),)
        if type(value) not in legal or value < 0:
            raise InputError(
                f"{where}: {key}={value!r} is no {type(default).__name__}; expected one like "
                f"{default}: mend it"
            )
        model[ours] = type(default)(value)
    for key, allowed in family.fixed.items():
        if (value := config.get(key, allowed[0])) not in allowed:
            options = " or ".join(map(repr, allowed))
            raise InputError(
                f"{where}: {key}={value!r} is not supported; our {family.architecture} computes "
                f"{options} only"
            )
    known = {*HARMLESS, *family.harmless, *family.fixed, *(key for key, _, _ in family.fields)}
    for key in sorted(config.keys() - known):
        if config[key] is not None and config[key] is not False:
            raise InputError(
                f"{where}: {key}={config[key]!r} is not known here and may change the model; "
                "delete it from the file if it does not"
            )
    if not model["num_heads"] or model["width"] % model["num_heads"]:
        raise InputError(
            f"{where}: a width of {model['width']} does not divide into {model['num_heads']} heads"
        )
    return model


def describe(model: Mapping[str, Any], shapes: dict[str, Shape]) -> tuple[dict, list[Tensor]]:
    """Returns config.json and the tensors of a config.model whose parameters have `shapes`, by
    path. Raises InputError if it is of no family, saying why."""
    reasons = []
    for name, family in families().items():
        shared = ABSENT | family.model
        if model.get("base_width") == model.get("width"):  # muP at its own width changes nothing
            del shared["base_width"]
        odd = [key for key, value in shared.items() if model.get(key) != value]
        if odd:
            reasons.append(f"{name} has no {', '.join(f'{k}={model.get(k)!r}' for k in odd)}")
            continue
        whole = family.complete(dict(model), shapes)
        table = family.tensors(whole)
        wanted = {ours: shape for tensor in table for ours, shape in tensor.ours.items()}
        odd = [path for path in {**wanted, **shapes} if wanted.get(path) != shapes.get(path)]
        if odd:
            reasons.append(
                f"{name} has {odd[0]} of shape {wanted.get(odd[0])}, not {shapes.get(odd[0])}"
            )
            continue
        config = {"architectures": [family.architecture], "model_type": name}
        config |= {key: whole[ours] for key, ours, _ in family.fields}
        config |= {key: allowed[0] for key, allowed in family.fixed.items()}
        return family.write(config), table
    raise InputError(
        f"the model is of no Hugging Face family that is known ({'; '.join(reasons)}); add a file "
        "to research/interop"
    )
