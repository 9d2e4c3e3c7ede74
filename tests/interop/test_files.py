"""A damaged or foreign safetensors folder is one line that names file and tensor."""

import json
import shutil
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research import interop, tensor_files
from research.arguments import InputError
from tests.interop.small import folder

ONE, INDEX = tensor_files.ONE, tensor_files.INDEX


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "llama"
    folder(path, "llama")
    return path


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "hf")


def sharded(path):
    """Two files and their index, as save_pretrained writes a large model."""
    values = load_file(path / ONE)
    (path / ONE).unlink()
    names = sorted(values)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: values[name] for name in part}, path / file)
    index = {name: file for file, part in parts.items() for name in part}
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return index


def refused(path, *words):
    with pytest.raises(InputError) as error:
        weights = interop.load(str(path))
        for name in weights.shapes:
            weights.read(name)
    text = str(error.value)
    assert all(word in text for word in words) and "\n" not in text, text


@pytest.mark.fault("a safetensors file cut short")
@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_a_file_that_is_cut_short_is_refused(copy, keep, record_property):
    data = (copy / ONE).read_bytes()
    size = int(len(data) * keep) if isinstance(keep, float) else keep
    (copy / ONE).write_bytes(data[:size])
    refused(copy, ONE, "damaged or cut short")
    record_property("observed", "exit 2: the file is damaged or cut short")


def test_a_header_that_was_changed_is_refused(copy):
    data = (copy / ONE).read_bytes()
    (copy / ONE).write_bytes(data.replace(b'"shape":[32]', b'"shape":[31]', 1))
    refused(copy, ONE, "damaged")


def test_a_missing_a_superfluous_and_a_wrong_tensor_are_named_with_their_file(copy):
    values = load_file(copy / ONE)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in values.items() if k != name}, copy / ONE)
    refused(copy, ONE, name, "missing")
    save_file(values | {"model.layers.2.mlp.up_proj.weight": values[name]}, copy / ONE)
    refused(copy, ONE, "model.layers.2.mlp.up_proj.weight", "not part of")
    save_file(values | {name: values[name][:-1]}, copy / ONE)
    refused(copy, ONE, name, "(47, 32)", "(48, 32)")
    save_file(values | {name: values[name].astype(np.int32)}, copy / ONE)
    refused(copy, ONE, name, "I32")
    values[name][0, 0] = np.nan
    save_file(values, copy / ONE)
    refused(copy, ONE, name, "not finite")


def test_shards_are_read_as_one_file_is_and_their_index_is_believed_only_where_it_is_true(
    copy, sound
):
    index = sharded(copy)
    ours, one = interop.load(str(copy)), interop.load(str(sound))
    assert ours.shapes == one.shapes
    for name in one.shapes:
        np.testing.assert_array_equal(ours.read(name), one.read(name))

    def write(weight_map):
        (copy / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    name, file = min(index.items())
    write({k: v for k, v in index.items() if k != name})
    refused(copy, file, name, "not in the index")
    write(index | {"nowhere": file})
    refused(copy, file, "nowhere", "in the index only")
    write(index | {name: "../" + file})
    refused(copy, INDEX, "no index")
    write([1])
    refused(copy, INDEX, "no index")
    write(index)
    (copy / file).unlink()
    refused(copy, file, name, "missing")


def test_a_folder_of_another_kind_says_what_it_lacks(copy):
    (copy / ONE).unlink()
    refused(copy, "model.safetensors", "save_pretrained")
    (copy / "config.json").write_text("{")
    refused(copy, "config.json", "JSON")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_is_written_is_what_the_package_reads(dtype, tmp_path):
    value = np.arange(12).reshape(3, 4).astype(dtype)
    if dtype == np.float16:  # read, not written
        save_file({"x": value}, tmp_path / ONE)
    else:
        kind = "fp32" if dtype == np.float32 else "bf16"
        tensor_files.write(tmp_path / ONE, [("x", (3, 4), lambda: value.astype(np.float32))], kind)
        assert load_file(tmp_path / ONE)["x"].dtype == dtype
    read = tensor_files.open_folder(tmp_path).read("x")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, value.astype(np.float32))


def test_a_folder_is_read_and_written_one_tensor_at_a_time(tmp_path):
    size, count = 1 << 18, 16  # 1 MiB each
    make = lambda: np.ones(size, np.float32)  # noqa: E731
    tracemalloc.start()
    tensor_files.write(tmp_path / ONE, [(f"t{i}", (size,), make) for i in range(count)])
    files = tensor_files.open_folder(tmp_path)
    for name in files.shapes:
        files.read(name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 4 * size
