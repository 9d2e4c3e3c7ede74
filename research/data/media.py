"""Pictures and sound from bytes that somebody else made: whole, or a RecordError.

    pixels = decode_image(data, name="photo 17")                # uint8 (height, width, channels)
    samples, rate = decode_audio(data, name="utterance 17")     # float32 (samples,), Hz

What a header announces is refused before it is decoded if it is too much to hold.
"""

import importlib
import io
import struct
from typing import Any

import numpy as np

from research.arguments import InputError
from research.data.source import RecordError

MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a GiB in RGB
MAX_SECONDS, MAX_RATE, MAX_CHANNELS = 3600.0, 192_000, 8
IMAGES = ("BMP", "GIF", "JPEG", "PNG", "WEBP")  # EPS would run a program
ORIENTATION = 0x0112  # the tag of EXIF, and what each of its values asks for
TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
    7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
SOUNDS = (b"RIFF", b"fLaC", b"OggS")  # an MP3 does not show that it was cut off


def decode_image(
    data: bytes, max_pixels: int = MAX_PIXELS, name: str = "the image", channels: int = 3
) -> np.ndarray:
    """Returns the first frame as uint8 (height, width, channels), RGB or 1 of grey, upright as its
    EXIF has it. Grey is repeated, what is transparent lies on white, of 16 bits the high 8 stay.

    Raises RecordError, which calls it `name`, for an image that is too large, cut off or not
    readable; InputError without Pillow.
    """
    pillow = package("PIL.Image", "vision")
    try:
        image = pillow.open(io.BytesIO(data), formats=IMAGES)
        if image.width * image.height > max_pixels:
            raise RecordError(f"{name} has {image.width} x {image.height} pixels, {max_pixels=}")
        image.verify()  # the checksums of a PNG, which are not looked at later
        image = pillow.open(io.BytesIO(data), formats=IMAGES)
        turn = TURNS.get(image.getexif().get(ORIENTATION))
        image = _eight_bits(pillow, image, name).convert("L" if channels == 1 else "RGB")
        image = image.transpose(pillow.Transpose[turn]) if turn else image
        return np.array(image).reshape(image.height, image.width, channels)
    except RecordError:
        raise
    except pillow.DecompressionBombError as error:  # Pillow refuses twice its limit itself
        raise RecordError(f"{name} is too large ({error}), {max_pixels=}") from None
    except Exception as error:  # each format has kinds of its own
        raise RecordError(f"{name} cannot be decoded: {' '.join(str(error).split())}") from None


def _eight_bits(pillow: Any, image: Any, name: str) -> Any:
    """Returns a Pillow image of 8 bits and without transparency."""
    if image.mode.startswith("I;16"):  # convert() would clip, not scale; of RGB Pillow keeps 8 bits
        return pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode.startswith(("I", "F")):
        raise RecordError(f"{name} has pixels of kind {image.mode}; convert it to 8 bits")
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    white = pillow.new("RGBA", image.size, "white")
    return pillow.alpha_composite(white, image)


def decode_audio(
    data: bytes, max_seconds: float = MAX_SECONDS, name: str = "the sound"
) -> tuple[np.ndarray, int]:
    """Returns the mean of the channels, float32 (samples,), and its rate in Hz: WAV, FLAC, Ogg.

    Raises RecordError, which calls it `name`, for a sound that is too long, cut off or not
    readable, or has samples that are no numbers; InputError without soundfile.
    """
    soundfile = package("soundfile", "speech")
    try:
        if data[:4] not in SOUNDS:
            raise ValueError("it is no WAV, FLAC or Ogg; convert it")
        seconds, is_whole = _announced(data)
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, channels = file.samplerate, file.channels
            seconds = max(seconds, file.frames / rate)
            if seconds > max_seconds or rate > MAX_RATE or channels > MAX_CHANNELS:
                what = f"{seconds:,.0f} s of {channels} channels at {rate} Hz, {max_seconds=:g}"
                raise RecordError(f"{name} announces {what}, {MAX_CHANNELS=}, {MAX_RATE=}")
            samples = file.read(file.frames, dtype="float32", always_2d=True)
            if not is_whole or not 0 < len(samples) == file.frames:
                raise ValueError("it is cut off, or empty")
        if not np.isfinite(samples).all():
            raise ValueError("it has samples that are not finite")
        return samples.mean(axis=1), rate
    except RecordError:
        raise
    except Exception as error:  # libsndfile's, or of a header that makes no sense
        raise RecordError(f"{name} cannot be decoded: {' '.join(str(error).split())}") from None


def _announced(data: bytes) -> tuple[float, bool]:
    """Returns seconds and wholeness of a WAV and an Ogg, where libsndfile takes what is there."""
    if data[:4] == b"OggS":  # the last page has the mark of the end, and all its segments
        page = data[data.rindex(b"OggS") :]
        return 0.0, bool(page[5] & 4) and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    at, bytes_per_second = 12, 0
    while data[:4] == b"RIFF":
        kind, size = struct.unpack_from("<4sI", data, at)
        if kind == b"fmt ":
            (bytes_per_second,) = struct.unpack_from("<I", data, at + 16)
        if kind == b"data":
            return size / bytes_per_second, at + 8 + size <= len(data)
        at += 8 + size + size % 2
    return 0.0, True


def package(name: str, extra: str) -> Any:
    """Returns a module that comes with an extra; raises InputError that says which."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a library of the system is missing
        raise InputError(f"{error}; pip install 'anneal[{extra}]'") from None
