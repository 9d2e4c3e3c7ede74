"""Batches of pictures: each picture once in a pass, the same on resume, bad ones named."""

import numpy as np
import pytest

from research.arguments import InputError
from research.data import images
from research.data.augment import compose
from tests.data.image_files import CLASSES, encoded, giant_png, random_pixels, write_folder

DIGITS = dict(reader="digits", size=8, channels=1)


def make(split="train", seed=0, batch=8, **given):
    return images.make(**(dict(size=8, held_out=0.0) | given), split=split, seed=seed, batch=batch)


def taken(source, count, start=0):
    batches = source.batches(start)
    return [next(batches) for _ in range(count)]


def assert_equal(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path)
    return tmp_path


def test_a_batch_has_the_form_of_its_spec_and_the_data_decides_labels(folder):
    source = make(reader="folder", path=str(folder))
    (batch,) = taken(source, 1)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in source.spec.items()
    }
    assert batch["image"].dtype == np.uint8 and batch["labels"].dtype == np.int32
    assert source.info["classes"] == list(CLASSES) and source.info["labels"] == 2
    assert source.info["size"] == 8 and source.info["channels"] == 3


def test_a_pass_holds_each_picture_once_with_its_own_label(folder):
    held = write_folder(folder)
    source = make("test", reader="folder", path=str(folder))
    found = [row for batch in source.batches() for row in zip(*batch.values(), strict=True)]
    assert sum(weight for _, _, weight in found) == 20 and len(found) == 24
    want = {x.tobytes(): CLASSES.index(n.split("/")[1]) for n, x in held.items() if "test" in n}
    assert {image.tobytes(): label for image, label, weight in found if weight} == want


def test_a_run_resumes_with_the_same_augmented_batches():
    given = dict(
        reader="digits", size=12, pipeline=("crop", "flip", "color_jitter", "rand_augment")
    )
    whole = taken(make(**given), 6)
    assert_equal(whole[4:], taken(make(**given), 2, start=4))
    assert any((one != other).any() for one, other in [(whole[0]["image"], whole[1]["image"])])
    other = taken(make(**given, seed=1), 1)
    assert (other[0]["image"] != whole[0]["image"]).any()


def test_a_picture_is_augmented_anew_in_each_epoch(folder):
    source = make(reader="folder", path=str(folder), pipeline=("crop",), batch=20)
    first, second = ({x.tobytes() for x in one["image"]} for one in taken(source, 2))
    assert len(first) == len(second) == 20 and not first & second


@pytest.mark.parametrize(
    "given", [DIGITS, dict(reader="digits", scales=(8, 12), pipeline=("crop",))]
)
def test_worker_processes_change_no_batch(given):
    want = taken(make(**given), 3)
    batches = make(**given, workers=2).batches()
    assert_equal([next(batches) for _ in range(3)], want)
    batches.close()


def test_two_hosts_have_the_batch_of_one():
    source = make(**DIGITS)
    (whole,) = taken(source, 1)
    halves = [next(source.batches(0, (host, 2))) for host in (0, 1)]
    for name in whole:
        both = np.concatenate([half[name] for half in halves])
        np.testing.assert_array_equal(both, whole[name])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-20], "cannot be decoded"),
        (lambda data: b"", "cannot be decoded"),
        (lambda data: b"%!PS-Adobe-3.0 EPSF-3.0\n", "cannot be decoded"),
        (lambda data: giant_png(60_000, 60_000), "too large|3600000000 pixels"),
        (lambda data: giant_png(12_000, 9_000), "12000 x 9000 pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore:Image size")
