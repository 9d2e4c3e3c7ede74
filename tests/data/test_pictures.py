"""Each reader gives every picture of a data set once, in one split, and refuses what is none."""

import gzip
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest

from research.arguments import InputError
from research.data.pictures import choose, cifar, digits, folder, mnist
from tests.data.pictures import CLASSES, encoded, random_pixels, write_folder


def read(make, path, split, held_out=0.0):
    """Returns the pixels or files of a split, and its labels."""
    found = choose(make(path and str(path), "image", "label"), split, held_out, path)
    assert len(set(found.names)) == len(found.names) == len(found.labels)
    return [found.read(index) for index in range(len(found.names))], found


def test_the_digits_are_split_the_same_everywhere():
    train, held = (read(digits.make, None, split)[1] for split in ("train", "validation"))
    assert (len(train.names), len(held.names)) == (1437, 360)
    assert not set(train.names) & set(held.names)
    assert np.bincount(held.labels).min() > 25
    pixels = held.read(0)
    assert pixels.shape == (8, 8, 1) and pixels.dtype == np.uint8 and pixels.max() > 200
    assert read(digits.make, None, "train")[1].fingerprint == train.fingerprint


@pytest.mark.parametrize("top", [".", "birds", "deep/set"])
def test_a_folder_and_its_archive_hold_the_same(tmp_path, top):
    held = write_folder(tmp_path / "set")
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "set", top)
    for split in ("train", "test"):
        files, found = read(folder.make, tmp_path / "set", split)
        again, other = read(folder.make, tmp_path / "set.tar.gz", split)
        assert files == again and found.names == other.names
        assert found.fingerprint == other.fingerprint
        assert files == [encoded(held[name]) for name in found.names]
        named = [CLASSES[label] for label in found.labels]
        assert named == [name.split("/")[1] for name in found.names]


def test_one_folder_of_classes_is_split_by_a_hash_of_the_names(tmp_path):
    write_folder(tmp_path, splits=("x",), count=40)
    parts = {s: read(folder.make, tmp_path / "x", s, 0.2)[1] for s in ("train", "validation")}
    names = [set(part.names) for part in parts.values()]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 40 and 2 < len(names[1]) < 16
    (tmp_path / "x" / "cat" / "new.png").write_bytes(encoded(random_pixels(1)))
    for split, before in parts.items():
        assert set(before.names) <= set(read(folder.make, tmp_path / "x", split, 0.2)[1].names)
    whole = read(folder.make, tmp_path / "x", "train")[1]
    assert len(whole.names) == 41 and whole.fingerprint != parts["train"].fingerprint


def test_the_numbers_of_classes_are_those_of_train(tmp_path):
    write_folder(tmp_path)
    for file in (tmp_path / "test" / "cat").iterdir():
        file.unlink()
    assert set(read(folder.make, tmp_path, "test")[1].labels) == {1}
    (tmp_path / "test" / "dgo").mkdir()
    (tmp_path / "test" / "dgo" / "1.png").write_bytes(encoded(random_pixels(1)))
    with pytest.raises(InputError, match="test/dgo/1.png: class 'dgo' is not one .*mean 'dog'"):
        read(folder.make, tmp_path, "test")


@pytest.mark.parametrize(
    ("name", "kind"), [("../evil.png", tarfile.REGTYPE), ("a", tarfile.SYMTYPE)]
)
def test_an_archive_that_points_outside_is_refused(tmp_path, name, kind):
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member, io.BytesIO())
    with pytest.raises(InputError, match="the archive is refused"):
        read(folder.make, tmp_path / "bad.tar", "train")


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist; give a folder of SPLIT/CLASS/FILE"):
        read(folder.make, tmp_path / "none", "train")
    with pytest.raises(InputError, match="has no image files as SPLIT/CLASS/FILE"):
        read(folder.make, tmp_path, "train")


def write_idx(file, values, pack=gzip.compress):
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    file.write_bytes(pack(header + values.tobytes()))


