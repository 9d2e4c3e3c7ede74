"""What somebody else packed is read whole or refused by name, never written, run or followed."""

import bz2
import gzip
import io
import lzma
import pickle
import random
import signal
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from research.arguments import InputError
from research.data import unpack
from research.data.readers import files
from research.data.unpack import load_array, members

FILES = {"a.txt": b"alpha" * 400, "b/c.txt": bytes(range(256)) * 3, "b/empty.txt": b""}
TARS = [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"]
OPEN = {".gz": gzip.open, "tgz": gzip.open, "bz2": bz2.open, ".xz": lzma.open, "tar": open}


def write_tar(path, entries):
    """Writes entries of (TarInfo or name, data)."""
    with OPEN[path.name[-3:]](path, "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        for info, data in entries:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path, entries, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for info, data in entries:
            archive.writestr(info, data)
    return path


def write(path, entries):
    return (write_zip if path.suffix in (".zip", ".npz") else write_tar)(path, entries)


class Alarm(BaseException):
    """Not an Exception: nobody catches it."""


@pytest.fixture
def alarm():
    """Ends a test that hangs."""

    def ring(*_):
        raise Alarm

    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.mark.parametrize("suffix", [*TARS, ".zip"])
def test_every_file_comes_out_as_it_was_in_its_order(tmp_path, suffix, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tarfile.TarInfo("b")
    folder.type = tarfile.DIRTYPE
    first = ("b/" if suffix == ".zip" else folder, b"")
    path = write(tmp_path / f"texts{suffix}", [first, *reversed(FILES.items())])
    assert list(members(path)) == list(reversed(FILES.items()))
    assert list(members(str(path))) == list(members(path))
    assert list(tmp_path.iterdir()) == [path]


def test_a_gz_holds_one_file_in_any_number_of_streams(tmp_path):
    path = tmp_path / "b.txt.gz"
    path.write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    assert list(members(path)) == [("b.txt", b"one two")]


@pytest.mark.parametrize("name", ["./a.txt", "b//a.txt", "b/./a.txt", "b\\a.txt"])
@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_names_have_one_form(tmp_path, suffix, name):
    path = write(tmp_path / f"texts{suffix}", [(name, b"x")])
    assert [name for name, _ in members(path)] in (["a.txt"], ["b/a.txt"])


BAD_NAMES = ["/etc/passwd", "../a", "b/../../a", "..", "C:\\a", "C:a", "..\\a", "\\\\host\\a"]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
@pytest.mark.fault("S3 archive that points outside")
def test_a_name_that_leads_outside_is_refused(tmp_path, suffix, name):
    path = write(tmp_path / f"texts{suffix}", [("good", b"x"), (name, b"x")])
    with pytest.raises(InputError, match="is no relative name below the archive") as error:
        list(members(path))
    assert repr(name) in str(error.value) and path.name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_with_a_null_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", [("aXb", b"x")])
    path.write_bytes(path.read_bytes().replace(b"aXb", b"a\0b"))
    with pytest.raises(InputError, match="is no relative name|is damaged"):
        list(members(path))


def test_a_name_that_is_no_unicode_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("caf\udce9.txt", b"x"), ("good.txt", b"x")])
    with pytest.raises(InputError, match=r"'caf\\udce9.txt' is no relative name"):
        files.make(str(path), "train", "text")


@pytest.mark.parametrize("names", [("a", "a"), ("a", "./a"), ("b/a", "b\\a")])
@pytest.mark.parametrize("suffix", [".tar", ".zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused(tmp_path, suffix, names):
    path = write(tmp_path / f"texts{suffix}", [(name, b"x") for name in names])
    with pytest.raises(InputError, match="comes twice"):
        list(members(path))


KINDS = [getattr(tarfile, f"{kind}TYPE") for kind in ("SYM", "LNK", "CHR", "BLK", "FIFO")]


@pytest.mark.parametrize("kind", [*KINDS, tarfile.GNUTYPE_SPARSE])
@pytest.mark.parametrize("suffix", [".tar", ".tar.xz"])
@pytest.mark.fault("S3 archive that points outside")
def test_what_is_no_plain_file_in_a_tar_is_refused(tmp_path, suffix, kind):
    info = tarfile.TarInfo("odd")
    info.type, info.linkname = kind, "a.txt"
    path = write_tar(tmp_path / f"texts{suffix}", [*FILES.items(), (info, b"")])
    with pytest.raises(InputError, match="'odd' is a link, a device or sparse"):
        list(members(path))


@pytest.mark.parametrize("kind", [0o12, 0o02, 0o06, 0o01, 0o14])  # link, devices, FIFO, socket
def test_what_is_no_plain_file_in_a_zip_is_refused(tmp_path, kind):
    info = zipfile.ZipInfo("odd")
    info.external_attr = (kind << 12 | 0o777) << 16
    path = write_zip(tmp_path / "texts.zip", [*FILES.items(), (info, b"a.txt")])
    with pytest.raises(InputError, match="'odd' is a link or a device"):
        list(members(path))


def test_an_encrypted_member_is_refused(tmp_path):
    path = write_zip(tmp_path / "texts.zip", [("a", b"x" * 99)])
    data = bytearray(path.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + at] |= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="'a' is encrypted"):
        list(members(path))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_would_unpack_in_unbounded_pieces_is_refused(tmp_path, method):
    path = write_zip(tmp_path / "texts.zip", [("a", bytes(1 << 20))], method)
    with pytest.raises(InputError, match="'a' is not deflated"):
        list(members(path))


def bomb(path, size=40_000_000):
    if path.suffix == ".gz" and ".tar" not in path.name:
        with gzip.open(path, "wb") as file:
            file.write(bytes(size))
        return path
    return write(path, [("small", b"x"), ("big", bytes(size))])


@pytest.mark.parametrize("suffix", [*TARS[1:], ".zip", ".gz"])
@pytest.mark.fault("S4 archive bomb")
def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path, suffix):
    path = bomb(tmp_path / f"big{suffix}")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="unpacks to more than 1,0"):
            list(members(path, max_ratio=20))
        with pytest.raises(InputError, match="unpacks to more than 2,000,000 bytes"):
            list(members(path, max_bytes=2_000_000, max_ratio=1e9))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000
    assert sum(len(data) for _, data in members(path, max_ratio=1e9)) >= 40_000_000


