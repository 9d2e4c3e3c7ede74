"""Hugging Face weights in and out: make() -> Family, one file for each `model_type`.

    weights = load("folder")                     # .model: keywords of config.model; .read(path)
    config, tensors = describe(model, shapes)    # the way back: config.json, and every tensor

A family is a description, and both ways are read from it, so that they cannot drift apart: which of
their config's keys are which of ours, what the others must be, and for each of their tensors which
of our parameters lie in it. Paths are those of single layers and experts,
`layers/3/moe/experts/5/up`.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research import lookup, tensor_files
from research.arguments import InputError

Shape = tuple[int, ...]


class Tensor(NamedTuple):
    """One of their tensors. Several of `ours` lie side by side on the last axis of the matrix.
    Where ours has the same rank and more elements, it is padded with zeros at the end (the
    vocabulary). Without `ours` it is a count of steps, which nothing reads and files may lack."""

    theirs: str
    shape: Shape
    ours: dict[str, Shape]
    # torch's Linear is (out, in), ours are (in, out); its kernels (out, in, height, width), ours
    # (height, width, in, out)
    transpose: bool = False


# Which of their axes are ours, by how many there are.
TURNS = {2: (1, 0), 4: (2, 3, 1, 0)}


class Family(NamedTuple):
    """A kind of model over there, as ours."""

    architecture: str  # the class that transformers loads it with; `write` may name another
    prefix: str  # of all tensors but the head; files of the bare model lack it
    model: dict[str, Any]  # keywords of config.model that all of the family share
    fields: tuple[tuple[str, str, Any], ...]  # (their key, our keyword, their default)
    fixed: dict[str, tuple]  # their key: what it may be; the first is the default, and is written
    harmless: tuple[str, ...]  # their keys that do not change what the model computes
    tensors: Callable[[dict], list[Tensor]]  # of a config.model in which nothing is None
    complete: Callable[[dict, dict[str, Shape]], dict]  # makes it so, by the parameters' shapes
    choices: dict[str, tuple[str, dict]] = {}  # their key: (our keyword, {their value: ours})
    least: dict[str, int] = {}  # the least value of some of our keywords, which may not be None
    optional: Callable[[dict], list[Tensor]] = lambda model: []  # tensors that files may lack
    unused: str = "(?!)"  # regex: tensors that files may hold for other heads
    spelling: Callable[[str], str] = lambda name: name  # today's name of a tensor in a file
    ignored: str = "(?!)"  # regex: buffers that some files hold and that are no weights
    repeated: dict[str, str] = {}  # tensors that a file may hold twice: the copy, the original
    read: Callable[[dict], dict] = lambda config: config  # old spellings of theirs become today's
    write: Callable[[dict], dict] = lambda config: config
    # What the parameters' shapes say of keywords that leave it to another one (a ResNet's depth).
    settle: Callable[[dict, dict[str, Shape]], dict] = lambda model, shapes: model
    pixels: bool = False  # of images, whose mean and std are in preprocessor_config.json


class Weights(NamedTuple):
    """The weights of a folder as our parameters."""

    model: dict[str, Any]  # keywords of config.model, `name` among them
    shapes: dict[str, Shape]  # of each of our paths
    read: Callable[[str], np.ndarray]  # float32
    unused: list[str]  # their tensors that are none of them, of other heads


# Keys that any config may hold: names, token ids, numbers of training and of generation.
HARMLESS = (
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "task_specific_params",
    "_name_or_path", "return_dict", "id2label", "label2id", "problem_type", "output_past",
    "attention_dropout", "max_length", "gradient_checkpointing", "chunk_size_feed_forward",
    "transformers.js_config",
)  # fmt: skip


# What all families of our model `gpt` share.
GPT = {"name": "gpt", "base_width": None, "window": None}


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
    if family.pixels:
        model |= _pixels(path / "preprocessor_config.json")
    table, names, unused = _match(family, model, files)
    owners = {ours: (tensor, i) for tensor in table for i, ours in enumerate(tensor.ours)}

    def read(ours: str) -> np.ndarray:
        tensor, index = owners[ours]
        return import_tensor(tensor, files.read(names[tensor.theirs]))[index]

    shapes = {ours: shape for tensor in table for ours, shape in tensor.ours.items()}
    return Weights(model, shapes, read, unused)


def _pixels(path: Path) -> dict[str, tuple[float, ...]]:
    """Returns what a folder says of its pixels, where it says something: `mean` and `std`."""
    if not path.is_file():
        return {}
    given = tensor_files.read_json(path)
    for key, allowed in (("do_normalize", (True, None)), ("do_rescale", (True, None))):
        if given.get(key) not in allowed:
            raise InputError(f"{path}: {key}={given[key]!r} is not supported; pixels are scaled")
    if abs(given.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise InputError(f"{path}: rescale_factor={given['rescale_factor']} is not 1 / 255")
    found = {}
    for ours in ("mean", "std"):
        value = given.get(f"image_{ours}")
        if value is None:
            continue
        if not isinstance(value, list) or not all(type(x) in (int, float) for x in value):
            raise InputError(f"{path}: image_{ours}={value!r} is no list of numbers; mend it")
        found[ours] = tuple(map(float, value))
    return found


def _match(
    family: Family, model: dict[str, Any], files: tensor_files.TensorFiles
) -> tuple[list[Tensor], dict[str, str], list[str]]:
    """Returns the tensors that the files hold, the name there of each, and the names of those that
    are for other heads."""
    bare = not any(name.startswith(family.prefix) for name in files.shapes)
    spell = lambda name: name.removeprefix(family.prefix) if bare else name  # noqa: E731
    held = {family.spelling(name): name for name in files.shapes}
    table = [tensor for tensor in family.tensors(model) if tensor.ours]
    table += [tensor for tensor in family.optional(model) if spell(tensor.theirs) in held]
    names, some = {}, next(iter(files.files.values()), None)
    for tensor in table:
        name = held.get(spell(tensor.theirs))
        if name is None:
            where = some if len(set(files.files.values())) == 1 else some and some.parent
            raise InputError(f"tensor {spell(tensor.theirs)} is missing in {where}; fetch it again")
        if (there := files.shapes[name]) != tensor.shape:
            raise InputError(
                f"{files.files[name]}: tensor {name} has shape {there}, by config.json it has "
                f"{tensor.shape}; fetch both files from one place"
            )
        names[tensor.theirs] = name
    return table, names, _check_others(family, names, held, files)


def _check_others(
    family: Family, names: dict[str, str], held: dict[str, str], files: tensor_files.TensorFiles
) -> list[str]:
    """Returns what the files hold for other heads; refuses what has no place, and copies that are
    none."""
    unused, known = [], set(names.values())
    for today, name in held.items():
        if name in known or re.search(family.ignored, today):
            continue
        original = names.get(family.repeated.get(today, ""))
        if original is None and not re.search(family.unused, today):
            raise InputError(
                f"{files.files[name]}: tensor {name} is not part of this {family.architecture}; "
                "its config.json may be another model's"
            )
        if original is None:
            unused.append(name)
        elif not np.array_equal(files.read(name), files.read(original)):
            raise InputError(
                f"{files.files[name]}: tensor {name} differs from {original}, which config.json "
                "says it is tied to; set tie_word_embeddings there to false"
            )
    return sorted(unused)


def import_tensor(tensor: Tensor, value: np.ndarray) -> list[np.ndarray]:
    """Returns the value of each of `tensor.ours`."""
    matrix = value.transpose(TURNS[value.ndim]) if tensor.transpose else value
    parts = np.split(matrix, len(tensor.ours), axis=-1)
    return [_fit(part, shape) for part, shape in zip(parts, tensor.ours.values(), strict=True)]


def _fit(part: np.ndarray, shape: Shape) -> np.ndarray:
    if part.size == np.prod(shape):
        return part.reshape(shape)
    return np.pad(part, [(0, size - had) for size, had in zip(shape, part.shape, strict=True)])


def export_tensor(tensor: Tensor, values: list[np.ndarray]) -> np.ndarray:
    """Returns the value of their tensor: the inverse of `import_tensor`."""
    turn = TURNS[len(tensor.shape)] if tensor.transpose else range(len(tensor.shape))
    shape = tuple(tensor.shape[axis] for axis in turn)
    shape = (*shape[:-1], shape[-1] // len(values))
    parts = [
        value.reshape(shape)
        if value.size == np.prod(shape)
        else value[tuple(slice(size) for size in shape)]
        for value in values
    ]
    matrix = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
    return matrix.transpose(np.argsort(turn)) if tensor.transpose else matrix


def export_all(
    table: list[Tensor], read: Callable[[str], np.ndarray]
) -> list[tuple[str, Shape, Callable[[], np.ndarray]]]:
    """Returns name, shape and value of each of their tensors; `read` gives a parameter by path,
    and is asked when a value is."""

    value = lambda tensor: export_tensor(tensor, [read(path) for path in tensor.ours])  # noqa: E731
    held = [tensor for tensor in table if tensor.ours]
    return [(tensor.theirs, tensor.shape, functools.partial(value, tensor)) for tensor in held]


def to_model(family: Family, config: dict, where: str) -> dict[str, Any]:
    """Returns the keywords of config.model for their config. Raises InputError for what our model
    does not compute, by name: a key that is unknown and set is never ignored."""
    try:
        config = family.read(dict(config))
    except (TypeError, ArithmeticError) as error:  # text for a number, no heads
        raise InputError(f"{where} has a value of the wrong kind ({error}); mend it") from None
    model = family.model | _fields(family, config, where)
    for key, (ours, values) in family.choices.items():
        value = config.get(key, next(iter(values)))
        if not isinstance(value, str) or value not in values:
            raise _unsupported(family, where, key, value, values)
        model[ours] = values[value]
    for key, allowed in family.fixed.items():
        if (value := config.get(key, allowed[0])) not in allowed:
            raise _unsupported(family, where, key, value, allowed)
    known = {*HARMLESS, *family.harmless, *family.fixed, *family.choices}
    known |= {key for key, _, _ in family.fields}
    for key in sorted(config.keys() - known):
        if config[key] is not None and config[key] is not False:
            raise InputError(
                f"{where}: {key}={config[key]!r} is not known here and may change the model; "
                "delete it from the file if it does not"
            )
    heads = model.get("num_heads", 1)
    if not heads or ("head_dim" not in model and model.get("width", 0) % heads):
        raise InputError(f"{where}: a width of {model['width']} does not divide into {heads} heads")
    return model


def _fields(family: Family, config: dict, where: str) -> dict[str, Any]:
    """The keywords that are numbers or switches of theirs."""
    model = {}
    for key, ours, default in family.fields:
        value, least = config.get(key, default), family.least.get(ours, 0)
        legal = (int, float) if type(default) is float else (type(default),)
        if type(value) not in legal or _least(value) < least:
            above = f" of at least {least}" if least else ""
            raise InputError(
                f"{where}: {key}={value!r} is no {type(default).__name__}{above}; expected one "
                f"like {default}: mend it"
            )
        model[ours] = type(default)(value)
    return model


def _least(value: Any) -> float:
    """Returns a number, or the least of several, which must be numbers; None is 0."""
    numbers = value if isinstance(value, tuple) else (value or 0,)
    return min((x if type(x) in (bool, int, float) else -1 for x in numbers), default=-1)


def _unsupported(
    family: Family, where: str, key: str, value: Any, allowed: Iterable[Any]
) -> InputError:
    options = " or ".join(map(repr, allowed))
    return InputError(
        f"{where}: {key}={value!r} is not supported; our {family.architecture} computes {options} "
        "only"
    )


def describe(model: Mapping[str, Any], shapes: dict[str, Shape]) -> tuple[dict, list[Tensor]]:
    """Returns config.json and the tensors of a config.model whose parameters have `shapes`, by
    path. Raises InputError if it is of no family, saying why."""
    reasons = []
    for name, family in families().items():
        if model.get("name") != family.model["name"]:
            continue
        model = family.settle(dict(model), shapes)
        shared = dict(family.model)
        if model.get("base_width") == model.get("width"):  # muP at its own width changes nothing
            shared.pop("base_width", None)
        odd = [key for key, value in shared.items() if model.get(key) != value]
        odd += [key for key, least in family.least.items() if _least(model.get(key)) < least]
        odd += [key for key, of in family.choices.values() if model.get(key) not in of.values()]
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
        for key, (ours, values) in family.choices.items():
            config[key] = next(name for name, value in values.items() if value == whole[ours])
        return family.write(config), table
    why = "; ".join(reasons) or f"none has name={model.get('name')!r}"
    raise InputError(
        f"the model is of no Hugging Face family that is known ({why}); add a file to "
        "research/interop"
    )
