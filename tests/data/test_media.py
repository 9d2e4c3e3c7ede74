"""A picture or a sound is decoded whole or is a RecordError; no header makes it fill the memory."""

import io
import random
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest

from research.arguments import InputError
from research.data.media import decode_audio, decode_image
from research.data.source import RecordError

Image = pytest.importorskip("PIL.Image")
soundfile = pytest.importorskip("soundfile")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8).repeat(8, 0).repeat(8, 1)
RATE = 16_000
SAMPLES = (0.5 * np.sin(np.arange(8000) / 7)).astype(np.float32)
IMAGES = {
    "BMP": {},
    "GIF": {},
    "JPEG": {},
    "JPEG progressive": dict(progressive=True),
    "PNG": {},
    "WEBP": {},
    "WEBP lossless": dict(lossless=True),
}
SOUNDS = ["WAV PCM_16", "WAV FLOAT", "WAV ULAW", "WAVEX PCM_24", "FLAC PCM_16", "OGG VORBIS"]


def picture(kind="PNG", pixels=PIXELS, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind.split()[0], **IMAGES.get(kind, {}), **options)
    return file.getvalue()


def sound(kind="WAV PCM_16", samples=SAMPLES, rate=RATE):
    file, (form, subtype) = io.BytesIO(), kind.split()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_is_its_pixels(kind):
    found = decode_image(picture(kind))
    assert found.dtype == np.uint8 and found.shape == PIXELS.shape
    if kind in ("PNG", "BMP", "WEBP lossless"):
        np.testing.assert_array_equal(found, PIXELS)
    assert np.abs(found.astype(int) - PIXELS).mean() < 40
    found[0, 0] = 0  # it is the caller's own


def test_grey_is_repeated_or_stays_one_channel():
    data = picture(pixels=PIXELS[..., 0])
    np.testing.assert_array_equal(decode_image(data), PIXELS[..., :1].repeat(3, axis=2))
    np.testing.assert_array_equal(decode_image(data, channels=1), PIXELS[..., :1])
    luma = PIXELS @ [0.299, 0.587, 0.114]  # ITU-R 601
    assert np.abs(decode_image(picture(), channels=1)[..., 0] - luma).max() <= 1


def test_what_is_transparent_lies_on_white():
    alpha = PIXELS[..., :1]
    found = decode_image(picture(pixels=np.concatenate([PIXELS, alpha], axis=2)))
    want = PIXELS * (alpha / 255) + 255 * (1 - alpha / 255)
    assert np.abs(found - want).max() <= 1
    grey = decode_image(picture(pixels=np.concatenate([alpha, 255 - alpha], axis=2)), channels=1)
    want = alpha * (1 - alpha / 255) + alpha
    assert np.abs(grey - want).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_the_colours_of_a_palette_are_found_and_its_transparent_one_is_white(kind):
    image, file = Image.fromarray(PIXELS).quantize(8), io.BytesIO()
    places = np.asarray(image)
    colours = np.array(image.getpalette()[:24]).reshape(8, 3)
    image.save(file, kind)
    np.testing.assert_array_equal(decode_image(file.getvalue()), colours[places])
    file, chosen = io.BytesIO(), places[0, 0]
    image.save(file, kind, transparency=int(chosen))
    colours[chosen] = 255
    np.testing.assert_array_equal(decode_image(file.getvalue()), colours[places])


def test_of_16_bits_the_high_8_stay():
    deep = PIXELS[..., 0].astype(np.uint16) * 256 + 200
    np.testing.assert_array_equal(decode_image(picture(pixels=deep), channels=1), PIXELS[..., :1])


