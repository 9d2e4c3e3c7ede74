"""The contact sheet shows each picture of a batch, its class, and its boxes where they are."""

import numpy as np

from research.data import contact_sheet, images
from research.data.contact_sheet import LINE, SIDE


def test_boxes_are_drawn_where_they_are_and_padding_is_left_out():
    batch = dict(
        image=np.full((3, 40, 40, 3), 200, np.uint8),
        boxes=np.array([[[10, 20, 30, 40], [0, 0, 0, 0]]] * 3, np.float32),
        labels=np.array([[1, -1]] * 3),
        weight=np.array([1.0, 1.0, 0.0]),
    )
    sheet = np.asarray(contact_sheet.draw(batch, ["a", "ünï名"])).astype(int)
    assert sheet.shape == (SIDE + LINE, 2 * SIDE, 3)
    scale, color = (SIDE - 2) / 40, np.array([0x3C, 0xB4, 0x4B])
    y, x = np.nonzero(np.abs(sheet[:, :SIDE] - color).sum(axis=2) == 0)
    edges = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
    assert np.abs(edges - scale * batch["boxes"][0, 0]).max() <= 1
    assert (sheet[5:30, 5:30] == 200).all()  # no box of padding at the corner
    np.testing.assert_array_equal(sheet[:, :SIDE], sheet[:, SIDE:])


def test_a_class_is_written_below_its_grey_picture_and_many_make_rows():
    image = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), np.uint8)
    batch = dict(image=image, labels=np.arange(10) % 2, weight=np.ones(10))
    sheet = np.asarray(contact_sheet.draw(batch, ["a", "b"]))
    assert sheet.shape == (2 * (SIDE + LINE), 8 * SIDE, 3)
    below = sheet[SIDE : SIDE + LINE, :SIDE]
    assert below.min() < 100 and (sheet[SIDE + LINE :, 2 * SIDE :] == 255).all()
    assert sheet[8, 8, 0] == image[0, 0, 0, 0]


def test_the_sheet_of_a_source_shows_the_examples_that_training_begins_with():
    given = dict(reader="digits", size=8, channels=1, pipeline=("pad_crop",))
    source = images.make(**given, pad_crop=dict(padding=1), split="train", seed=3, batch=16)
    first = next(source.batches())
    shown = np.asarray(contact_sheet.of(source, seed=3))
    np.testing.assert_array_equal(
        shown, np.asarray(contact_sheet.draw(first, source.info["classes"]))
    )
    assert (shown != np.asarray(contact_sheet.of(source, seed=4))).any()
