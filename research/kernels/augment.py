"""Changes of training images on the device, a batch at a time: where a host is too slow for them.

    image_bhwc, boxes_bm4 = augment(key, image_bhwc, boxes_bm4, shift=4, flip=0.5, jitter=0.4)

They are those of data/augment of like names (pad_crop, flip, color_jitter, random_erasing), with
draws of their own for each image. What changes the size of a picture, or needs several, stays with
the host.

Shape suffixes: b batch, h height, w width, c channels, m boxes.
"""

import jax
import jax.numpy as jnp

Array = jax.Array
VISIBLE = 0.2  # a box of which a smaller share stays in the image is left out
AREA, RATIO, TRIES = (0.02, 0.4), 1 / 0.3, 10  # of what is erased (arXiv:1708.04896)
GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow has it


def augment(
    key: Array,
    image_bhwc: Array,
    boxes_bm4: Array | None = None,
    *,
    shift: int = 0,
    flip: float | Array = 0.0,
    jitter: float | Array = 0.0,
    erase: float | Array = 0.0,
) -> tuple[Array, Array | None]:
    """Returns images as float32 from 0 to 255, or as they are where nothing is on, and boxes, x1 y1
    x2 y2 in pixels, without area where too little of them is left.

    shift: up to so many pixels each way, what comes in is black (arXiv:1512.03385, section 4.2).
    flip: the probability of left for right. jitter: the strength of brightness, contrast and
    saturation, in this order. erase: the probability that a rectangle becomes noise."""
    keys = jax.random.split(key, 4)
    if shift:
        image_bhwc, boxes_bm4 = shifted(keys[0], image_bhwc, boxes_bm4, shift)
    if is_on(flip):
        image_bhwc, boxes_bm4 = flipped(keys[1], image_bhwc, boxes_bm4, flip)
    if is_on(jitter):
        image_bhwc = jittered(keys[2], image_bhwc, jitter)
    if is_on(erase):
        image_bhwc = erased(keys[3], image_bhwc, erase)
    return image_bhwc, boxes_bm4


def is_on(number: float | Array) -> bool:
    """Tells whether a change is made; a number that is searched over is an array, and is."""
    return isinstance(number, jax.Array) or bool(number)


def shifted(
    key: Array, image_bhwc: Array, boxes_bm4: Array | None, most: int
) -> tuple[Array, Array | None]:
    """Moves each image and its boxes by up to `most` pixels."""
    by_b2 = jax.random.randint(key, (len(image_bhwc), 2), -most, most + 1)  # x, y
    for axis, size in ((1, image_bhwc.shape[1]), (2, image_bhwc.shape[2])):
        index = jnp.arange(size) - by_b2[:, 2 - axis, None]
        index = jnp.expand_dims(index, tuple(at for at in (1, 2, 3) if at != axis))
        moved = jnp.take_along_axis(image_bhwc, jnp.clip(index, 0, size - 1), axis)
        image_bhwc = jnp.where((index >= 0) & (index < size), moved, 0)
    if boxes_bm4 is not None:
        moved = boxes_bm4 + jnp.tile(by_b2, 2)[:, None]
        low, high = moved[..., :2], moved[..., 2:]
        end = jnp.array([image_bhwc.shape[2], image_bhwc.shape[1]], moved.dtype)
        first, last = jnp.clip(low, 0, end), jnp.clip(high, 0, end)
        whole, part = (high - low).prod(-1), (last - first).prod(-1)
        keep = (part >= VISIBLE * whole)[..., None]
        boxes_bm4 = jnp.where(keep, jnp.concatenate([first, last], -1), 0.0)
    return image_bhwc, boxes_bm4


def flipped(
    key: Array, image_bhwc: Array, boxes_bm4: Array | None, probability: float | Array
) -> tuple[Array, Array | None]:
    """Mirrors each image and its boxes with this probability."""
    mirror_b = jax.random.bernoulli(key, probability, (len(image_bhwc),))
    width = image_bhwc.shape[2]
    image_bhwc = jnp.where(mirror_b[:, None, None, None], image_bhwc[:, :, ::-1], image_bhwc)
    if boxes_bm4 is not None:
        x1, y1, x2, y2 = jnp.moveaxis(boxes_bm4, -1, 0)
        other = jnp.stack([width - x2, y1, width - x1, y2], -1)
        boxes_bm4 = jnp.where(mirror_b[:, None, None], other, boxes_bm4)
    return image_bhwc, boxes_bm4


def jittered(key: Array, image_bhwc: Array, strength: float | Array) -> Array:
    """Blends each image with black, its mean grey and its own grey (arXiv:1312.5402)."""
    factors_b3 = 1 + strength * jax.random.uniform(key, (len(image_bhwc), 3), minval=-1, maxval=1)
    image_bhwc = image_bhwc.astype(jnp.float32)
    for place, ground in enumerate((lambda x: 0.0, mean_grey, own_grey)):
        factor = factors_b3[:, place, None, None, None]
        grey = ground(image_bhwc)
        image_bhwc = jnp.clip(grey + factor * (image_bhwc - grey), 0, 255)
    return image_bhwc


def own_grey(image_bhwc: Array) -> Array:
    """Returns the brightness of each pixel, (b, h, w, 1); of one channel that channel."""
    if image_bhwc.shape[-1] == 1:
        return image_bhwc
    return (image_bhwc * jnp.array(GREY)).sum(-1, keepdims=True)


def mean_grey(image_bhwc: Array) -> Array:
    """Returns the mean brightness of each image, (b, 1, 1, 1)."""
    return own_grey(image_bhwc).mean((1, 2, 3), keepdims=True)


def erased(key: Array, image_bhwc: Array, probability: float | Array) -> Array:
    """Fills a rectangle of each image with noise, with this probability: of some that are drawn the
    first that fits, none where none does."""
    keys = jax.random.split(key, 5)
    count, high, wide, _ = image_bhwc.shape
    area_bt = (
        high * wide * jax.random.uniform(keys[0], (count, TRIES), minval=AREA[0], maxval=AREA[1])
    )
    ratio_bt = jax.random.uniform(keys[1], (count, TRIES), minval=1 / RATIO, maxval=RATIO)
    sides_bt2 = jnp.stack([jnp.sqrt(area_bt * ratio_bt), jnp.sqrt(area_bt / ratio_bt)], -1).round()
    fits_bt = (sides_bt2 < jnp.array([high, wide])).all(-1)
    sides_b2 = jnp.take_along_axis(sides_bt2, fits_bt.argmax(1)[:, None, None], 1)[:, 0]
    start_b2 = jax.random.uniform(keys[2], (count, 2)) * (jnp.array([high, wide]) - sides_b2)
    start_b2 = jnp.floor(start_b2)
    chosen_b = jax.random.bernoulli(keys[3], probability, (count,)) & fits_bt.any(1)
    hole_bhw = chosen_b[:, None, None]
    for axis, size in ((0, high), (1, wide)):
        place = jnp.arange(size) - start_b2[:, axis, None]
        within = (place >= 0) & (place < sides_b2[:, axis, None])
        hole_bhw = hole_bhw & jnp.expand_dims(within, 2 - axis)
    noise_bhwc = jax.random.randint(keys[4], image_bhwc.shape, 0, 256).astype(image_bhwc.dtype)
    return jnp.where(hole_bhw[..., None], noise_bhwc, image_bhwc)
