"""Folders of safetensors files: read tensor by tensor, written as a stream.

    files = open_folder("llama")                     # model.safetensors, or shards and their index
    files.shapes["lm_head.weight"]; files.read("lm_head.weight")     # float32, checked
    write("out/model.safetensors", [("x", (2, 3), lambda: x)], "bf16")

Neither holds more than one tensor: the package's own writer wants all of them in memory, twice.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from research.arguments import InputError

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
READABLE = ("F32", "BF16", "F16")  # float32 holds all of their values
WRITABLE = {"fp32": ("F32", np.dtype(np.float32)), "bf16": ("BF16", np.dtype(ml_dtypes.bfloat16))}


class TensorFiles(NamedTuple):
    """The tensors of a folder, by name."""

    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]  # float32, on the host


def open_folder(folder: Path) -> TensorFiles:
    """Returns the tensors of `folder` without reading their values.

    Raises InputError, also when one is read, for a file that is missing, damaged, or not what the
    index says, for a tensor that is in two files or of another type, and for a value that is not
    finite.
    """
    opened, files, shapes = {}, {}, {}
    for path, listed in _listed(folder).items():
        opened[path] = handle = _open(path)
        if listed is not None and (odd := sorted(set(handle.keys()) ^ listed)):
            where = "not in the index" if odd[0] in handle.keys() else "in the index only"  # noqa: SIM118
            raise InputError(f"{path}: tensor {odd[0]} is {where}; fetch the folder again")
        for name in handle.keys():  # noqa: SIM118  it is no dict
            view = handle.get_slice(name)
            counter = view.get_dtype() == "I64" and not view.get_shape()  # of torch: no weight
            if view.get_dtype() not in READABLE and not counter:
                raise InputError(
                    f"{path}: tensor {name} has type {view.get_dtype()}; expected one of "
                    f"{', '.join(READABLE)}: convert it first"
                )
            files[name], shapes[name] = path, tuple(view.get_shape())

    def read(name: str) -> np.ndarray:
        try:
            value = opened[files[name]].get_tensor(name).astype(np.float32, copy=False)
        except Exception as error:  # what the package raises is no narrower
            raise InputError(f"{files[name]}: tensor {name} cannot be read: {error}") from None
        if not np.isfinite(value).all():
            raise InputError(
                f"{files[name]}: tensor {name} holds values that are not finite; the file is "
                "damaged or its training failed: fetch another"
            )
        return value

    return TensorFiles(files, shapes, read)


def _listed(folder: Path) -> dict[Path, set[str] | None]:
    """Returns the files of a folder, and the names that the index says are in each."""
    if (folder / ONE).is_file():
        return {folder / ONE: None}
    if not (folder / INDEX).is_file():
        raise InputError(
            f"{folder} has neither {ONE} nor {INDEX}; give a folder that was saved with "
            "save_pretrained, and as safetensors"
        )
    weight_map = read_json(folder / INDEX).get("weight_map")
    legal = lambda file: isinstance(file, str) and Path(file).name == file  # noqa: E731
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(map(legal, weight_map.values()))
    ):
        raise InputError(
            f"{folder / INDEX} is no index; expected a weight_map from tensors to files beside it"
        )
    listed: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        listed.setdefault(folder / file, set()).add(name)
    for path, names in listed.items():
        if not path.is_file():
            raise InputError(f"{path} is missing, with tensor {min(names)}; fetch the folder again")
    return listed


def _open(path: Path) -> Any:
    try:
        from safetensors import safe_open
    except ImportError:
        raise InputError(
            f"{path} needs the safetensors package: pip install 'anneal[nlp]'"
        ) from None
    try:
        return safe_open(path, framework="numpy")
    except Exception as error:
        raise InputError(
            f"{path} is damaged or cut short ({error}); fetch or copy the file again"
        ) from None


def read_json(path: Path) -> dict:
    """Returns the object in a JSON file; raises InputError if there is none."""
    try:
        if not isinstance(value := json.loads(path.read_bytes()), dict):
            raise ValueError("it is not an object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None


def write(
    path: Path,
    tensors: Iterable[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]],
    dtype: str = "fp32",
    counters: Iterable[str] = (),
) -> None:
    """Writes (name, shape, value) triples one after the other; `dtype` is fp32 or bf16 (rounded to
    nearest). Values are asked for when it is their turn. `counters` are names of integers, 0."""
    tensors, counters, (name_of_type, numpy_type) = list(tensors), list(counters), WRITABLE[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 8 * len(counters)  # first, where multiples of 8 are
    for at, name in enumerate(counters):
        header[name] = {"dtype": "I64", "shape": (), "data_offsets": (8 * at, 8 * at + 8)}
    for name, shape, _ in tensors:
        start, end = end, end + int(np.prod(shape)) * numpy_type.itemsize
        header[name] = {"dtype": name_of_type, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the values lie at multiples of their size
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + bytes(8 * len(counters)))
        for name, shape, value in tensors:
            array = np.ascontiguousarray(value(), numpy_type)
            assert array.shape == tuple(shape), (name, array.shape, shape)
            file.write(array.view(np.uint8).data if array.size else b"")
