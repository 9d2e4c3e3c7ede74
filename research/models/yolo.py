"""An anchor-free detector with two heads: boxes and classes at every point of a few grids.

    model = make(scale="n", labels=80, channels=3)
    outputs, state = model.apply(variables, image_bhwc)      # image sides: multiples of 32

Made of published parts: a backbone of cross-stage partial blocks (CSP, arXiv:1911.11929) whose last
stage pools at several sizes (SPP, arXiv:1406.4729), a neck that carries features down and up again
(PAN, arXiv:1803.01534), heads that keep classes and boxes apart (YOLOX, arXiv:2107.08430, whose
depths and widths these are) and give each side of a box as a distribution (arXiv:2006.04388), one
of them for one-to-many and one for one-to-one assignment (YOLOv10, arXiv:2405.14458). It is none of
those networks itself, so no published weights fit it. tasks/detection.py trains it.

Shape suffixes: b batch, h height, w width, a anchor points of all grids, c classes or channels,
r bins of a distance.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from research.arguments import Count, InputError, NonNegative, Positive, Precision, Rate
from research.kernels.convolution import refuse_8_bits
from research.kernels.matmul import compute_dtype, wide_einsum
from research.models.convolutions import Convolution, normalised, pixel_statistics
from research.models.functional import Model, functional
from research.models.layers import constant, param

Array = jax.Array
SCALES = {"n": (0.33, 0.25), "s": (0.33, 0.5), "m": (0.67, 0.75), "l": (1.0, 1.0)}
BLOCKS = {4: 3, 8: 9, 16: 9}  # of a backbone's stages by their stride; of others 3
HEADS = ("one_to_many", "one_to_one")
# The chance of an object at a point that heads begin with (arXiv:1708.02002, section 3.3), shared
# among the classes. With this chance for each of 80 classes the first hundreds of steps go into
# unlearning it: Adam moves a bias by no more than its rate.
PRIOR = 0.01


def make(
    scale: Literal["n", "s", "m", "l"] = "n",
    labels: Count | None = None,
    channels: Count | None = None,
    depth: NonNegative | None = None,
    width: Positive | None = None,
    strides: tuple[int, ...] = (8, 16, 32),
    bins: Count = 16,
    detach: bool = True,
    momentum: Rate = 0.97,
    norm_epsilon: Positive = 1e-3,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    *,
    precision: Precision = "fp32",
) -> Model:
    """Returns the model, of images (b, h, w, c) of bytes. labels and channels None: what the data
    says. `scale` is of `depth`, which multiplies the numbers of blocks, and `width`, which
    multiplies channels, where these are None. `strides` are those of the grids, in pixels, each
    twice the one before and 4 or more: small images need few and small ones. A side of a box is up
    to `bins` - 1 strides away from its point. `detach`: the features learn from the one-to-many
    head alone. momentum and norm_epsilon are of batch norm, mean and std as in convolutions.py.

    Raises InputError for strides that are not so, and precisions of 8 bits.
    """
    refuse_8_bits(precision)
    if labels is None or channels is None:
        raise InputError("yolo needs labels and channels, or data that decides them")
    doubled = tuple(4 * 2**i for i in range(20))
    at = doubled.index(strides[0]) if strides and strides[0] in doubled else 0
    if not strides or strides != doubled[at : at + len(strides)]:
        raise InputError(
            f"config.model.strides={strides}: expected 4, 8, 16, ... each twice the one before, "
            "such as (8, 16, 32)"
        )
    arguments = dict(labels=labels, channels=channels, strides=strides, bins=bins, detach=detach)
    arguments["depth"] = SCALES[scale][0] if depth is None else depth
    arguments["width"] = SCALES[scale][1] if width is None else width
    arguments["norm"] = dict(kind="batch", momentum=momentum, epsilon=norm_epsilon, groups=1)
    arguments["pixels"] = pixel_statistics(channels, mean, std)
    return functional(lambda rngs: YOLO(**arguments, precision=precision, rngs=rngs))


class Layer(nnx.Module):
    """A convolution, its norm, and SiLU."""

    def __init__(self, size: int, ins: int, outs: int, *, stride: int = 1, **options: Any) -> None:
        self.convolution = Convolution(size, ins, outs, stride=stride, **options)

    def __call__(self, x_bhwc: Array, train: bool) -> Array:
        return jax.nn.silu(self.convolution(x_bhwc, train=train))


class Partial(nnx.Module):
    """A cross-stage partial block: half of the channels pass `blocks` bottlenecks, all meet again.
    Bottlenecks are added to their input in the backbone and not in the neck."""

    def __init__(self, ins: int, outs: int, blocks: int, residual: bool, **options: Any) -> None:
        half = outs // 2
        self.residual = residual
        self.kept, self.passed = (Layer(1, ins, half, **options) for _ in range(2))
        self.narrow = nnx.List([Layer(1, half, half, **options) for _ in range(blocks)])
        self.look = nnx.List([Layer(3, half, half, **options) for _ in range(blocks)])
        self.out = Layer(1, 2 * half, outs, **options)

    def __call__(self, x_bhwc: Array, train: bool) -> Array:
        kept, x = self.kept(x_bhwc, train), self.passed(x_bhwc, train)
        for narrow, look in zip(self.narrow, self.look, strict=True):
            y = look(narrow(x, train), train)
            x = x + y if self.residual else y
        return self.out(jnp.concatenate([x, kept], -1), train)


class Pooling(nnx.Module):
    """The largest values of windows of 5, 9 and 13 beside the features. A window of 9 is one of 5
    over one of 5, so three small ones in a row are these."""

    def __init__(self, width: int, **options: Any) -> None:
        self.narrow = Layer(1, width, width // 2, **options)
        self.out = Layer(1, 4 * (width // 2), width, **options)

    def __call__(self, x_bhwc: Array, train: bool) -> Array:
        views = [self.narrow(x_bhwc, train)]
        for _ in range(3):
            views.append(nnx.max_pool(views[-1], (5, 5), (1, 1), "SAME"))
        return self.out(jnp.concatenate(views, -1), train)


class Backbone(nnx.Module):
    """Returns the features of each of the strides."""

    def __init__(self, strides: tuple[int, ...], depth: float, widths: dict, **options: Any):
        self.strides = strides
        self.stem = Layer(3, options.pop("channels"), widths[2], stride=2, **options)
        stages = []
        for stride in widths:
            if stride > 2:
                blocks = round(BLOCKS.get(stride, 3) * depth)
                down = Layer(3, widths[stride // 2], widths[stride], stride=2, **options)
                last = [Pooling(widths[stride], **options)] if stride == strides[-1] else []
                partial = Partial(widths[stride], widths[stride], blocks, True, **options)
                stages.append(nnx.List([down, *last, partial]))
        self.stages = nnx.List(stages)

    def __call__(self, x_bhwc: Array, train: bool) -> list[Array]:
        x, found = self.stem(x_bhwc, train), []
        for number, stage in enumerate(self.stages):
            for part in stage:
                x = part(x, train)
            if 4 * 2**number in self.strides:
                found.append(x)
        return found


class Neck(nnx.Module):
    """Path aggregation: what the coarse grids know is carried to the finer ones, and back."""

    def __init__(self, widths: list[int], depth: float, **options: Any) -> None:
        blocks, pairs = round(3 * depth), list(zip(widths, widths[1:], strict=False))
        layer = lambda *sizes, **more: Layer(*sizes, **more, **options)  # noqa: E731
        merge = lambda ins, outs: Partial(ins, outs, blocks, False, **options)  # noqa: E731
        self.narrow = nnx.List([layer(1, coarse, fine) for fine, coarse in pairs])
        self.down = nnx.List([merge(2 * fine, fine) for fine, _ in pairs])
        self.stride = nnx.List([layer(3, fine, fine, stride=2) for fine, _ in pairs])
        self.up = nnx.List([merge(2 * fine, coarse) for fine, coarse in pairs])

    def __call__(self, levels: list[Array], train: bool) -> list[Array]:
        x, narrowed, merged = levels[-1], [], []
        for number in reversed(range(len(levels) - 1)):
            narrowed.append(self.narrow[number](x, train))
            larger = narrowed[-1].repeat(2, axis=1).repeat(2, axis=2)
            x = self.down[number](jnp.concatenate([larger, levels[number]], -1), train)
        for number, coarse in enumerate(reversed(narrowed)):
            merged.append(x)
            smaller = self.stride[number](x, train)
            x = self.up[number](jnp.concatenate([smaller, coarse], -1), train)
        return [*merged, x]


class Head(nnx.Module):
    """Class logits and box distributions at each point of a grid."""

    def __init__(self, ins: int, width: int, stride: int, labels: int, bins: int, **options: Any):
        self.bins, rngs = bins, options["rngs"]
        self.stem = Layer(1, ins, width, **options)
        two = lambda: nnx.List([Layer(3, width, width, **options) for _ in range(2)])  # noqa: E731
        self.class_layers, self.box_layers = two(), two()
        std, axes = 0.01, ("embed", "classes")
        self.classes, self.boxes = (param(rngs, (width, n), axes, std) for n in (labels, 4 * bins))
        self.classes_bias = constant((labels,), ("classes",), -float(np.log(labels / PRIOR - 1)))
        self.boxes_bias = constant((4 * bins,), ("classes",), 0.0)

    def __call__(self, x_bhwc: Array, train: bool) -> tuple[Array, Array]:
        """Returns float32 (b, h w, c) and (b, h w, 4, r)."""
        x, found = self.stem(x_bhwc, train), []
        for name in ("classes", "boxes"):
            y = x
            for layer in self.class_layers if name == "classes" else self.box_layers:
                y = layer(y, train)
            kernel, bias = getattr(self, name)[...], getattr(self, f"{name}_bias")[...]
            y = wide_einsum("bhwi,io->bhwo", y, kernel.astype(y.dtype)) + bias
            found.append(y.reshape(len(y), -1, y.shape[-1]))
        return found[0], found[1].reshape(*found[1].shape[:2], 4, self.bins)


class YOLO(nnx.Module):
    """Method: __call__ (what both heads say)."""

    def __init__(self, *, rngs: nnx.Rngs, precision: Precision, **arguments: Any) -> None:
        a, strides = arguments, arguments["strides"]
        kept = {name: a[name] for name in ("strides", "detach", "pixels")}
        self.arguments = nnx.static(kept | dict(dtype=compute_dtype(precision)))
        options = dict(norm=a["norm"], precision=precision, rngs=rngs)
        every = [2**i for i in range(1, strides[-1].bit_length())]
        widths = {stride: 2 * round(16 * stride * a["width"]) for stride in every}  # even
        chosen = [widths[stride] for stride in strides]
        self.backbone = Backbone(strides, a["depth"], widths, channels=a["channels"], **options)
        self.neck = Neck(chosen, a["depth"], **options)
        sizes = dict(width=2 * round(128 * a["width"]), labels=a["labels"], bins=a["bins"])
        for name in HEADS:
            grids = zip(chosen, strides, strict=True)
            heads = [Head(ins, stride=stride, **sizes, **options) for ins, stride in grids]
            setattr(self, name, nnx.List(heads))

    def __call__(
        self, image_bhwc: Array, *, key: Array | None = None, train: bool = False
    ) -> dict[str, Any]:
        """Returns for one_to_many and one_to_one a dict of float32 `classes`, logits (b, a, c), and
        `boxes`, logits (b, a, 4, r) of the distances from a point to the left, top, right and
        bottom side in strides; and of all points `anchors`, x y in pixels (a, 2), and `strides`
        (a,). The finest grid is first, each row by row. Raises InputError for an image whose sides
        are no multiples of the largest stride."""
        a, size = self.arguments, image_bhwc.shape[1:3]
        if any(side % a["strides"][-1] for side in size):
            raise InputError(
                f"images of {size[0]} x {size[1]} pixels do not divide by the largest of "
                f"config.model.strides={a['strides']}; choose another size, or strides"
            )
        x_bhwc = normalised(image_bhwc, *a["pixels"], a["dtype"])
        levels = self.neck(self.backbone(x_bhwc, train), train)
        outputs: dict[str, Any] = {}
        for name in HEADS:
            if name == "one_to_one" and a["detach"]:
                levels = [jax.lax.stop_gradient(level) for level in levels]
            heads = zip(getattr(self, name), levels, strict=True)
            found = zip(*(head(level, train) for head, level in heads), strict=True)
            classes, boxes = (jnp.concatenate(parts, 1) for parts in found)
            outputs[name] = {"classes": classes, "boxes": boxes}
        grids = [points(size[0] // stride, size[1] // stride, stride) for stride in a["strides"]]
        outputs["anchors"] = jnp.asarray(np.concatenate(grids))
        repeats = [len(grid) for grid in grids]
        outputs["strides"] = jnp.asarray(np.repeat(np.float32(a["strides"]), repeats))
        return outputs


def points(height: int, width: int, stride: int) -> np.ndarray:
    """Returns x y (height width, 2) of the middles of a grid's cells, in pixels, row by row."""
    y, x = np.mgrid[:height, :width]
    return np.float32(stride) * (np.stack([x, y], -1).reshape(-1, 2).astype(np.float32) + 0.5)
