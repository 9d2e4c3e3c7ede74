"""Boxes follow what happens to their image; for known draws it is what a slow reference says."""

import inspect
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research import lookup
from research.arguments import InputError
from research.data.augment import NO_BOXES, color_jitter, compose, inside, letterbox, rand_augment
from research.data.augment.crop import piece

NAMES = lookup.names("data.augment")
DRAWS_NOTHING = ("center_crop", "resize", "letterbox")
SIZED = ("crop", "center_crop", "resize", "letterbox")
CERTAIN = {"flip": dict(probability=1.0), "random_erasing": dict(probability=1.0)}


def change(name, size=12, **section):
    return compose((name,), {name: section}, size)


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@st.composite
def scenes(draw):
    """An image, and boxes in it of which each has a class of its own."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    image = picture(height, width, draw(st.sampled_from((1, 3))), draw(st.integers(0, 9)))
    boxes = []
    for number in range(draw(st.integers(0, 5))):
        x = sorted(draw(st.lists(st.floats(0, 1, width=16), min_size=2, max_size=2, unique=True)))
        y = sorted(draw(st.lists(st.floats(0, 1, width=16), min_size=2, max_size=2, unique=True)))
        boxes.append((x[0] * width, y[0] * height, x[1] * width, y[1] * height, number))
    return image, np.array(boxes, np.float32).reshape(-1, 5)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(scene=scenes(), seed=st.integers(0, 2**32 - 1))
def test_boxes_stay_inside_and_valid_and_each_keeps_its_label(name, scene, seed):
    image, boxes = scene
    before = image.copy(), boxes.copy()
    apply = change(name, **CERTAIN.get(name, {}))
    found, kept = apply(image, boxes, np.random.default_rng(seed))
    np.testing.assert_array_equal(image, before[0])  # the data set's own
    np.testing.assert_array_equal(boxes, before[1])
    assert found.dtype == np.uint8 and found.shape[2] == image.shape[2]
    assert found.shape[:2] == ((12, 12) if name in SIZED else image.shape[:2])
    assert kept.dtype == np.float32 and kept.shape[1] == 5
    x1, y1, x2, y2, labels = kept.T
    assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 > x1).all() and (y2 > y1).all()
    assert (x2 <= found.shape[1]).all() and (y2 <= found.shape[0]).all()
    assert len(set(labels)) == len(labels) and set(labels) <= set(boxes[:, 4])
    again, alone = apply(image, NO_BOXES, np.random.default_rng(seed))
    np.testing.assert_array_equal(again, found)  # boxes change no draw
    assert alone.shape == (0, 5)
    if name in DRAWS_NOTHING:
        other, _ = apply(image, boxes, np.random.default_rng(seed + 1))
        np.testing.assert_array_equal(other, found)


@pytest.mark.parametrize("name", ["flip", "pad_crop", "crop", "center_crop", "resize", "letterbox"])
@pytest.mark.parametrize("seed", range(6))
def test_a_box_stays_on_what_it_was_around(name, seed):
    image = np.zeros((40, 48, 1), np.uint8)
    image[12:28, 16:32] = 255
    boxes = np.array([[16, 12, 32, 28, 7]], np.float32)
    section = dict(min_area=0.5) if name == "crop" else CERTAIN.get(name, {})
    found, kept = change(name, 36, **section)(image, boxes, np.random.default_rng(seed))
    y, x = np.nonzero(found[..., 0] > 200)
    seen = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
    # The letterbox's surround is grey, not white.
    assert np.abs(kept[0, :4] - seen).max() <= 1 and kept[0, 4] == 7


@pytest.mark.parametrize("name", rand_augment.BENT)
@pytest.mark.parametrize("signed", [-1.0, 0.6])
def test_a_bent_box_is_around_what_it_was_around(name, signed):
    image = np.zeros((60, 80, 1), np.uint8)
    image[24:36, 30:50] = 255
    boxes = np.array([[30, 24, 50, 36, 7]], np.float32)
    matrix = rand_augment.affine(name, signed, 60, 80)
    found, kept = rand_augment.bend(matrix, 0, 0.0, image, boxes)
    y, x = np.nonzero(found[..., 0] > 100)
    seen = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
    assert np.abs(kept[0, :4] - seen).max() <= 1.5


def test_bending_is_a_slow_reference_bilinear_in_the_middle():
    image = picture(9, 11, 1).astype(np.uint8)
    matrix = rand_augment.affine("rotate", 0.7, 9, 11)
    found, _ = rand_augment.bend(matrix, 128, 0.0, image, NO_BOXES)
    inverse = np.linalg.inv(matrix[:, :2])
    for row in range(9):
        for column in range(11):
            x, y = inverse @ (np.array([column + 0.5, row + 0.5]) - matrix[:, 2]) - 0.5
            if not (0 <= x < 10 and 0 <= y < 8):
                continue
            j, i, u, v = int(x), int(y), x - int(x), y - int(y)
            four = image[i : i + 2, j : j + 2, 0].astype(float)
            want = np.array([1 - v, v]) @ four @ np.array([1 - u, u])
            assert abs(found[row, column, 0] - want) <= 1.5


def test_two_flips_are_none_and_one_is_the_mirror():
    image, boxes = picture(5, 7), np.array([[1, 0, 3, 2, 4]], np.float32)
    for vertical in (False, True):
        apply = change("flip", probability=1.0, vertical=vertical)
        once, moved = apply(image, boxes, np.random.default_rng(0))
        np.testing.assert_array_equal(once, image[::-1] if vertical else image[:, ::-1])
        assert moved.tolist() == ([[1, 3, 3, 5, 4]] if vertical else [[4, 0, 6, 2, 4]])
        twice, again = apply(once, moved, np.random.default_rng(0))
        np.testing.assert_array_equal(twice, image)
        np.testing.assert_array_equal(again, boxes)


def test_a_change_has_its_probability():
    apply, image = change("flip", probability=0.3), picture(1, 2)
    draws = [apply(image, NO_BOXES, np.random.default_rng(n))[0] is not image for n in range(2000)]
    assert 0.26 < np.mean(draws) < 0.34


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("crop", dict(min_area=1.0, max_ratio=1.0)), ("center_crop", {}), ("resize", {}),
        ("letterbox", {}), ("pad_crop", dict(padding=0)), ("flip", dict(probability=0.0)),
        ("random_erasing", dict(probability=0.0)), ("rand_augment", dict(magnitude=0.0)),
        ("color_jitter", dict(brightness=0.0, contrast=0.0, saturation=0.0)),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_the_identity(name, section):
    image, boxes = picture(12, 12), np.array([[1, 2, 5, 12, 3]], np.float32)
    if name == "rand_augment":  # 256 grey levels: nothing to stretch or to even out
        image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    for seed in range(8):
        found, kept = change(name, **section)(image, boxes, np.random.default_rng(seed))
        np.testing.assert_array_equal(found, image)
        np.testing.assert_allclose(kept, boxes, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_a_crop_is_the_piece_that_was_drawn_averaged_down(seed):
    image = picture(32, 32)
    found, _ = change("crop", 8)(image, NO_BOXES, np.random.default_rng(seed))
    x, y, wide, high = piece(32, 32, 0.08, 4 / 3, np.random.default_rng(seed))
    np.testing.assert_allclose(
        found, slow_resize(image[y : y + high, x : x + wide], 8, 8), atol=1.01
    )


def slow_resize(image, height, width):
    """Bilinear with a triangle as wide as the pixels that go into one."""

    def weights(length, size):
        step = length / size
        support = max(step, 1.0)
        table = np.zeros((size, length))
        for to in range(size):
            middle = (to + 0.5) * step
            for at in range(length):
                table[to, at] = max(0.0, 1 - abs(at + 0.5 - middle) / support)
        return table / table.sum(axis=1, keepdims=True)

    high, wide = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.einsum("ai,ijc,bj->abc", high, image.astype(float), wide)


def test_pieces_have_the_areas_and_ratios_asked_for():
    shares, ratios = [], []
    for seed in range(3000):
        x, y, wide, high = piece(200, 300, 0.2, 2.0, np.random.default_rng(seed))
        assert 0 <= x <= 300 - wide and 0 <= y <= 200 - high
        shares.append(wide * high / 60_000)
        ratios.append(math.log(wide / high))
    assert 0.19 < min(shares) < 0.22 and 0.97 < max(shares) <= 1
    assert -0.72 < min(ratios) < -0.6 and 0.6 < max(ratios) < 0.72


def test_of_a_long_image_the_middle_is_taken_where_no_piece_fits():
    assert piece(10, 1000, 0.9, 4 / 3, np.random.default_rng(0)) == (493, 0, 13, 10)
    assert piece(1, 1, 0.08, 4 / 3, np.random.default_rng(0))[2:] == (1, 1)


def test_a_padded_crop_is_a_window_of_the_padded_image_and_all_are_drawn():
    image, seen = picture(4, 4, 1, seed=3) // 2 + 100, set()
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), constant_values=9)
    windows = {padded[y : y + 4, x : x + 4].tobytes() for y in range(5) for x in range(5)}
    for seed in range(300):
        apply = change("pad_crop", padding=2, fill=9)
        found, _ = apply(image, NO_BOXES, np.random.default_rng(seed))
        seen.add(found.tobytes())
    assert seen == windows


def test_the_visible_share_decides_which_boxes_stay():
    boxes = np.array([[-6, 0, 4, 10, 1], [-4, 0, 6, 10, 2], [20, 0, 30, 9, 3], [9, 9, 9, 12, 4]])
    kept = inside(boxes.astype(np.float32), 10, 12, visible=0.5)
    assert kept.tolist() == [[0, 0, 6, 10, 2]]
    assert inside(boxes.astype(np.float32), 10, 12)[:, 4].tolist() == [1, 2]


def test_a_letterbox_keeps_proportions_and_its_boxes_come_back():
    image = picture(30, 60)
    boxes = np.array([[6, 3, 40, 28, 1]], np.float32)
    found, moved = change("letterbox", 20)(image, boxes, np.random.default_rng(0))
    assert (found[:5] == 114).all() and (found[15:] == 114).all()
    np.testing.assert_allclose(found[5:15], slow_resize(image, 10, 20), atol=1.01)
    np.testing.assert_allclose(moved, [[2, 6, 40 / 3, 5 + 28 / 3, 1]], rtol=1e-6)
    np.testing.assert_allclose(letterbox.back(moved[:, :4], 30, 60, 20), boxes[:, :4], atol=1e-4)
    wild = np.array([[-50, -50, 50, 50]], np.float32)
    assert letterbox.back(wild, 30, 60, 20).tolist() == [[0, 0, 60, 30]]


def test_an_erased_rectangle_is_noise_and_the_rest_stays():
    image, areas, ratios = np.zeros((50, 50, 3), np.uint8), [], []
    for seed in range(400):
        apply = change("random_erasing", probability=1.0)
        found, _ = apply(image, NO_BOXES, np.random.default_rng(seed))
        y, x = np.nonzero(found.any(axis=2))
        high, wide = y.max() + 1 - y.min(), x.max() + 1 - x.min()
        assert (found[y.min() : y.max() + 1, x.min() : x.max() + 1].any(axis=2)).mean() > 0.99
        areas.append(high * wide / 2500)
        ratios.append(high / wide)
    assert 0.01 < min(areas) < 0.04 and 0.3 < max(areas) < 0.42
    assert min(ratios) > 0.25 and 2.5 < max(ratios) < 4
    with pytest.raises(InputError, match="min_area=0.5 is above max_area=0.4"):
        change("random_erasing", min_area=0.5)


def blended(image, other, factor):
    return np.clip(other + factor * (image.astype(float) - other), 0, 255)


def test_color_jitter_is_its_definition():
    image = picture(8, 8)
    grey = np.floor(image @ [0.299, 0.587, 0.114] + 0.5)[..., None]
    others = dict(brightness=0.0, contrast=np.floor(grey.mean() + 0.5), saturation=grey)
    for name, other in others.items():
        for seed in range(6):
            off = dict.fromkeys(("brightness", "contrast", "saturation"), 0.0)
            found, _ = change("color_jitter", **off | {name: 0.8})(
                image, NO_BOXES, np.random.default_rng(seed)
            )
            random = np.random.default_rng(seed)
            order = random.permutation(4).tolist()
            draws = random.uniform(-1, 1, size=4)
            factor = 1 + 0.8 * draws[order.index(list(others).index(name))]
            np.testing.assert_allclose(found, blended(image, other, factor), atol=1.6)


def test_a_turn_of_the_hue_goes_around_the_circle():
    from PIL import Image

    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]], np.uint8)
    found = np.asarray(color_jitter.turned(Image.fromarray(colours), 1 / 3)).astype(int)
    want = np.array([[[0, 255, 0], [0, 0, 255], [255, 0, 0], [90, 90, 90]]])
    assert np.abs(found - want).max() <= 6
    back = np.asarray(color_jitter.turned(Image.fromarray(found.astype(np.uint8)), -1 / 3))
    assert np.abs(back.astype(int) - colours).max() <= 9


@pytest.mark.parametrize(
    ("name", "signed", "reference"),
    [
        ("solarize", 0.5, lambda x: np.where(x < 128, x, 255 - x.astype(int))),
        ("posterize", 1.0, lambda x: x & 0xF0),
        ("posterize", 0.5, lambda x: x & 0xFC),
        ("brightness", -1.0, lambda x: x * 0.1),
        ("brightness", 0.5, lambda x: np.minimum(x * 1.45, 255)),
        ("color", 1.0, lambda x: x),  # grey has no colour
        ("autocontrast", 0.3, lambda x: (x.astype(float) - x.min()) * 255 / (x.max() - x.min())),
    ],
)
def test_each_change_of_values_is_its_definition(name, signed, reference):
    image = picture(9, 9, 1) // 2 + 30
    found = rand_augment.recolor(name, abs(signed), signed, image)
    np.testing.assert_allclose(found, reference(image), atol=1.01)


def test_rand_augment_draws_each_of_its_14_changes_evenly(monkeypatch):
    assert len(rand_augment.NAMES) == 14
    seen = []
    for kind in ("affine", "recolor"):
        original = getattr(rand_augment, kind)

        def count(name, *rest, original=original):
            seen.append(name)
            return original(name, *rest)

        monkeypatch.setattr(rand_augment, kind, count)
    image = picture(4, 4)
    for seed in range(700):
        change("rand_augment")(image, NO_BOXES, np.random.default_rng(seed))
    counts = [seen.count(name) for name in rand_augment.NAMES if name != "identity"]
    assert sum(counts) == len(seen) and min(counts) > 60 and max(counts) < 140


@pytest.mark.parametrize("name", NAMES)
def test_a_change_pickles_and_its_file_has_the_one_signature(name):
    module = inspect.getmodule(lookup.find("data.augment", name))
    assert list(inspect.signature(change(name)).parameters) == ["image", "boxes", "random"]
    assert module.__doc__
    image, again = picture(9, 9), pickle.loads(pickle.dumps(change(name)))
    for seed in range(3):
        one, _ = change(name)(image, NO_BOXES, np.random.default_rng(seed))
        other, _ = again(image, NO_BOXES, np.random.default_rng(seed))
        np.testing.assert_array_equal(one, other)
