"""GPT: the decoder-only transformer, in the shape of GPT-2, of Llama (arXiv:2302.13971) and, with
experts, of Mixtral (arXiv:2401.04088).

    model = make(vocab_size=50_257, num_layers=12, num_heads=12, width=768, context=1024)
    logits_btv, _ = model.apply(model.init(key), tokens_bt)

The Llama shape: norm="rmsnorm", positions="rotary", mlp="swiglu", bias=False, num_kv_heads=8.
Mixtral: the same and experts=8, top_k=2; capacity=1.25 drops, as Switch does (experts.py).
Layers are scanned: their parameters are stacked on a first axis named "layers".
Shape suffixes: as in layers.py, and v vocabulary (padded to a multiple of 128).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.arguments import Count, InputError, Positive, Precision, Rate
from research.kernels.matmul import compute_dtype, wide
from research.models.experts import Experts
from research.models.functional import Model, functional
from research.models.layers import (
    GATED,
    MLP,
    Attention,
    MLPKind,
    Norm,
    NormKind,
    Number,
    dropout,
    look_up,
    padded_size,
    param,
    rotary,
    vocab_logits,
)
from research.models.stack import Remat, run, stack
from research.sharding import constrain

Array = jax.Array
Cache = dict[str, Array]

NUMBERS = ("dropout", "norm_epsilon", "rope_theta")  # may be tracers


def make(
    vocab_size: Count | None = None,
    context: Count | None = None,
    num_layers: Count = 12,
    num_heads: Count = 12,
    num_kv_heads: Count | None = None,
    width: Count = 768,
    mlp_width: Count | None = None,
    norm: NormKind = "layernorm",
    norm_epsilon: Positive = 1e-5,
    positions: Literal["learned", "rotary"] = "learned",
    rope_theta: Positive = 10_000.0,
    mlp: MLPKind = "gelu",
    experts: Count | None = None,
    top_k: Count = 2,
    capacity: Positive | None = None,
    bias: bool = True,
    tie_embeddings: bool = True,
    dropout: Rate = 0.0,
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto",
    window: Count | None = None,
    remat: Remat = "none",
    scan: bool = True,
    unroll: Count = 1,
    base_width: Count | None = None,
    *,
    precision: Precision = "fp32",
) -> Model:
    """Returns the model. vocab_size and context None: what the data says. num_kv_heads None: one
    for each query head; mlp_width None: 4 x width, of a gated mlp 8/3 x width in multiples of 64.
    `experts`: so many feed-forward networks a layer, `top_k` of which serve a token.

    `base_width` is that of the small model whose hyperparameters are to hold at any width (muP,
    arXiv:2203.03466, table 8, Adam): hidden matrices start smaller, and attention scores and logits
    are scaled down, as `width` grows past it. Embeddings and an untied head start as ever; the
    learning rates are the optimizer's part. At width == base_width, and for None, nothing changes.

    Raises InputError when the heads do not divide the width or each other.
    """
    arguments = dict(locals())
    num_kv_heads = num_kv_heads or num_heads
    if vocab_size is None or context is None:
        raise InputError("gpt needs vocab_size and context, or data that decides them")
    if width % num_heads:
        raise InputError(f"width={width} does not divide into num_heads={num_heads} heads")
    if num_heads % num_kv_heads:
        raise InputError(f"num_heads={num_heads} is not a multiple of num_kv_heads={num_kv_heads}")
    if positions == "rotary" and width // num_heads % 2:
        raise InputError(f"rotary positions need an even head size, not {width // num_heads}")
    if experts is not None and (bias or top_k > experts):
        problem = "bias=True: experts have no biases; set bias=False"
        raise InputError(f"top_k={top_k} of experts={experts}" if not bias else problem)
    if experts is None and capacity is not None:
        raise InputError(f"capacity={capacity} without experts; set experts, or leave it out")
    if experts is not None and base_width is not None:
        raise InputError("base_width (muP) has no rule for a router; leave out experts or it")
    if base_width is not None and base_width % num_heads:
        raise InputError(f"base_width={base_width} does not divide into num_heads={num_heads}")
    gated = -(-width * 8 // 3 // 64) * 64
    arguments |= {name: Number(arguments[name]) for name in NUMBERS}
    arguments |= dict(
        num_kv_heads=num_kv_heads,
        mlp_width=mlp_width or (gated if mlp in GATED else 4 * width),
        shrink=1.0 if base_width is None else base_width / width,
    )
    return functional(lambda rngs: GPT(**arguments, rngs=rngs))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward with residual connections."""

    def __init__(self, arguments: dict[str, Any], rngs: nnx.Rngs) -> None:
        a = arguments
        # GPT-2: the projections into the residual stream start smaller the more of them there are.
        std = 0.02 * a["shrink"] ** 0.5
        out_std = std / (2 * a["num_layers"]) ** 0.5
        shared = dict(bias=a["bias"], std=std, out_std=out_std, precision=a["precision"], rngs=rngs)
        self.rate = a["dropout"]
        self.norm1 = Norm(a["width"], a["norm"], a["bias"], a["norm_epsilon"].value)
        self.attention = Attention(
            a["width"],
            a["num_heads"],
            a["num_kv_heads"],
            backend=a["attention"],
            window=a["window"],
            query_scale=a["shrink"] ** 0.5,
            **shared,
        )
        self.norm2 = Norm(a["width"], a["norm"], a["bias"], a["norm_epsilon"].value)
        if a["experts"] is None:
            self.mlp = MLP(a["width"], a["mlp_width"], kind=a["mlp"], **shared)
        else:
            shared.pop("bias")  # refused below: experts have none
            sizes = dict(count=a["experts"], top_k=a["top_k"], capacity=a["capacity"])
            self.moe = Experts(a["width"], a["mlp_width"], kind=a["mlp"], **sizes, **shared)

    def __call__(
        self, x_btd: Array, key: Array | None, cache: Cache | None, train: bool, **attention: Any
    ) -> tuple[Array, Cache | None]:
        keys = (None, None) if key is None else jax.random.split(key)
        y, cache = self.attention(self.norm1(x_btd), cache=cache, train=train, **attention)
        x_btd = x_btd + dropout(y, self.rate.value, keys[0])
        y = self.norm2(x_btd)
        if hasattr(self, "moe"):
            segments_bt, cached = attention["segments_bt"], cache is not None
            y = self.moe(y, segments_bt, train=train, cached=cached)
        else:
            y = self.mlp(y, train=train)
        x_btd = x_btd + dropout(y, self.rate.value, keys[1])
        return constrain(x_btd, "batch", "sequence", None), cache


