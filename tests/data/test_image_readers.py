"""Each reader gives every picture of a data set once, in one split, and refuses what is none."""

import gzip
import io
import struct
import sys
import tarfile

import numpy as np
import pytest

from research.arguments import InputError
from research.data import images
from research.data.image_readers import choose, cifar, digits, folder, huggingface, mnist, tfds
from tests.data.image_files import CLASSES, encoded, random_pixels, write_folder


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


def write_cifar(root, kind):
    """Writes a small CIFAR as its authors do; returns classes, and pixels and labels of train."""
    root.mkdir()
    ten = kind == "CIFAR-10"
    classes = [f"class{n}" for n in range(10 if ten else 100)]
    train, test, meta, skip = cifar.BINARY[kind]
    labels = np.arange(4) + (0 if ten else 90)
    for number, name in enumerate([*train, *test]):
        front = [np.zeros(4), labels][-skip:]
        rows = np.column_stack([*front, cifar_pixels(number).reshape(4, -1)]).astype(np.uint8)
        (root / name).write_bytes(rows.tobytes())
    (root / meta).write_text("\n".join(classes))
    pixels = np.concatenate([cifar_pixels(number) for number in range(len(train))])
    return classes, pixels.transpose(0, 2, 3, 1), np.tile(labels, len(train))


@pytest.mark.parametrize("kind", ["CIFAR-10", "CIFAR-100"])
def test_cifar_is_read_from_folder_and_archive(tmp_path, kind):
    classes, pixels, labels = write_cifar(tmp_path / "cifar", kind)
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar", "cifar-batches")
    for path in (tmp_path / "cifar", tmp_path / "cifar.tar.gz"):
        found, pictures = read(cifar.make, path, "train")
        np.testing.assert_array_equal(np.stack(found), pixels)
        np.testing.assert_array_equal(pictures.labels, labels)
        assert pictures.classes == classes
        assert len(read(cifar.make, path, "test")[0]) == 4


@pytest.mark.parametrize("names", cifar.PICKLED)
def test_the_pickles_of_cifar_are_refused_and_never_opened(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"no pickle at all")
    with pytest.raises(InputError, match="pickles may run programs; take the binary one"):
        read(cifar.make, tmp_path, "train")


def test_what_is_no_cifar_is_refused(tmp_path):
    with pytest.raises(InputError, match="lacks files of CIFAR-10"):
        read(cifar.make, tmp_path, "train")
    write_cifar(tmp_path / "cifar", "CIFAR-10")
    file = tmp_path / "cifar" / "data_batch_1.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="data_batch_1.bin has 12291 bytes, no multiple of 3073"):
        read(cifar.make, tmp_path / "cifar", "train")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module.disable_progress_bars()
    return module


def table(hub, count=12, **columns):
    """A table of images and classes; the pixels of record n are random_pixels(n)."""
    held = [dict(bytes=encoded(random_pixels(n)), path=None) for n in range(count)]
    columns = dict(image=held, label=[n % 2 for n in range(count)]) | columns
    kinds = hub.Features(image=hub.Image(), label=hub.ClassLabel(names=list(CLASSES)))
    return hub.Dataset.from_dict(columns, features=kinds)


@pytest.mark.parametrize("kind", ["disk", "parquet"])
def test_images_of_a_hugging_face_dataset_are_read(hub, tmp_path, kind):
    path = tmp_path / "set"
    if kind == "disk":
        parts = {"train": table(hub), "test": table(hub, 4)}
        hub.DatasetDict(parts).save_to_disk(str(path))
    else:
        table(hub).to_parquet(str(path / "train.parquet"))
    files, found = read(huggingface.make, path, "train")
    assert files == [encoded(random_pixels(n)) for n in range(12)]
    assert found.classes == list(CLASSES) and found.labels.tolist() == [0, 1] * 6
    fewer = read(huggingface.make, path, "validation", 0.4)[1]
    assert 0 < len(fewer.names) < 12
    given = dict(reader="huggingface", path=str(path), size=8, held_out=0.0, seed=0, batch=4)
    want = next(images.make(**given, split="train").batches())
    batches = images.make(**given, split="train", workers=1).batches()
    np.testing.assert_array_equal(next(batches)["image"], want["image"])
    batches.close()


def test_what_is_no_image_of_a_hugging_face_dataset_is_named(hub, monkeypatch):
    held = [dict(bytes=None, path="/etc/passwd"), dict(bytes=encoded(random_pixels(0)), path=None)]
    made = table(hub, 2, image=held)
    monkeypatch.setattr(huggingface, "load", lambda path: {"train": made})
    given = dict(reader="huggingface", path="set", size=8, held_out=0.0)
    given |= dict(split="train", seed=0, batch=2)
    with pytest.raises(InputError, match="record 0 holds no image, but .*passwd"):
        next(images.make(**given).batches())
    assert next(images.make(**given, skip_budget=1).batches())["weight"].sum() == 1
    for more, message in (
        (dict(image="img"), "has no column 'img'; it has image, label"),
        (dict(image="label"), "column 'label' holds no images"),
    ):
        with pytest.raises(InputError, match=message):
            images.make(**given, **more)


def write_tfds(path, count=12):
    """Prepares a dataset from image files, which needs no TensorFlow."""
    core = pytest.importorskip("tensorflow_datasets")

    class Tiny(core.core.GeneratorBasedBuilder):
        VERSION = core.core.Version("1.0.0")
        code_path = pkg_dir_path = None

        def _info(self):
            kinds = dict(
                image=core.features.Image(shape=(None, None, 3)),
                label=core.features.ClassLabel(names=list(CLASSES)),
                number=core.features.Scalar(np.int64),
            )
            return core.core.DatasetInfo(builder=self, features=core.features.FeaturesDict(kinds))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for n in range(count):
                file = io.BytesIO(encoded(random_pixels(n)))
                yield n, dict(image=file, label=n % 2, number=n)

    builder = Tiny(data_dir=str(path), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


def test_images_of_tfds_are_read_without_tensorflow(tmp_path):
    path = write_tfds(tmp_path)
    files, found = read(tfds.make, path, "train")
    assert sorted(files) == sorted(encoded(random_pixels(n)) for n in range(12))
    for file, label in zip(files, found.labels, strict=True):
        pixels = images.load(file, 8, 3)
        assert (pixels.mean() > 100) == label
    assert found.classes == list(CLASSES) and "tensorflow" not in sys.modules
    for names, message in (
        (("img", "label"), "has no feature 'img'; it has"),
        (("image", "number"), "feature 'number' is no class"),
    ):
        with pytest.raises(InputError, match=message):
            tfds.make(path, *names)
    with pytest.raises(InputError, match="cannot be loaded"):
        tfds.make(str(tmp_path / "tiny"), "image", "label")


def test_a_flat_split_and_a_folder_that_is_no_split_are_refused(tmp_path):
    def put(name):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(random_pixels(4)))

    for name in ("train/a/1.png", "train/b/1.png", ".cache/x/1.png", "__MACOSX/train/1.png"):
        put(name)
    assert folder.make(str(tmp_path), "image", "label")["train"]().classes == ["a", "b"]
    put("val/1.png")
    with pytest.raises(InputError, match="images of validation lie in no folder of a class"):
        folder.make(str(tmp_path), "image", "label")
    put("val/a/1.png")
    put("devkit/tools/1.png")
    with pytest.raises(InputError, match="devkit/ beside train/"):
        folder.make(str(tmp_path), "image", "label")