def test_many_small_members_are_counted_together(tmp_path):
    path = write_zip(tmp_path / "a.zip", [(str(number), bytes(10_000)) for number in range(300)])
    with pytest.raises(InputError, match="unpacks to more than 2,000,000 bytes"):
        list(members(path, max_bytes=2_000_000, max_ratio=1e9))


def test_text_that_compresses_well_is_no_bomb(tmp_path):
    text = "".join(f"line {number} of the log says that all is well\n" for number in range(10**5))
    path = write_zip(tmp_path / "log.zip", [("log", text)])
    assert path.stat().st_size * 8 < len(text)
    assert dict(members(path)) == {"log": text.encode()}


@pytest.mark.parametrize("lie", [100, 1 << 20, 0xFFFFFFF0])
def test_a_zip_whose_header_lies_about_the_size_is_refused(tmp_path, lie):
    path = write_zip(tmp_path / "a.zip", [("a", bytes(3 << 20))])
    data = bytearray(path.read_bytes())
    for magic, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(magic) + at, lie)
    path.write_bytes(data)
    with pytest.raises(InputError, match="is damaged|unpacks to more"):
        list(members(path))


@pytest.mark.parametrize("suffix", [*TARS, ".zip", ".gz"])
def test_a_truncated_archive_is_refused(tmp_path, suffix):
    path = tmp_path / f"texts{suffix}"
    if suffix == ".gz":
        path.write_bytes(gzip.compress(FILES["a.txt"]))
        files = {"texts": FILES["a.txt"]}
    else:
        write(path, FILES.items())
        files = FILES
    data = path.read_bytes()
    end = len(data)
    if suffix == ".tar":  # the mark of the end is padded
        end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    for size in [*range(0, end, max(end // 150, 1)), end - 1]:
        path.write_bytes(data[:size])
        found = {}
        with pytest.raises(InputError, match=path.name):
            for name, content in members(path):
                found[name] = content
        assert found.items() <= files.items()  # no part of a file


@pytest.mark.parametrize("at", [0, 100, 156, 345])
def test_a_damaged_tar_header_hides_no_file(tmp_path, at):
    path = write_tar(tmp_path / "texts.tar", FILES.items())
    data = bytearray(path.read_bytes())
    data[data.index(b"b/c.txt") + at] ^= 0x41
    path.write_bytes(data)
    with pytest.raises(InputError, match="'a.txt' is the last one before damage"):
        list(members(path))


def test_a_tar_that_leads_back_to_its_beginning_is_refused(tmp_path, alarm):
    for kind in (tarfile.REGTYPE, tarfile.DIRTYPE):
        info = tarfile.TarInfo("b")
        info.type, info.size = kind, -1024
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
        path = write_tar(tmp_path / "texts.tar", [("a", b"")])
        path.write_bytes(path.read_bytes()[:512] + bytes(header) + bytes(2048))
        with pytest.raises(InputError, match="'b' is damaged|negative offset"):
            list(members(path))


@pytest.mark.parametrize("name", ["a.txt", "a.rar", "a"])
def test_what_is_no_archive_is_refused(tmp_path, name):
    (tmp_path / name).write_text("text")
    with pytest.raises(InputError, match="is no archive; expected .tar"):
        list(members(tmp_path / name))


@pytest.mark.parametrize("suffix", unpack.KINDS)
def test_a_missing_file_and_one_of_another_kind_are_refused(tmp_path, suffix):
    with pytest.raises(InputError, match="No such file"):
        list(members(tmp_path / f"a{suffix}"))
    (tmp_path / f"a{suffix}").write_text("text " * 1000)
    with pytest.raises(InputError, match=f"a{suffix}"):
        list(members(tmp_path / f"a{suffix}"))


def mutated(data, draw):
    """Returns `data` with a few bytes changed, a piece cut out, or a piece doubled."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data))
        if (kind := draw.random()) < 0.7:
            data[at] = draw.choice([0, 0xFF, 0x80, draw.randrange(256), data[at] ^ 1])
        elif kind < 0.85:
            del data[at : at + draw.randint(1, 40)]
        else:
            data[at:at] = data[at : at + draw.randint(1, 600)]
        data = data or bytearray(b"x")
    return bytes(data)


@pytest.mark.parametrize("suffix", [*TARS, ".zip", ".npz", ".npy"])
@pytest.mark.parametrize("count", [150, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_a_mutated_archive_is_read_or_refused(tmp_path, suffix, count, alarm):
    draw, path = random.Random(0), tmp_path / f"texts{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, a=np.arange(99.0), b=np.zeros((3, 4), np.int8))
    elif suffix == ".npy":
        np.save(path, np.arange(99.0).reshape(9, 11))
    else:
        write(path, FILES.items())
    data = path.read_bytes()
    read = load_array if suffix in (".npz", ".npy") else lambda path: list(members(path))
    refused = 0
    for _ in range(count):
        path.write_bytes(mutated(data, draw))
        try:
            read(path)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > count / 10


def test_arrays_come_out_as_they_were(tmp_path):
    arrays = dict(
        a=np.arange(12.0).reshape(3, 4),
        b=np.asfortranarray(np.arange(12).reshape(3, 4)),
        c=np.array(["x", "longer"]),
        d=np.zeros((0, 3), np.uint8),
        e=np.array(3, np.int8),
        f=np.zeros(3, [("x", np.float32), ("y", np.int16)]),
    )
    np.savez(tmp_path / "stored.npz", **arrays)
    np.savez_compressed(tmp_path / "deflated.npz", **arrays)
    for name in ("stored.npz", "deflated.npz"):
        found = load_array(tmp_path / name)
        assert list(found) == list(arrays)
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array, strict=True)
    for key, array in arrays.items():
        np.save(tmp_path / f"{key}.npy", array)
        np.testing.assert_array_equal(load_array(tmp_path / f"{key}.npy"), array, strict=True)


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("kind", ["npy", "npz", "raw", "field"])
@pytest.mark.fault("S2 malicious pickle")
def test_a_pickle_in_an_array_file_is_never_run(tmp_path, kind):
    canary = tmp_path / "canary"
    bad = np.array([Payload(canary)], object)
    path = tmp_path / ("a.npz" if kind == "npz" else "a.npy")
    if kind == "npz":
        np.savez(path, good=np.zeros(3), bad=bad)
    elif kind == "npy":
        np.save(path, bad, allow_pickle=True)
    elif kind == "field":
        structured = np.zeros(1, [("x", np.float32), ("y", object)])
        structured["y"] = bad
        np.save(path, structured, allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(bad))
    with pytest.raises(InputError, match="holds Python objects|is damaged"):
        load_array(path)
    assert not canary.exists()
    np.load(path, allow_pickle=True) if kind != "npz" else np.load(path, allow_pickle=True)["bad"]
    assert canary.exists()  # so the payload is live


def npy(shape, data=b"", descr="<f8"):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy((10**13,)), "announces 80,000,000,000,000 bytes"),
        (npy((1 << 40, 1 << 40)), "announces"),
        (npy((3,), bytes(23)), "announces 24 bytes .* holds 23"),
        (npy((3,), bytes(25)), "holds 25"),
        (npy((-3,), bytes(24)), "announces -24 bytes"),
        (npy((-1, -3), bytes(24)), "is damaged"),
        (npy((3,), bytes(24), "__import__('os')"), "is damaged"),
        (npy(("x" * 20_000,)), "is damaged"),
        (b"\x93NUMPY\x03\x00" + npy((3,), bytes(24))[8:], "is damaged"),
        (b"", "is damaged"),
        (b"\x93NUMPY\x01\x00", "is damaged"),
    ],
)
def test_an_array_that_is_not_what_its_header_says_is_refused(tmp_path, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    write_zip(tmp_path / "a.npz", [("good.npy", npy((3,), bytes(24))), ("bad.npy", content)])
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match=message) as error:
            load_array(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_an_array_over_the_cap_is_refused_from_its_header(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(1_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="announces 8,000,000 bytes of 7,000,000 at most"):
            load_array(tmp_path / "a.npy", max_bytes=7_000_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.fault("S4 archive bomb")
def test_a_bomb_of_arrays_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(4_000_000))
    assert (tmp_path / "a.npz").stat().st_size < 40_000  # numpy itself loads it
    with pytest.raises(InputError, match="'a.npy' unpacks to more than"):
        load_array(tmp_path / "a.npz")


TEXTS = {f"part{number % 3}/{number}.txt": f"text {number}: naïve\n" for number in range(90)}


def read_split(path, split):
    records = files.make(str(path), split, "text")
    texts = [records.read(index) for index in range(records.count)]
    return texts, [records.name(index) for index in range(records.count)], records.fingerprint


@pytest.mark.parametrize("suffix", files.ARCHIVES)
def test_an_archive_gives_the_documents_of_the_folder_it_was_made_from(tmp_path, suffix):
    for name, text in TEXTS.items():
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(text)
    other = {"picture.png": b"\x89PNG", "part1/.txt": b""}
    entries = [*other.items(), *((name, text.encode()) for name, text in TEXTS.items())]
    found = []
    for order in (entries, entries[::-1]):
        path = write(tmp_path / f"texts{suffix}", order)
        found.append({split: read_split(path, split) for split in ("train", "validation")})
    assert found[0] == found[1]
    for split, (texts, names, fingerprint) in found[0].items():
        expected, folder_names, folder_fingerprint = read_split(tmp_path / "texts", split)
        assert (texts, fingerprint) == (expected, folder_fingerprint)
        assert names == [name.replace("/texts/", f"/texts{suffix}/") for name in folder_names]
    assert len(found[0]["train"][0]) + len(found[0]["validation"][0]) == len(TEXTS)


def test_a_gz_is_one_document_as_its_content_is(tmp_path):
    text = "é" * 90 + "x" * 11
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    for split in ("train", "validation"):
        plain, packed = (read_split(tmp_path / name, split) for name in ("a.txt", "a.txt.gz"))
        assert (plain[0], plain[2]) == (packed[0], packed[2])


def test_an_archive_of_text_that_is_not_to_be_trusted_is_refused(tmp_path):
    path = write_zip(tmp_path / "texts.zip", [("a.txt", b"x"), ("../b.txt", b"x")])
    with pytest.raises(InputError, match=r"'../b.txt' is no relative name"):
        files.make(str(path), "train", "text")
    path = write_zip(tmp_path / "none.zip", [("a.png", b"x")])
    with pytest.raises(InputError, match="none of 0 text files in .*none.zip are of split train"):
        files.make(str(path), "train", "text")
