"""Changes of images on the device do what those of the host do, each image by its own draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance

from research.data.augment import flip as host_flip
from research.kernels import augment as device
from research.kernels.augment import augment

KEY = jax.random.key(3)


def images(count=64, high=12, wide=16, channels=3, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(1, 256, (count, high, wide, channels)).astype(np.uint8)


def boxes(count=64, high=12, wide=16, seed=0):
    random = np.random.default_rng(seed)
    first = random.integers(0, (wide - 6, high - 6), (count, 3, 2))
    return np.concatenate([first, first + random.integers(2, 7, (count, 3, 2))], -1).astype("f4")


def test_nothing_is_changed_where_nothing_is_on():
    image, found = augment(KEY, images(), boxes())
    np.testing.assert_array_equal(image, images())
    np.testing.assert_array_equal(found, boxes())
    assert image.dtype == np.uint8


def test_a_mirrored_image_and_its_boxes_are_the_hosts_and_half_of_them_are():
    image, found = augment(KEY, images(), boxes(), flip=1.0)
    for n in range(len(images())):
        labelled = np.pad(boxes()[n], ((0, 0), (0, 1)))
        one, wanted = host_flip.make(1.0)(images()[n], labelled, np.random.default_rng(0))
        np.testing.assert_array_equal(image[n], one)
        np.testing.assert_array_equal(found[n], wanted[:, :4])
    image, found = augment(KEY, images(400), boxes(400), flip=0.5)
    mirrored = (np.asarray(image) != images(400)).any((1, 2, 3))
    assert 150 < mirrored.sum() < 250  # 200 +- 10, five deviations
    np.testing.assert_array_equal((np.asarray(found) != boxes(400)).any((1, 2)), mirrored)


def test_a_shifted_image_is_one_of_all_shifts_and_its_boxes_go_with_it():
    most, seen = 2, set()
    image, found = augment(KEY, images(200), boxes(200), shift=most)
    for n in range(200):
        padded = np.pad(images(200)[n], ((most, most), (most, most), (0, 0)))
        offsets = [
            (dx, dy)
            for dx in range(-most, most + 1)
            for dy in range(-most, most + 1)
            if (padded[most - dy : most - dy + 12, most - dx : most - dx + 16] == image[n]).all()
        ]
        assert len(offsets) == 1
        moved = boxes(200)[n] + np.tile(offsets[0], 2)
        cut = np.clip(moved, 0, np.tile((16, 12), 2))
        areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (cut, moved)]
        wanted = np.where((areas[0] >= 0.2 * areas[1])[:, None], cut, 0)
        np.testing.assert_allclose(found[n], wanted)
        seen.add(offsets[0])
    assert len(seen) == 25


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.3])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_brightness_contrast_and_saturation_are_pillows(factor, place, monkeypatch):
    enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[place]
    draws = jnp.zeros((64, 3)).at[:, place].set(factor - 1)
    monkeypatch.setattr(jax.random, "uniform", lambda *_, **__: draws)
    found = device.jittered(KEY, images(), 1.0)
    for n in range(64):
        wanted = np.asarray(enhancer(Image.fromarray(images()[n])).enhance(factor)).astype(float)
        np.testing.assert_allclose(found[n], wanted, atol=1.6)  # Pillow rounds greys and blends


def test_jitter_has_the_strength_it_says_and_its_own_draw_for_each_image():
    grey = np.full((500, 4, 4, 1), 100, np.uint8)
    found = np.asarray(augment(KEY, grey, jitter=0.3)[0])[:, 0, 0, 0]
    assert 70 <= found.min() < 74 and 126 < found.max() <= 130
    assert len(np.unique(found)) > 490


@pytest.mark.parametrize(("probability", "least", "most"), [(1.0, 400, 400), (0.25, 60, 140)])
def test_what_is_erased_is_a_rectangle_of_the_papers_size(probability, least, most):
    image = np.asarray(augment(KEY, images(400, 40, 30), erase=probability)[0])
    changed = (image != images(400, 40, 30)).any(-1)
    assert least <= changed.any((1, 2)).sum() <= most
    shares = []
    for one in changed[changed.any((1, 2))]:
        rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
        high, wide = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        # A pixel of noise equals the one it hides once in 256^3.
        assert one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 1 / 0.3 * 1.35 > high / wide > 0.3 / 1.35  # sides are rounded
        shares.append(high * wide / 1200)
    assert 0.01 < min(shares) < 0.06 and 0.3 < max(shares) < 0.42


def test_the_draws_do_not_depend_on_how_the_batch_is_split():
    options = dict(shift=2, flip=0.5, jitter=0.4, erase=0.5)
    whole = jax.jit(lambda k, x, b: augment(k, x, b, **options))(KEY, images(), boxes())
    mesh = jax.make_mesh((8,), ("data",))
    split = [
        jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for x in (images(), boxes())
    ]
    parts = jax.jit(lambda k, x, b: augment(k, x, b, **options))(KEY, *split)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
