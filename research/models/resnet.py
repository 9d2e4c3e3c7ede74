"""Residual networks (arXiv:1512.03385): of ImageNet in the form called v1.5, and of CIFAR.

    model = make(depth=50, labels=1_000, channels=3)
    model = make(depth=20, labels=10, channels=3)         # CIFAR's, for 32 x 32 and the like

v1.5 strides in the 3x3 convolution of a bottleneck, not in the 1x1 before it, which would throw
away three of four inputs; most published weights have it. Blocks are not scanned: a scan
over batch norms would lose their statistics. Shape suffixes: as in convolutions.py.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.arguments import Count, InputError, Positive, Precision, Rate
from research.kernels.convolution import refuse_8_bits
from research.kernels.matmul import compute_dtype, wide, wide_einsum
from research.models.convolutions import Convolution, ImageNorm, normalised, pixel_statistics
from research.models.functional import Model, functional
from research.models.layers import Number, constant, param

Array = jax.Array
BlockKind = Literal["basic", "bottleneck"]
# Of ImageNet: the block, and how many of them each stage has (table 1).
DEPTHS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
CIFAR = (20, 32, 44, 56, 110)  # 6 n + 2: three stages of n blocks (section 4.2)
NUMBERS = ("momentum", "norm_epsilon")  # may be tracers
REDUCTION = 4  # how much narrower the middle of a bottleneck is than its ends


def make(
    depth: Count = 50,
    labels: Count | None = None,
    channels: Count | None = None,
    block: BlockKind | None = None,
    blocks: tuple[int, ...] | None = None,
    widths: tuple[int, ...] | None = None,
    stem: Literal["large", "small"] | None = None,
    stem_width: Count | None = None,
    shortcut: Literal["projection", "padding"] | None = None,
    zero_init: bool = True,
    norm: ImageNorm = "batch",
    groups: Count = 32,
    momentum: Rate = 0.9,
    norm_epsilon: Positive = 1e-5,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    *,
    precision: Precision = "fp32",
) -> Model:
    """Returns the model, of images (b, h, w, c) of bytes. labels and channels None: what the data
    says. `depth` decides what else is None:

    `blocks` of each stage and the channels that leave it, `widths`; each stage but the first halves
    height and width. `stem`: 7x7 with stride 2 and a pooling to a half (large), or 3x3 (small).
    `shortcut` where the shape changes: a 1x1 convolution (projection: option B, of ImageNet's), or
    zeros for the channels that are new (padding: option A, of CIFAR's, without a parameter).

    `zero_init`: blocks begin as their shortcut, as the last scale of each is 0 (arXiv:1706.02677).
    `momentum` is what a step keeps of batch norm's running moments (torch calls 0.1 what is 0.9
    here); `groups` are of group norm. `mean` and `std` are of values from 0 to 1, as
    convolutions.pixel_statistics has them. Raises InputError for a depth that is none of the
    paper's, stages that do not fit each other, and precisions of 8 bits.
    """
    arguments = dict(locals())
    refuse_8_bits(precision)
    if labels is None or channels is None:
        raise InputError("resnet needs labels and channels, or data that decides them")
    arguments |= complete(arguments)
    blocks, widths = arguments["blocks"], arguments["widths"]
    if len(blocks) != len(widths) or not all(type(n) is int and n > 0 for n in blocks + widths):
        raise InputError(
            f"config.model.blocks={blocks} and widths={widths}: expected as many of each, above 0"
        )
    if arguments["block"] == "bottleneck" and any(width % REDUCTION for width in widths):
        raise InputError(f"config.model.widths={widths}: a bottleneck needs multiples of 4")
    entering = (arguments["stem_width"], *widths)
    if arguments["shortcut"] == "padding" and list(entering) != sorted(entering):
        raise InputError(
            f"config.model.shortcut=padding adds channels, and {entering} take some away; use "
            "projection"
        )
    arguments["mean"], arguments["std"] = pixel_statistics(channels, mean, std)
    arguments |= {name: Number(arguments[name]) for name in NUMBERS}
    return functional(lambda rngs: ResNet(**arguments, rngs=rngs))


def complete(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns what the depth decides, where `arguments` leave it open."""
    depth = arguments["depth"]
    if depth in DEPTHS:
        block, blocks = DEPTHS[depth]
        first = 256 if block == "bottleneck" else 64
        found = dict(block=block, blocks=blocks, widths=tuple(first * 2**i for i in range(4)))
        found |= dict(stem="large", stem_width=64, shortcut="projection")
    elif depth in CIFAR:
        found = dict(block="basic", blocks=((depth - 2) // 6,) * 3, widths=(16, 32, 64))
        found |= dict(stem="small", stem_width=16, shortcut="padding")
    else:
        raise InputError(
            f"config.model.depth={depth} is none of {sorted([*DEPTHS, *CIFAR])}; take one of them "
            "and set block, blocks and widths"
        )
    return {name: value for name, value in found.items() if arguments[name] is None}


def norm_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the keywords of every norm."""
    a = arguments
    found = dict(kind=a["norm"], groups=a["groups"])
    return found | dict(momentum=a["momentum"].value, epsilon=a["norm_epsilon"].value)


class Block(nnx.Module):
    """Two convolutions of 3x3, or three of 1x1, 3x3 and 1x1, added to their input."""

    def __init__(
        self, arguments: dict[str, Any], ins: int, outs: int, stride: int, rngs: nnx.Rngs
    ) -> None:
        a = arguments
        shared = dict(norm=norm_of(a), precision=a["precision"], rngs=rngs)
        last = 0.0 if a["zero_init"] else 1.0
        if a["block"] == "basic":
            self.conv1 = Convolution(3, ins, outs, stride=stride, **shared)
            self.conv2 = Convolution(3, outs, outs, scale=last, **shared)
        else:
            inner = outs // REDUCTION
            self.conv1 = Convolution(1, ins, inner, **shared)
            self.conv2 = Convolution(3, inner, inner, stride=stride, **shared)
            self.conv3 = Convolution(1, inner, outs, scale=last, **shared)
        self.convolutions = 2 if a["block"] == "basic" else 3
        self.stride, self.more = stride, outs - ins
        changes = stride > 1 or ins != outs
        self.is_projected = a["shortcut"] == "projection" and changes
        if self.is_projected:
            self.projection = Convolution(1, ins, outs, stride=stride, **shared)

    def __call__(self, x_bhwc: Array, *, train: bool) -> Array:
        y = x_bhwc
        for number in range(1, self.convolutions + 1):
            y = getattr(self, f"conv{number}")(y, train=train)
            y = jax.nn.relu(y) if number < self.convolutions else y
        if self.is_projected:
            x_bhwc = self.projection(x_bhwc, train=train)
        else:
            x_bhwc = x_bhwc[:, :: self.stride, :: self.stride]
            x_bhwc = jnp.pad(x_bhwc, ((0, 0), (0, 0), (0, 0), (0, self.more)))
        return jax.nn.relu(x_bhwc + y)


class ResNet(nnx.Module):
    """Methods: __call__ (logits of the classes), features (the maps of each stage)."""

    def __init__(self, *, rngs: nnx.Rngs, **arguments: Any) -> None:
        self.arguments = nnx.static(arguments)
        a = arguments
        size, stride = (7, 2) if a["stem"] == "large" else (3, 1)
        self.stem = Convolution(
            *(size, a["channels"], a["stem_width"]),
            stride=stride,
            norm=norm_of(a),
            precision=a["precision"],
            rngs=rngs,
        )
        stages, ins = [], a["stem_width"]
        for number, (count, outs) in enumerate(zip(a["blocks"], a["widths"], strict=True)):
            stage = []
            for index in range(count):
                stride = 2 if number > 0 and index == 0 else 1
                stage.append(Block(a, ins, outs, stride, rngs))
                ins = outs
            stages.append(nnx.List(stage))
        self.stages = nnx.List(stages)
        self.classifier = param(rngs, (ins, a["labels"]), ("embed", "classes"), 0.01)
        self.classifier_bias = constant((a["labels"],), ("classes",), 0.0)

    def features(
        self, image_bhwc: Array, *, key: Array | None = None, train: bool = False
    ) -> list[Array]:
        """Returns the maps (b, h, w, c) that leave each stage, the largest first."""
        a = self.arguments
        if image_bhwc.shape[-1] != a["channels"]:
            raise InputError(
                f"images of {image_bhwc.shape[-1]} channels, the model has {a['channels']}; set "
                "config.model.channels, or channels of the data"
            )
        x = normalised(image_bhwc, a["mean"], a["std"], compute_dtype(a["precision"]))
        x = jax.nn.relu(self.stem(x, train=train))
        if a["stem"] == "large":
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        found = []
        for stage in self.stages:
            for block in stage:
                x = block(x, train=train)
            found.append(x)
        return found

    def __call__(
        self, image_bhwc: Array, *, key: Array | None = None, train: bool = False
    ) -> Array:
        """Returns float32 logits (b, classes)."""
        x = self.features(image_bhwc, train=train)[-1]
        pooled_bc = wide(x).mean((1, 2)).astype(x.dtype)
        head = self.classifier[...].astype(x.dtype)
        return wide_einsum("bc,cd->bd", pooled_bc, head) + wide(self.classifier_bias[...])