def test_cmyk_is_converted():
    image, file = Image.fromarray(np.full((16, 16, 4), (200, 40, 0, 30), np.uint8), "CMYK"), None
    image.save(file := io.BytesIO(), "JPEG", quality=100)
    want = np.array([55, 215, 255]) * 225 / 255
    assert np.abs(decode_image(file.getvalue()) - want).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_as_its_exif_has_it(orientation):
    from PIL import ImageOps

    image, file = Image.fromarray(PIXELS), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(file, "PNG", exif=exif)
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue()))))
    np.testing.assert_array_equal(decode_image(file.getvalue()), want)
    assert (want.shape == PIXELS.shape) == (orientation < 5)


def png_header(width, height):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_header(width, height):
    data = bytearray(picture("JPEG"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png_header(60_000, 60_000), "3600000000 pixels"),
        (jpeg_header(65_000, 65_000), "4225000000 pixels"),
        (png_header(12_000, 10_000), "12000 x 10000 pixels"),
        (jpeg_header(9_500, 9_500), "9500 x 9500 pixels"),
    ],
)
@pytest.mark.fault("S5 giant image or sound")
def test_a_giant_image_is_refused_from_its_header(data, size):
    tracemalloc.start()
    try:
        with pytest.raises(RecordError, match=f"photo 3 .*{size}.*max_pixels=89478485"):
            decode_image(data, name="photo 3")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_the_largest_image_is_the_callers_choice():
    assert decode_image(picture(), max_pixels=40 * 56).shape == (40, 56, 3)
    with pytest.raises(RecordError, match="the image has 56 x 40 pixels, max_pixels=2239"):
        decode_image(picture(), max_pixels=40 * 56 - 1)


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.fault("S6 unreadable image or sound")
def test_a_truncated_image_gives_no_other_pixels(kind):
    data = picture(kind)
    whole, refused = decode_image(data), 0
    for size in range(0, len(data), 3):
        try:
            np.testing.assert_array_equal(decode_image(data[:size]), whole)
        except RecordError as error:
            assert "the image cannot be decoded: " in str(error) and "\n" not in str(error)
            refused += 1
    assert refused >= len(data) // 3 - 8