class GPT(nnx.Module):
    """Methods: __call__ (logits), encode (hidden states and head); for generation empty_cache,
    decode_step and logits."""

    def __init__(self, *, rngs: nnx.Rngs, **arguments: Any) -> None:
        self.arguments = nnx.static(arguments)
        a = arguments
        padded = padded_size(a["vocab_size"])
        self.dtype = compute_dtype(a["precision"])
        self.embed = param(rngs, (padded, a["width"]), ("vocab", "embed"), 0.02)
        if a["positions"] == "learned":
            self.positions = param(rngs, (a["context"], a["width"]), ("positions", "embed"), 0.02)
        make = lambda rngs, index: Block(arguments, rngs)  # noqa: E731
        self.layers = stack(make, a["num_layers"], a["scan"], rngs)
        self.norm = Norm(a["width"], a["norm"], a["bias"], a["norm_epsilon"].value)
        if not a["tie_embeddings"]:
            self.head = param(rngs, (a["width"], padded), ("embed", "vocab"), 0.02)

    def __call__(
        self,
        tokens_bt: Array,
        segments_bt: Array | None = None,
        positions_bt: Array | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Returns float32 logits (b, t, v); those of the vocabulary's padding are -inf."""
        hidden, _ = self.encode(tokens_bt, segments_bt, positions_bt, key=key, train=train)
        return self.logits(hidden)

    def encode(
        self,
        tokens_bt: Array,
        segments_bt: Array | None = None,
        positions_bt: Array | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Array, Array]:
        """Returns the last hidden states (b, t, d) and the head (d, v), for losses that never
        hold all logits. `segments_bt` keeps packed documents apart (0 is padding); their
        `positions_bt` restart."""
        key = key if train else None
        hidden, _ = self._run(tokens_bt, segments_bt, positions_bt, None, key, train)
        return hidden, self._head()

    def empty_cache(
        self, batch: int, length: int, *, key: Any = None, train: bool = False
    ) -> Cache:
        """Returns zero keys and values (layers, b, length, g, k)."""
        a = self.arguments
        shape = (
            a["num_layers"], batch, length, a["num_kv_heads"], a["width"] // a["num_heads"]
        )  # fmt: skip
        return {name: jnp.zeros(shape, self.dtype) for name in ("k", "v")}

    def decode_step(
        self,
        tokens_bt: Array,
        positions_bt: Array,
        cache: Cache,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Array, Cache]:
        """Writes `tokens_bt` into the cache at `positions_bt` and returns their hidden states
        (b, t, d) for `logits`; serves the prompt (t > 1) and each new token (t = 1)."""
        return self._run(tokens_bt, None, positions_bt, cache, None, False)

    def logits(self, hidden_btd: Array, *, key: Any = None, train: bool = False) -> Array:
        """Returns float32 logits (b, t, v); those of the vocabulary's padding are -inf."""
        return vocab_logits(hidden_btd, self._head(), self.arguments["vocab_size"])

    def _run(
        self,
        tokens_bt: Array,
        segments_bt: Array | None,
        positions_bt: Array | None,
        cache: Cache | None,
        key: Array | None,
        train: bool,
    ) -> tuple[Array, Cache | None]:
        a = self.arguments
        if positions_bt is None:
            positions_bt = jnp.broadcast_to(jnp.arange(tokens_bt.shape[1]), tokens_bt.shape)
        x = look_up(self.embed, tokens_bt, self.dtype)
        cos_sin = None
        if a["positions"] == "learned":
            table = constrain(self.positions[...].astype(self.dtype), None, None)
            x = x + table[positions_bt]
        else:
            cos_sin = rotary(positions_bt, a["width"] // a["num_heads"], a["rope_theta"].value)
        keys = None if key is None else jax.random.split(key, a["num_layers"] + 1)
        x = dropout(x, a["dropout"].value, None if keys is None else keys[-1])
        x = constrain(x, "batch", "sequence", None)
        call = dict(
            segments_bt=segments_bt, positions_bt=positions_bt, cos_sin=cos_sin, train=train
        )
        keys = None if keys is None else keys[:-1]
        how = {name: a[name] for name in ("scan", "unroll", "remat")}
        x, cache = run(self.layers, x, keys, cache, call, **how)
        x = self.norm(x)
        if a["shrink"] != 1:  # here once for the loss, which takes the head itself, and the logits
            x = (wide(x) * a["shrink"]).astype(x.dtype)
        return x, cache

    def _head(self) -> Array:
        """The head (d, v): the transposed embedding when tied."""
        return self.embed[...].T if self.arguments["tie_embeddings"] else self.head[...]