def test_a_bad_picture_is_named_or_counted_against_the_budget(folder, damage, message, capsys):
    file = folder / "test" / "dog" / "05.png"
    file.write_bytes(damage(file.read_bytes()))
    given = dict(reader="folder", path=str(folder), split="test")
    with pytest.raises(InputError, match=f"test/dog/05.png.*({message}).*skip_budget"):
        list(make(**given).batches())
    batches = list(make(**given, skip_budget=1).batches())
    assert sum(batch["weight"].sum() for batch in batches) == 19
    assert "test/dog/05.png" in capsys.readouterr().err
    (folder / "test" / "cat" / "06.png").write_bytes(b"")
    with pytest.raises(InputError, match="more than skip_budget=1 corrupt records; the last one"):
        list(make(**given, skip_budget=1).batches())


def test_a_picture_that_goes_away_during_a_run_is_named(folder):
    source = make("test", reader="folder", path=str(folder), skip_budget=1)
    (folder / "test" / "dog" / "05.png").unlink()
    assert sum(batch["weight"].sum() for batch in source.batches()) == 19


def test_pictures_of_other_kinds_are_converted(tmp_path):
    pixels = random_pixels(1, 8, 8, 1)
    files = {
        "grey.png": encoded(pixels), "deep.png": encoded(pixels), "alpha.png": encoded(pixels),
        "palette.gif": encoded(pixels, "GIF"),
    }  # fmt: skip
    (tmp_path / "a").mkdir()
    for name, data in files.items():
        (tmp_path / "a" / name).write_bytes(data)
    source = make("train", reader="folder", path=str(tmp_path), batch=4)
    (batch,) = taken(source, 1)
    np.testing.assert_array_equal(batch["image"], pixels[None].repeat(3, -1).repeat(4, 0))


def test_a_picture_of_another_size_than_the_batch_is_refused_by_name(folder):
    source = make(reader="folder", path=str(folder), pipeline=(), size=9)
    with pytest.raises(InputError, match="leaves its pipeline as 8 x 8 pixels, not 9 x 9; end"):
        taken(source, 1)


def test_evaluation_draws_nothing_and_has_a_pipeline_of_its_own(folder):
    given = dict(reader="folder", path=str(folder), pipeline=("crop", "flip", "random_erasing"))
    one, other = (list(make("test", seed=seed, **given).batches()) for seed in (0, 1))
    assert_equal(one, other)
    turned = make("test", eval_pipeline=("flip",), flip=dict(probability=1.0), **given)
    np.testing.assert_array_equal(next(turned.batches())["image"][:, :, ::-1], one[0]["image"])


def test_a_grey_picture_and_a_coloured_one_fit_either_number_of_channels(folder):
    digits = make(**DIGITS | dict(channels=3))
    image = taken(digits, 1)[0]["image"]
    assert image.shape == (8, 8, 8, 3) and (image == image[..., :1]).all()
    grey = taken(make(reader="folder", path=str(folder), channels=1), 1)[0]["image"]
    assert grey.shape == (8, 8, 8, 1)


def test_validation_is_held_out_of_train_where_there_is_none(folder):
    given = dict(reader="folder", path=str(folder), held_out=0.3)
    parts = {name: make(name, **given).info["images"] for name in ("train", "validation", "test")}
    assert parts["train"] + parts["validation"] == 20 and parts["test"] == 20
    assert 0 < parts["validation"] < 12
    with pytest.raises(
        InputError, match="no split 'validation'; it has .*set config.data.held_out"
    ):
        make("validation", reader="folder", path=str(folder))
    with pytest.raises(InputError, match="no split 'dev'; it has"):
        make("dev", **given)


def test_a_class_without_a_picture_is_named_in_info(folder):
    for file in (folder / "test" / "cat").iterdir():
        file.unlink()
    (folder / "test" / "dog" / "notes.txt").write_text("none")
    info = make("test", reader="folder", path=str(folder)).info
    assert info["absent"] == ["cat"] and info["labels"] == 2
    assert info["ignored"] == 1 and info["ignored_files"] == ["test/dog/notes.txt"]


