"""What models of images share: pixels, convolutions, and norms over images.

Shape suffixes: b batch, h height, w width, c channels; in kernels i and o, channels in and out.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from research.arguments import InputError
from research.kernels.convolution import convolve
from research.kernels.matmul import wide
from research.models.layers import Number, constant, param
from research.sharding import constrain

Array = jax.Array
ImageNorm = Literal["batch", "group"]
# Of ImageNet's training images, by channel, of values from 0 to 1.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pixel_statistics(
    channels: int, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and deviation of each channel, of values from 0 to 1; None: ImageNet's of three
    channels, 0.5 of others. Raises InputError for another number of them, or a std of 0."""
    means, stds = IMAGENET if channels == 3 else ((0.5,) * channels,) * 2
    mean, std = means if mean is None else mean, stds if std is None else std
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels or not all(isinstance(v, int | float) for v in values):
            raise InputError(
                f"config.model.{name}={values}: expected a number for each of {channels} channels"
            )
    if min(std) <= 0:
        raise InputError(f"config.model.std={std}: expected numbers above 0")
    return tuple(map(float, mean)), tuple(map(float, std))


def normalised(
    image_bhwc: Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any
) -> Array:
    """Returns pixels, 0 to 255 as bytes or, mixed, as floats, of mean 0 and deviation 1."""
    x = image_bhwc.astype(jnp.promote_types(dtype, jnp.float32))
    x = (x - 255 * np.array(mean)) / (255 * np.array(std))
    return constrain(x.astype(dtype), "batch", None, None, None)


class Statistic(nnx.Variable):
    """A running mean or variance, in the model's state."""


class BatchNorm(nnx.Module):
    """Batch normalisation (arXiv:1502.03167), in float32, over the whole batch: under jit the mean
    of a sharded batch is that of all devices, which then see the same numbers.

    Training normalises by the moments of the batch and moves the running ones by 1 - `momentum`;
    evaluation normalises by these. As in torch, the variance that normalises is the biased one (its
    sum over n), and the running one unbiased (over n - 1): the batch is a sample there. flax keeps
    the biased one, which is too small by 1/n; with few values per channel that shows.

    Micro-batches (gradients/accumulate.py) normalise each by its own moments, and the running ones
    move once, by the mean of theirs, which lacks what their means differ by: it is what each of
    them was normalised by. Every image of a batch counts, whatever its weight: a training batch
    holds nothing else, but for the few damaged ones that a skip_budget allows for.
    """

    def __init__(
        self, channels: int, *, momentum: Any, epsilon: Any, scale: float, groups: int
    ) -> None:
        self.momentum, self.epsilon = Number(momentum), Number(epsilon)
        self.scale = constant((channels,), ("norm",), scale)
        self.bias = constant((channels,), ("norm",), 0.0)
        self.mean = Statistic(jnp.zeros(channels))
        self.variance = Statistic(jnp.ones(channels))

    def __call__(self, x_bhwc: Array, *, train: bool) -> Array:
        x = wide(x_bhwc)
        mean, variance = self.mean[...], self.variance[...]
        if train:
            count = math.prod(x.shape[:-1])
            # Around the running mean: one pass over x, without the cancellation of E x^2 - (E x)^2
            # where the mean is large.
            shifted = x - mean
            first, second = shifted.mean((0, 1, 2)), (shifted * shifted).mean((0, 1, 2))
            keep = self.momentum.value
            old = mean, variance
            mean, variance = mean + first, jnp.maximum(second - first * first, 0)
            unbiased = variance * (count / max(count - 1, 1))
            for name, before, now in (("mean", old[0], mean), ("variance", old[1], unbiased)):
                moved = keep * before + (1 - keep) * now
                getattr(self, name)[...] = jax.lax.stop_gradient(moved).astype(before.dtype)
        y = (x - mean) * jax.lax.rsqrt(variance + self.epsilon.value)
        return (y * self.scale[...] + self.bias[...]).astype(x_bhwc.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation (arXiv:1803.08494), in float32, over an image and a group of channels: it
    does not know the batch, so it has no state and no difference between training and evaluation.
    """

    def __init__(
        self, channels: int, *, momentum: Any, epsilon: Any, scale: float, groups: int
    ) -> None:
        if channels % groups:
            raise InputError(f"{channels} channels do not divide into config.model.groups={groups}")
        self.groups, self.epsilon = groups, Number(epsilon)
        self.scale = constant((channels,), ("norm",), scale)
        self.bias = constant((channels,), ("norm",), 0.0)

    def __call__(self, x_bhwc: Array, *, train: bool) -> Array:
        x = wide(x_bhwc)
        x = x.reshape(*x.shape[:-1], self.groups, -1)
        y = x - x.mean((1, 2, 4), keepdims=True)
        variance = jnp.mean(y * y, (1, 2, 4), keepdims=True)
        y = (y * jax.lax.rsqrt(variance + self.epsilon.value)).reshape(x_bhwc.shape)
        return (y * self.scale[...] + self.bias[...]).astype(x_bhwc.dtype)


class Convolution(nnx.Module):
    """A convolution with a square kernel, and its norm, whose bias is the only one.

    Weights are drawn from N(0, 2 / fan out) (arXiv:1502.01852), by which the gradient keeps its
    size through a ReLU. `norm` are keywords of the norm, its `kind` among them.
    """

    def __init__(
        self,
        size: int,
        ins: int,
        outs: int,
        *,
        stride: int = 1,
        norm: dict[str, Any],
        scale: float = 1.0,
        precision: str,
        rngs: nnx.Rngs,
    ) -> None:
        self.stride, self.precision = stride, precision
        axes, std = ("taps", "taps", "embed", "filters"), (2 / (size * size * outs)) ** 0.5
        self.kernel = param(rngs, (size, size, ins, outs), axes, std)
        kinds = {"batch": BatchNorm, "group": GroupNorm}
        options = {name: value for name, value in norm.items() if name != "kind"}
        self.norm = kinds[norm["kind"]](outs, **options, scale=scale)

    def __call__(self, x_bhwi: Array, *, train: bool) -> Array:
        y_bhwo = convolve(x_bhwi, self.kernel[...], self.precision, self.stride)
        y_bhwo = constrain(y_bhwo, "batch", None, None, "filters")
        return self.norm(y_bhwo, train=train)