def test_a_flipped_bit_in_a_png_gives_no_other_pixels():
    data, draw = picture(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        try:
            np.testing.assert_array_equal(decode_image(bytes(damaged)), PIXELS)
        except RecordError:
            pass


@pytest.mark.parametrize("decode", [decode_image, decode_audio])
@pytest.mark.parametrize(
    "data", [b"", b"text" * 99, b"%!PS-Adobe-3.0 EPSF-3.0\n", b"RIFF", b"fLaC", b"OggS", bytes(999)]
)
def test_what_is_neither_picture_nor_sound_is_refused(decode, data):
    with pytest.raises(RecordError, match="record 5 cannot be decoded: ") as error:
        decode(data, name="record 5")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", SOUNDS)
def test_a_sound_is_its_samples(kind):
    found, rate = decode_audio(sound(kind))
    assert rate == RATE and found.dtype == np.float32 and found.shape == SAMPLES.shape
    assert np.abs(found - SAMPLES).max() < 0.05


def test_channels_are_averaged():
    stereo = np.stack([SAMPLES, np.zeros_like(SAMPLES)], axis=1)
    found, _ = decode_audio(sound("WAV FLOAT", stereo))
    np.testing.assert_allclose(found, SAMPLES / 2)


def giant_wav(samples):
    data = bytearray(sound())
    struct.pack_into("<I", data, data.index(b"data") + 4, 2 * samples)
    return bytes(data[: data.index(b"data") + 8 + 2000])


def test_the_notes_in_a_wav_are_passed_over():
    data = sound()
    notes = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # of odd length, so padded
    riff = data[:4] + struct.pack("<I", len(data) - 8 + len(notes)) + data[8:12]
    np.testing.assert_array_equal(decode_audio(riff + notes + data[12:])[0], decode_audio(data)[0])


def giant_flac(samples):
    data = bytearray(sound("FLAC PCM_16"))
    data[21] = data[21] & 0xF0 | samples >> 32
    struct.pack_into(">I", data, 22, samples & 0xFFFFFFFF)
    return bytes(data)


@pytest.mark.parametrize("data", [giant_wav(10**9), giant_flac(10**9)])
@pytest.mark.fault("S5 giant image or sound")
def test_a_giant_sound_is_refused_from_its_header(data):
    tracemalloc.start()
    try:
        with pytest.raises(RecordError, match="utterance 3 announces 62,500 s .*max_seconds=3600"):
            decode_audio(data, name="utterance 3")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_longest_sound_is_the_callers_choice():
    assert len(decode_audio(sound(), max_seconds=0.5)[0]) == 8000
    with pytest.raises(RecordError, match="the sound announces .* max_seconds=0.49"):
        decode_audio(sound(), max_seconds=0.49)


def test_a_rate_or_channels_beyond_reason_are_refused():
    with pytest.raises(RecordError, match="at 1000000 Hz, .*MAX_RATE=192000"):
        decode_audio(sound(rate=1_000_000))
    with pytest.raises(RecordError, match="of 9 channels .*MAX_CHANNELS=8"):
        decode_audio(sound(samples=SAMPLES[:100, None].repeat(9, axis=1)))


@pytest.mark.parametrize("kind", SOUNDS)
@pytest.mark.fault("S6 unreadable image or sound")
def test_a_truncated_sound_gives_no_samples(kind):
    data = sound(kind)
    for size in range(0, len(data), len(data) // 300):
        with pytest.raises(RecordError, match="the sound cannot be decoded: |announces"):
            decode_audio(data[:size])
    with pytest.raises(RecordError):
        decode_audio(data[:-1])


def test_an_ogg_that_lacks_whole_pages_is_cut_off():
    noise = np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32)
    data = sound("OGG VORBIS", noise)
    assert data.count(b"OggS") > 3
    shorter = data[: data.rindex(b"OggS")]
    assert 0 < soundfile.SoundFile(io.BytesIO(shorter)).frames < 40_000  # read without a word
    for cut in (shorter, data[:-1], data[: data.rindex(b"OggS") + 200]):
        with pytest.raises(RecordError, match="it is cut off, or empty"):
            decode_audio(cut)
    assert len(decode_audio(data)[0]) == 40_000


def test_a_sound_without_samples_or_with_none_that_are_numbers_is_refused():
    with pytest.raises(RecordError, match="it is cut off, or empty"):
        decode_audio(sound(samples=SAMPLES[:0]))
    with pytest.raises(RecordError, match="it has samples that are not finite"):
        decode_audio(sound("WAV FLOAT", np.append(SAMPLES, np.float32("nan"))))


def test_a_sound_of_another_kind_is_refused():
    file = io.BytesIO()
    soundfile.write(file, SAMPLES, RATE, format="MP3")
    with pytest.raises(RecordError, match="it is no WAV, FLAC or Ogg; convert it"):
        decode_audio(file.getvalue())


@pytest.mark.parametrize("kind", [*IMAGES, *SOUNDS])
@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_mutated_data_is_decoded_or_refused(kind, count):
    decode, make = (decode_image, picture) if kind in IMAGES else (decode_audio, sound)
    data, draw = make(kind), random.Random(0)
    for _ in range(count):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 5)):
            at = draw.randrange(len(damaged))
            damaged[at : at + draw.choice([0, 1, 1, 1, 30])] = draw.randbytes(draw.choice([0, 1]))
        try:
            decode(bytes(damaged))
        except RecordError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("decode", "module", "extra"),
    [(decode_image, "PIL.Image", "vision"), (decode_audio, "soundfile", "speech")],
)
def test_a_missing_package_says_what_to_install(decode, module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"pip install 'anneal\[{extra}\]'") as error:
        decode(b"")
    assert not isinstance(error.value, RecordError)

    def fail(name):
        raise OSError("libsndfile.so not found")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(InputError, match=rf"not found; pip install 'anneal\[{extra}\]'"):
        decode(b"")