def test_a_file_is_loaded_as_evaluation_sees_it(folder):
    given = dict(reader="folder", path=str(folder), center_crop=dict(share=0.5))
    batch = next(make("test", **given).batches())
    file = folder / "test" / "cat" / "00.png"
    change = compose(("center_crop",), {"center_crop": dict(share=0.5)}, 8)
    for one in (str(file), file, file.read_bytes()):
        np.testing.assert_array_equal(images.load(one, 8, 3, change), batch["image"][0])
    assert images.load(file, 5, 1).shape == (5, 5, 1)
    for bad in (folder / "none.png", b"no image"):
        with pytest.raises(InputError, match="cannot be (read|decoded)"):
            images.load(bad, 8, 3)


def test_each_batch_has_one_of_the_scales_and_all_of_them_come(folder):
    given = dict(scales=(8, 12, 16), pipeline=("crop",))
    source = make(**DIGITS | given)
    sizes = [batch["image"].shape[1:3] for batch in taken(source, 30)]
    assert set(sizes) == {(8, 8), (12, 12), (16, 16)}
    assert min(sizes.count((size, size)) for size in (8, 12, 16)) >= 4
    specs = [spec["image"].shape[1] for spec in (*source.narrower, source.spec)]
    assert specs == [8, 12, 16]
    resumed = [batch["image"].shape[1:3] for batch in taken(make(**DIGITS | given), 10, start=20)]
    assert resumed == sizes[20:]
    assert {b["image"].shape[1] for b in make("validation", **DIGITS | given).batches()} == {8}


@pytest.mark.parametrize("sizes", [{}, dict(scales=(4, 12)), dict(progressive=((0, 4), (2, 12)))])
def test_a_pass_over_train_sees_its_images_as_evaluation_sees_them(sizes):
    source = make(**DIGITS, **sizes, pipeline=("crop", "flip", "color_jitter"))
    plain = make(**DIGITS, pipeline=("center_crop",))
    found, expected = (list(one.batches(one_pass=True)) for one in (source, plain))
    assert_equal(found, expected)
    assert {batch["image"].shape[1] for batch in found} == {8}
    assert 8 not in {batch["image"].shape[1] for batch in taken(source, 6)} or not sizes


def test_progressive_sizes_change_at_their_steps():
    source = make(**DIGITS, progressive=((0, 4), (3, 8), (5, 6)), pipeline=("resize",))
    sizes = [batch["image"].shape[1] for batch in taken(source, 8)]
    assert sizes == [4, 4, 4, 8, 8, 6, 6, 6]
    assert [b["image"].shape[1] for b in taken(source, 3, start=4)] == sizes[4:7]


def test_a_batch_of_a_scale_is_the_batch_that_this_size_alone_would_give():
    scaled = make(**DIGITS, scales=(4, 8), pipeline=("resize", "flip"))
    for step, batch in enumerate(taken(scaled, 6)):
        alone = make(**DIGITS | dict(size=batch["image"].shape[1]), pipeline=("resize", "flip"))
        assert_equal([batch], taken(alone, 1, start=step))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(scales=(8, 0)), "scales=.8, 0. must hold sizes in whole pixels"),
        (dict(scales=(8,), progressive=((0, 8),)), "are both set; keep one"),
        (
            dict(progressive=((1, 8),)),
            "must be pairs of a step and a size, whose steps rise from 0",
        ),
        (dict(progressive=((0, 8), (0, 9))), "must be pairs"),
        (dict(progressive=(0, 8)), "must be pairs"),
        (dict(progressive=((0, 8.5),)), "must hold sizes in whole pixels"),
        (dict(reader="digit"), "did you mean 'digits'"),
        (dict(pipeline=("crp",)), "did you mean 'crop'"),
        (dict(crp=dict(size=3)), "config.data.crp is not known"),
        (dict(pipeline=("crop",), crop=dict(sise=3)), "config.data.crop.sise is not known"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(given, message):
    with pytest.raises(InputError, match=message) as error:
        make(**DIGITS | given)
    assert "\n" not in str(error.value)
