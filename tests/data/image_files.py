"""Small data sets of pictures, made anew for each test."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog")


def encoded(pixels, kind="PNG", **options):
    """Returns uint8 (h, w, c) as an image file."""
    file, pixels = io.BytesIO(), np.asarray(pixels, np.uint8)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def random_pixels(number, height=8, width=8, channels=3):
    """Returns the pixels of picture `number`: a class has its own brightness."""
    draw = np.random.default_rng(number)
    pixels = draw.integers(0, 100, (height, width, channels)) + 100 * (number % 2)
    return pixels.astype(np.uint8)


def write_folder(root, splits=("train", "test"), count=20):
    """Writes SPLIT/CLASS/NN.png; returns the pixels by name."""
    held = {}
    for split in splits:
        for number in range(count):
            name = f"{split}/{CLASSES[number % 2]}/{number:02}.png"
            held[name] = random_pixels(number + 1000 * len(split))
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(encoded(held[name]))
    return held


def giant_png(width, height):
    """Returns a PNG of a few bytes that announces many pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
