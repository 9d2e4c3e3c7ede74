"""A checkpoint as a Hugging Face folder: config.json, model.safetensors, and the tokenizer.

export("runs/gpt", "out/gpt")        # then transformers' from_pretrained("out/gpt") computes
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from research import build, hosts, interop, tensor_files, tree, workdir
from research import config as config_lib
from research.arguments import InputError, RunError
from research.data import tokenizer as tokenizer_lib
from research.evaluate import restore_weights
from research.models.convolutions import pixel_statistics
from research.models.lora import merged


def export(
    folder: str,
    output: str,
    step: str = "latest",
    weights: str | None = None,
    dtype: str = "fp32",
    overrides: Sequence[str] = (),
) -> list[str]:
    """Writes a checkpoint of the workdir `folder` to the new folder `output` and returns the names
    of its files; `step`, `weights` and `overrides` as for evaluate, `dtype` fp32 or bf16.

    Raises InputError for a model that is of no Hugging Face family, and for an `output` that holds
    something; RunError when it cannot be written.
    """
    if hosts.count() > 1:
        raise InputError("export runs in one process; leave out --distributed")
    refuse_output(place := Path(output).expanduser())  # before much is read
    config = config_lib.override(workdir.existing_config(folder), overrides)
    run = build.build(config, with_data=False)
    params = tree.merge(run.abstract.params, run.abstract.frozen.get("params", {}))
    params = {name: leaf for name, leaf in params.items() if name != "lora"}
    params = with_moments(params, run.abstract.model_state)
    interop.describe(config.model.to_dict(), shapes_of(params))  # refused before much is read
    path = workdir.epath.Path(folder) / "tokenizer.json"
    tokenizer = tokenizer_lib.load(path) if path.exists() else None
    with jax.set_mesh(run.mesh):
        variables, _, info = restore_weights(folder, run, step, weights)
    if config.lora.rank is not None:
        params = merged(variables, config.lora.rank, config.lora.alpha)
    else:
        params = tree.merge(variables["params"], variables["frozen"].get("params", {}))
    params = with_moments(params, variables["model_state"])
    model, data = config.model.to_dict(), config.data.to_dict()
    return write_folder(place, model, params, dtype, tokenizer, data, info.get("classes"))


def with_moments(params: dict, model_state: dict) -> dict:
    """Returns the parameters and, as files hold them too, the running moments of batch norms. What
    else is state (what fp8 remembers, the loads of experts) stays behind."""
    found = tree.flatten(model_state)
    moments = {
        path: x for path, x in found.items() if path.endswith(("norm/mean", "norm/variance"))
    }
    return tree.nest(tree.flatten(params) | moments) if moments else params


def refuse_output(output: Path) -> None:
    """Raises InputError for an output that holds something, or has no name."""
    if not output.name or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise InputError(f"--output={output} is there already; name a new folder")


def write_folder(
    output: Path,
    model: Mapping[str, Any],
    params: dict,
    dtype: str = "fp32",
    tokenizer: tokenizer_lib.Tokenizer | None = None,
    data: Mapping[str, Any] = MappingProxyType({}),
    classes: Sequence[str] | None = None,
) -> list[str]:
    """Writes the parameters of a config.model (scanned or not) to a new folder that transformers
    reads, and returns the names of its files; errors as for `export`. One tensor after the other
    goes through the host. `params` hold moments too (with_moments); config.data says how images
    are evaluated, `classes` are names."""
    config, table = interop.describe(model, shapes_of(params))
    config["dtype"] = config["torch_dtype"] = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    if classes is not None and len(config.get("id2label", ())) == len(classes):
        config["id2label"] = {str(number): name for number, name in enumerate(classes)}
        config["label2id"] = {name: number for number, name in enumerate(classes)}
    end = None if tokenizer is None else tokenizer.end
    config["bos_token_id"] = config["eos_token_id"] = end
    if tokenizer is not None and "decoder_start_token_id" in config:
        # Rows that are done are filled with it: no text, as 0 would be of our own tokenizers.
        config["decoder_start_token_id"] = config["pad_token_id"] = tokenizer.start
    files = {"config.json": config} | _tokenizer_files(tokenizer, model) | _image_files(model, data)
    refuse_output(output)
    part = output.with_name(f"{output.name}.part")  # becomes the folder when it is whole
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
            (part / name).write_text(text)
        tensors = interop.export_all(table, reader(params))
        counters = [tensor.theirs for tensor in table if not tensor.ours]
        tensor_files.write(part / tensor_files.ONE, tensors, dtype, counters)
        if output.exists():
            output.rmdir()
        part.replace(output)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise RunError(f"--output={output} cannot be written: {error}") from error
    return [*files, tensor_files.ONE]


def shapes_of(params: dict) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter, by the paths of single layers and experts."""
    return {
        name: tuple(leaf.shape[tree.stacked_axes(path) :])
        for path, leaf in tree.flatten(params).items()
        for name in tree.unrolled_paths(path, leaf)
    }


def reader(params: dict) -> Callable[[str], np.ndarray]:
    """Returns what gives a parameter by the path of a single layer (and expert), on the host in
    float32."""
    found = {
        name: (leaf, index)
        for path, leaf in tree.flatten(params).items()
        for name, index in tree.unrolled_places(path, leaf)
    }

    def read(path: str) -> np.ndarray:
        leaf, index = found[path]
        return np.asarray(leaf[index] if index else leaf).astype(np.float32, copy=False)

    return read


def _image_files(model: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The file that says how images become pixels: as in evaluation, the middle of them, where that
    takes it, or the whole squeezed to a square; then by the model's mean and std."""
    if "channels" not in model:
        return {}
    mean, std = pixel_statistics(model["channels"], model.get("mean"), model.get("std"))
    side = model.get("size") or data.get("size") or 224
    described = dict(image_processor_type="ViTImageProcessor", size=dict(height=side, width=side))
    if data.get("eval_pipeline") == ("center_crop",):
        # They crop what is resized, we resize what is cropped: the same part to a pixel.
        shorter = round(side / data["center_crop"]["share"])
        described = dict(image_processor_type="BitImageProcessor", size=dict(shortest_edge=shorter))
        described |= dict(do_center_crop=True, crop_size=dict(height=side, width=side))
    elif data.get("eval_pipeline") not in (None, ("resize",)):
        hosts.warn("preprocessor_config.json squeezes images to a square; evaluation does more")
    described |= dict(do_resize=True, resample=2, do_rescale=True, rescale_factor=1 / 255)
    described |= dict(do_normalize=True, image_mean=mean, image_std=std)
    return {"preprocessor_config.json": described}


def _tokenizer_files(
    tokenizer: tokenizer_lib.Tokenizer | None, model: Mapping[str, Any]
) -> dict[str, Any]:
    """The files of a tokenizer that the tokenizers package knows; bytes and characters are ours."""
    if tokenizer is None:
        return {}
    behind = model["vocab_size"] - tokenizer.vocab_size
    names: list[str] = []
    if model["name"] == "bert" and behind > 0:
        names = [tokenizer_lib.MASK, tokenizer_lib.FIRST]
    elif model["name"] == "t5":
        names = [tokenizer_lib.SENTINEL.format(i) for i in range(behind)]
    package = tokenizer_lib.to_package(tokenizer, names)
    if not package:
        return {}
    text, end = package
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "bos_token": end}
    if model["name"] == "bert":
        described |= {"sep_token": end}
        described |= {"mask_token": names[0], "cls_token": names[1]} if names else {}
    return {
        "tokenizer.json": text,
        "tokenizer_config.json": described | {"model_max_length": model.get("context")},
    }
