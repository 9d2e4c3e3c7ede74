"""Vision Transformer (arXiv:2010.11929): an image as a sequence of patches, in a pre-norm encoder.

    model = make(size=224, patch=16, labels=1_000, channels=3)                    # B/16
    model = make(size=224, patch=16, num_layers=12, num_heads=3, width=192, ...)  # Ti/16

S: 6 heads, width 384; B: 12, 768; L: 24 layers, 16, 1_024. Layers are scanned. Shape suffixes: as
in layers.py, where t counts patches and the class token, and in convolutions.py.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.arguments import Count, InputError, Positive, Precision, Rate
from research.kernels.matmul import compute_dtype, einsum, wide, wide_einsum
from research.models.convolutions import normalised, pixel_statistics
from research.models.functional import Model, functional
from research.models.layers import (
    MLP,
    Attention,
    MLPKind,
    Norm,
    Number,
    constant,
    dropout,
    param,
)
from research.models.stack import Remat, run, stack
from research.sharding import constrain

Array = jax.Array
NUMBERS = ("dropout", "norm_epsilon")  # may be tracers
STD = 0.02


def make(
    labels: Count | None = None,
    channels: Count | None = None,
    size: Count | None = None,
    patch: Count = 16,
    num_layers: Count = 12,
    num_heads: Count = 12,
    width: Count = 768,
    mlp_width: Count | None = None,
    mlp: MLPKind = "gelu_erf",
    pool: Literal["token", "mean"] = "token",
    norm_epsilon: Positive = 1e-6,
    dropout: Rate = 0.0,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto",
    remat: Remat = "none",
    scan: bool = True,
    unroll: Count = 1,
    *,
    precision: Precision = "fp32",
) -> Model:
    """Returns the model, of square images (b, size, size, c) of bytes in patches of patch x patch.
    labels, channels and size None: what the data says; mlp_width None: 4 x width.

    `pool`: the classes are read from a token of their own, or from the mean of all patches, without
    that token. Positions are learned. Dropout is where the paper has it: on the embeddings and on
    the branches. `mean` and `std` are of values from 0 to 1, as convolutions.pixel_statistics has
    them; the published weights want 0.5 of each. In int8 and fp8 the products of the layers have 8
    bits, those of patches and classes stay in bfloat16.

    Raises InputError when patches do not divide the image, or heads the width, or data's numbers
    are missing.
    """
    arguments = dict(locals())
    if None in (labels, channels, size):
        raise InputError("vit needs labels, channels and size, or data that decides them")
    if size % patch:
        raise InputError(f"config.model: size={size} does not divide into patches of {patch}")
    if width % num_heads:
        raise InputError(f"width={width} does not divide into num_heads={num_heads} heads")
    arguments["mean"], arguments["std"] = pixel_statistics(channels, mean, std)
    arguments |= {name: Number(arguments[name]) for name in NUMBERS}
    arguments |= dict(mlp_width=mlp_width or 4 * width)
    return functional(lambda rngs: ViT(**arguments, rngs=rngs))


class Block(nnx.Module):
    """Attention and feed-forward, each of its normed input and added to it."""

    def __init__(self, arguments: dict[str, Any], rngs: nnx.Rngs) -> None:
        a = arguments
        width, heads, epsilon = a["width"], a["num_heads"], a["norm_epsilon"].value
        shared = dict(bias=True, precision=a["precision"], rngs=rngs)
        self.rate = a["dropout"]
        # Glorot's, as the paper's code has it: by the mean of inputs and outputs.
        square, oblong = width**-0.5, (2 / (width + a["mlp_width"])) ** 0.5
        self.norm1 = Norm(width, "layernorm", True, epsilon)
        self.attention = Attention(
            *(width, heads, heads),
            std=square,
            out_std=square,
            backend=a["attention"],
            causal=False,
            **shared,
        )
        self.norm2 = Norm(width, "layernorm", True, epsilon)
        self.mlp = MLP(width, a["mlp_width"], kind=a["mlp"], std=oblong, out_std=oblong, **shared)

    def __call__(
        self, x_btd: Array, key: Array | None, cache: None, *, train: bool
    ) -> tuple[Array, None]:
        keys = (None, None) if key is None else jax.random.split(key)
        y, _ = self.attention(self.norm1(x_btd), segments_bt=None, train=train)
        x_btd = x_btd + dropout(y, self.rate.value, keys[0])
        y = self.mlp(self.norm2(x_btd), train=train)
        x_btd = x_btd + dropout(y, self.rate.value, keys[1])
        return constrain(x_btd, "batch", "sequence", None), cache


class ViT(nnx.Module):
    """Methods: __call__ (logits of the classes), encode (the states of all patches)."""

    def __init__(self, *, rngs: nnx.Rngs, **arguments: Any) -> None:
        self.arguments = nnx.static(arguments)
        a, width, patch = arguments, arguments["width"], arguments["patch"]
        pixels = (patch, patch, a["channels"])
        # LeCun's: the patches, unlike what the layers see, have deviation 1 a value.
        std = (patch * patch * a["channels"]) ** -0.5
        self.patches = param(rngs, (*pixels, width), ("taps", "taps", "taps", "embed"), std)
        self.patches_bias = constant((width,), ("norm",), 0.0)
        tokens = (a["size"] // patch) ** 2
        if a["pool"] == "token":
            tokens += 1
            self.token = constant((width,), ("norm",), 0.0)
        self.positions = param(rngs, (tokens, width), ("positions", "embed"), STD)
        self.layers = stack(
            lambda rngs, index: Block(arguments, rngs), a["num_layers"], a["scan"], rngs
        )
        self.norm = Norm(width, "layernorm", True, a["norm_epsilon"].value)
        self.classifier = constant((width, a["labels"]), ("embed", "classes"), 0.0)
        self.classifier_bias = constant((a["labels"],), ("classes",), 0.0)

    def encode(self, image_bhwc: Array, *, key: Array | None = None, train: bool = False) -> Array:
        """Returns the last states (b, t, d), normed; with pool="token" the first is the token's."""
        a, key = self.arguments, key if train else None
        expected, patch = (a["size"], a["size"], a["channels"]), a["patch"]
        if image_bhwc.shape[1:] != expected:
            raise InputError(
                f"images of {image_bhwc.shape[1:]}, the model has {expected}: each patch has its "
                "learned position; set size and channels of config.model, or of config.data"
            )
        # The products with patches and classes are little work: never in 8 bits.
        precision = {"int8": "bf16", "fp8": "bf16"}.get(a["precision"], a["precision"])
        dtype = compute_dtype(precision)
        x = normalised(image_bhwc, a["mean"], a["std"], dtype)
        # A convolution whose stride is its kernel is a product with each patch.
        side = a["size"] // patch
        x = x.reshape(len(x), side, patch, side, patch, -1)
        x_btd = einsum("bypxqc,pqcd->byxd", x, self.patches[...], precision)
        x_btd = x_btd.reshape(len(x), side * side, -1) + self.patches_bias[...].astype(dtype)
        if a["pool"] == "token":
            token = jnp.broadcast_to(self.token[...].astype(dtype), (len(x), 1, a["width"]))
            x_btd = jnp.concatenate([token, x_btd], 1)
        x_btd = x_btd + self.positions[...].astype(dtype)
        keys = None if key is None else jax.random.split(key, a["num_layers"] + 1)
        x_btd = dropout(x_btd, a["dropout"].value, None if keys is None else keys[-1])
        x_btd = constrain(x_btd, "batch", "sequence", None)
        how = {name: a[name] for name in ("scan", "unroll", "remat")}
        keys = None if keys is None else keys[:-1]
        return self.norm(run(self.layers, x_btd, keys, None, dict(train=train), **how)[0])

    def __call__(
        self, image_bhwc: Array, *, key: Array | None = None, train: bool = False
    ) -> Array:
        """Returns float32 logits (b, classes). They begin as zeros, as the paper fine-tunes."""
        x_btd = self.encode(image_bhwc, key=key, train=train)
        is_token = self.arguments["pool"] == "token"
        x_bd = x_btd[:, 0] if is_token else wide(x_btd).mean(1).astype(x_btd.dtype)
        head = self.classifier[...].astype(x_bd.dtype)
        return wide_einsum("bd,dc->bc", x_bd, head) + wide(self.classifier_bias[...])