@pytest.mark.parametrize("form", ["-idx3-ubyte.gz", ".idx3-ubyte", "-idx3-ubyte"])
def test_idx_files_are_read_packed_or_not(tmp_path, form):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 5), np.uint8)
    labels, pack = np.arange(7, dtype=np.uint8), gzip.compress if ".gz" in form else bytes
    for stem in ("train", "t10k"):
        write_idx(tmp_path / f"{stem}-images{form}", pixels, pack)
        write_idx(tmp_path / f"{stem}-labels{form.replace('3', '1')}", labels, pack)
    for split in ("train", "test"):
        found, pictures = read(mnist.make, tmp_path, split)
        np.testing.assert_array_equal(np.stack(found), pixels[..., None])
        np.testing.assert_array_equal(pictures.labels, labels)
        assert pictures.classes == [str(digit) for digit in range(10)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no IDX file of bytes in 3 dimensions"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 1, 5]), "no IDX file of bytes in 3 dimensions"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 2, 2) + bytes(7), "announces .*and holds 7"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 1 << 31, 1 << 31, 1 << 31), "announces"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 2, 2) + bytes(8), "2 images, .* 3 labels"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path, data, message):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(data)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3, np.uint8), bytes)
    with pytest.raises(InputError, match=message):
        read(mnist.make, tmp_path, "train")


def cifar_pixels(number):
    return np.random.default_rng(number).integers(0, 256, (4, 3, 32, 32), np.uint8)


class Python2(pickle._Pickler):
    """Writes bytes as the Python did that CIFAR was made with."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, data):
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)

    dispatch[bytes] = save_bytes


def pickled_by_2(held):
    Python2(file := io.BytesIO(), protocol=2).dump(held)
    return file.getvalue()


def write_cifar(root, kind, pickled):
    """Writes a small CIFAR as its authors do; returns classes, and pixels and labels of train."""
    root.mkdir()
    ten = kind == "CIFAR-10"
    classes = [f"class{n}" for n in range(10 if ten else 100)]
    train, test, meta, *rest = (cifar.PICKLED if pickled else cifar.BINARY)[kind]
    labels = np.arange(4) + (0 if ten else 90)
    for number, name in enumerate([*train, *test]):
        pixels = cifar_pixels(number).reshape(4, -1)
        if pickled:
            held = {b"data": pixels, rest[1].encode(): labels.tolist()}
            (root / name).write_bytes(pickled_by_2(held))
            continue
        front = [np.zeros(4), labels][-rest[0] :]
        rows = np.column_stack([*front, pixels]).astype(np.uint8)
        (root / name).write_bytes(rows.tobytes())
    names = (
        pickled_by_2({rest[0].encode(): [x.encode() for x in classes]})
        if pickled
        else "\n".join(classes).encode()
    )
    (root / meta).write_bytes(names)
    pixels = np.concatenate([cifar_pixels(number) for number in range(len(train))])
    return classes, pixels.transpose(0, 2, 3, 1), np.tile(labels, len(train))


@pytest.mark.parametrize("kind", ["CIFAR-10", "CIFAR-100"])
@pytest.mark.parametrize("pickled", [True, False])
def test_both_versions_of_cifar_are_read_from_folder_and_archive(tmp_path, kind, pickled):
    classes, pixels, labels = write_cifar(tmp_path / "cifar", kind, pickled)
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar", "cifar-batches")
    for path in (tmp_path / "cifar", tmp_path / "cifar.tar.gz"):
        found, pictures = read(cifar.make, path, "train")
        np.testing.assert_array_equal(np.stack(found), pixels)
        np.testing.assert_array_equal(pictures.labels, labels)
        assert pictures.classes == classes
        assert len(read(cifar.make, path, "test")[0]) == 4


class Runs:
    """Runs a program when it is unpickled."""

    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/was-run",)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"data": Runs()}, "it would call (posix|os|nt).system"),
        ({"data": np.zeros((1, 3072), np.float32), "labels": [1]}, "other than bytes"),
        ({"data": np.array([None, {}], object), "labels": [1]}, "other than bytes|cannot|not"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "holds no images and labels"),
        ({"labels": [1]}, "holds no images and labels"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [70]}, "label 70 of 10 classes"),
        ([1], "it holds no dict"),
    ],
)
def test_a_pickle_runs_nothing_and_holds_what_cifar_holds(tmp_path, held, message):
    write_cifar(tmp_path / "cifar", "CIFAR-10", True)
    (tmp_path / "cifar" / "data_batch_2").write_bytes(pickle.dumps(held, protocol=2))
    with pytest.raises(InputError, match=message) as error:
        read(cifar.make, tmp_path / "cifar", "train")
    assert "\n" not in str(error.value)


def test_what_is_no_cifar_is_refused(tmp_path):
    with pytest.raises(InputError, match="lacks files of CIFAR-10"):
        read(cifar.make, tmp_path, "train")
    write_cifar(tmp_path / "cifar", "CIFAR-10", False)
    file = tmp_path / "cifar" / "data_batch_1.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="data_batch_1.bin has 12291 bytes, no multiple of 3073"):
        read(cifar.make, tmp_path / "cifar", "train")
