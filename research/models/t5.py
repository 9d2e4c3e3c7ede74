"""T5: the encoder-decoder (arXiv:1910.10683) in both versions and, with experts, Switch
(arXiv:2101.03961).

    model = make(vocab_size=32_128)                                                  # v1.0 base
    model = make(vocab_size=32_128, mlp="geglu", mlp_width=2_048, tie_embeddings=False)  # v1.1

Switch: experts=128, and every second layer is a mixture (experts_every=2). Relative positions are
one table for all layers of a stack. Dropout on embeddings and residual branches; none on attention
weights or inside feed-forwards. Layers are scanned.
Shape suffixes: as in layers.py, v vocabulary (padded to a multiple of 128); s is the input's time.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.arguments import Count, InputError, Positive, Precision, Rate
from research.kernels.matmul import compute_dtype, wide
from research.models.experts import Experts
from research.models.functional import Model, functional
from research.models.layers import (
    MLP,
    Attention,
    MLPKind,
    Norm,
    Number,
    dropout,
    look_up,
    padded_size,
    param,
    vocab_logits,
)
from research.models.stack import Remat, collect, run, stack
from research.sharding import constrain

Array = jax.Array
NUMBERS = ("dropout", "norm_epsilon")  # may be tracers


def make(
    vocab_size: Count | None = None,
    num_layers: Count = 12,
    decoder_layers: Count | None = None,
    num_heads: Count = 12,
    head_dim: Count = 64,
    width: Count = 768,
    mlp_width: Count = 3_072,
    mlp: MLPKind = "relu",
    tie_embeddings: bool = True,
    buckets: Count = 32,
    max_distance: Count = 128,
    norm_epsilon: Positive = 1e-6,
    dropout: Rate = 0.1,
    experts: Count | None = None,
    top_k: Count = 1,
    capacity: Positive | None = 1.25,
    room: Count | None = None,
    experts_every: Count = 2,
    attention: Literal["auto", "xla"] = "auto",
    remat: Remat = "none",
    scan: bool = True,
    unroll: Count = 1,
    *,
    precision: Precision = "fp32",
) -> Model:
    """Returns the model. vocab_size None: what the data says; decoder_layers None: as many as the
    encoder's. `buckets` of relative distances, the last from `max_distance` on. `room` instead of
    `capacity`: the tokens of a text that an expert takes, however long the text is.

    Raises InputError for layers that are no multiple of `experts_every`, or top_k over experts.
    """
    arguments = dict(locals())
    if vocab_size is None:
        raise InputError("t5 needs vocab_size, or data that decides it")
    if buckets % 4 or max_distance <= buckets // 2:
        raise InputError(
            f"buckets={buckets}, max_distance={max_distance}: expected buckets a multiple of 4 and "
            "a distance above half of them"
        )
    if room is not None and (experts is None or capacity is not None):
        raise InputError(f"room={room} needs experts, and capacity=None in place of {capacity}")
    decoder_layers = decoder_layers or num_layers
    for count in (num_layers, decoder_layers):
        if experts is not None and (count % experts_every or top_k > experts):
            raise InputError(
                f"{count} layers, experts_every={experts_every}, top_k={top_k} of {experts}: "
                "expected a multiple of experts_every, and top_k at most experts"
            )
    arguments |= {name: Number(arguments[name]) for name in NUMBERS}
    arguments |= dict(decoder_layers=decoder_layers)
    return functional(lambda rngs: T5(**arguments, rngs=rngs))


class Block(nnx.Module):
    """Pre-norm self-attention, in a decoder attention to the input, and feed-forward."""

    def __init__(
        self, arguments: dict[str, Any], decoder: bool, sparse: bool, rngs: nnx.Rngs
    ) -> None:
        a = arguments
        width, heads, dim = a["width"], a["num_heads"], a["head_dim"]
        norm = lambda: Norm(width, "rmsnorm", False, a["norm_epsilon"].value)  # noqa: E731
        shared = dict(precision=a["precision"], rngs=rngs)
        # No division of the scores by sqrt(dim): it is part of the first weights of q.
        attention = dict(
            dim=dim,
            bias=False,
            std=width**-0.5,
            query_std=(width * dim) ** -0.5,
            out_std=(heads * dim) ** -0.5,
            query_scale=dim**0.5,
            backend=a["attention"],
        )
        self.rate = a["dropout"]
        self.norm1 = norm()
        self.attention = Attention(width, heads, heads, causal=decoder, **attention, **shared)
        if decoder:
            self.norm2 = norm()
            self.cross = Attention(width, heads, heads, causal=False, **attention, **shared)
        self.norm3 = norm()
        sizes = dict(kind=a["mlp"], std=width**-0.5, out_std=a["mlp_width"] ** -0.5)
        if sparse:
            routes = dict(count=a["experts"], top_k=a["top_k"], capacity=a["capacity"])
            routes["room"] = a["room"]
            self.moe = Experts(width, a["mlp_width"], **routes, **sizes, **shared)
        else:
            self.mlp = MLP(width, a["mlp_width"], bias=False, **sizes, **shared)

    def __call__(
        self,
        x_btd: Array,
        key: Array | None,
        cache: dict[str, Any] | None,
        *,
        segments_bt: Array | None,
        bias_bhts: Array,
        train: bool,
        memory_bsd: Array | None = None,
        memory_segments_bs: Array | None = None,
        positions_bt: Array | None = None,
    ) -> tuple[Array, Any]:
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        own = None if cache is None else {name: cache[name] for name in ("k", "v")}
        call = dict(segments_bt=segments_bt, train=train)
        y, own = self.attention(
            self.norm1(x_btd), bias_bhts=bias_bhts, positions_bt=positions_bt, cache=own, **call
        )
        x_btd = x_btd + dropout(y, self.rate.value, keys[0])
        if hasattr(self, "cross"):
            if cache is None:
                memory = self.cross.keys_values(memory_bsd, train=train)
            else:
                memory = {"k": cache["memory_k"], "v": cache["memory_v"]}
            if memory_segments_bs is not None and segments_bt is None:
                call["segments_bt"] = jnp.ones(x_btd.shape[:2], jnp.int32)
            y, _ = self.cross(
                self.norm2(x_btd), memory=memory, memory_segments_bs=memory_segments_bs, **call
            )
            x_btd = x_btd + dropout(y, self.rate.value, keys[1])
        y = self.norm3(x_btd)
        y = (
            self.moe(y, segments_bt, train=train, cached=cache is not None)
            if hasattr(self, "moe")
            else self.mlp(y, train=train)
        )
        x_btd = x_btd + dropout(y, self.rate.value, keys[2])
        x_btd = constrain(x_btd, "batch", "sequence", None)
        return x_btd, None if cache is None else cache | own


class Stack(nnx.Module):
    """The layers of one side, their table of relative positions and their last norm."""

    def __init__(self, arguments: dict[str, Any], decoder: bool, rngs: nnx.Rngs) -> None:
        a = arguments
        self.arguments, self.decoder = nnx.static(arguments), decoder
        self.num_layers = a["decoder_layers" if decoder else "num_layers"]
        every = 1 if a["experts"] is None else a["experts_every"]
        sparse = lambda index: a["experts"] is not None and index % every == every - 1  # noqa: E731
        make = lambda rngs, index: Block(arguments, decoder, sparse(index), rngs)  # noqa: E731
        self.layers = stack(make, self.num_layers, a["scan"], rngs, every)
        shape, axes = (a["buckets"], a["num_heads"]), ("positions", "heads")
        self.distances = param(rngs, shape, axes, a["width"] ** -0.5)
        self.norm = Norm(a["width"], "rmsnorm", False, a["norm_epsilon"].value)

    def __call__(
        self, x_btd: Array, key: Array | None, cache: Any, train: bool, **call: Any
    ) -> tuple[Array, Any]:
        a, positions_bt = self.arguments, call.get("positions_bt")
        keys = None if key is None else jax.random.split(key, self.num_layers + 2)
        rate = a["dropout"].value
        x = dropout(x_btd, rate, None if keys is None else keys[-1])
        slots = x.shape[1] if cache is None else cache["k"].shape[2]
        call |= dict(bias_bhts=self.bias(positions_bt, x.shape[1], slots), train=train)
        how = {name: a[name] for name in ("scan", "unroll", "remat")}
        layer_keys = None if keys is None else keys[:-2]
        x, cache = run(self.layers, x, layer_keys, cache, call, **how)
        return dropout(self.norm(x), rate, None if keys is None else keys[-2]), cache

    def bias(self, positions_bt: Array | None, queries: int, keys: int) -> Array:
        """Returns what is added to the scores (b or 1, h, t, s): one number for each head and
        bucket of the distance from a query, at `positions_bt` of a cache, to a key."""
        positions = jnp.arange(queries)[None] if positions_bt is None else positions_bt
        distance_bts = jnp.arange(keys) - positions[..., None]
        a = self.arguments
        found = bucket(distance_bts, not self.decoder, a["buckets"], a["max_distance"])
        table = constrain(self.distances[...], None, "heads")
        return jnp.moveaxis(table[found], -1, 1)


def bucket(distance: Array, both: bool, buckets: int, max_distance: int) -> Array:
    """Returns the bucket of each distance, key minus query: half of them one distance each, the
    others growing logarithmically up to `max_distance`; `both` directions share them, otherwise
    keys ahead are distance 0."""
    offset = 0
    if both:
        buckets //= 2
        offset = jnp.where(distance > 0, buckets, 0)
    distance = jnp.abs(distance) if both else jnp.maximum(-distance, 0)
    exact = buckets // 2
    share = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(max_distance / exact)
    far = exact + (share * (buckets - exact)).astype(jnp.int32)
    return offset + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


class T5(nnx.Module):
    """Methods: __call__ (logits), hidden (states and head); for generation encode, empty_cache,
    decode_step and logits."""

    def __init__(self, *, rngs: nnx.Rngs, **arguments: Any) -> None:
        self.arguments = nnx.static(arguments)
        a = arguments
        padded = padded_size(a["vocab_size"])
        self.dtype = compute_dtype(a["precision"])
        self.embed = param(rngs, (padded, a["width"]), ("vocab", "embed"), 1.0)
        self.encoder = Stack(arguments, False, rngs)
        self.decoder = Stack(arguments, True, rngs)
        if not a["tie_embeddings"]:
            self.head = param(rngs, (a["width"], padded), ("embed", "vocab"), a["width"] ** -0.5)

    def __call__(
        self,
        inputs_bs: Array,
        tokens_bt: Array,
        input_segments_bs: Array | None = None,
        segments_bt: Array | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Returns float32 logits (b, t, v) of what follows each of `tokens_bt`, the target behind a
        start token; those of the vocabulary's padding are -inf."""
        inputs = (inputs_bs, tokens_bt, input_segments_bs, segments_bt)
        return self.logits(self.hidden(*inputs, key=key, train=train)[0])

    def hidden(
        self,
        inputs_bs: Array,
        tokens_bt: Array,
        input_segments_bs: Array | None = None,
        segments_bt: Array | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Array, Array]:
        """Returns the decoder's last states (b, t, d) and the head (d, v), for losses that never
        hold all logits. Segment 0 is padding; a target sees its own segment of the input."""
        key = key if train else None
        keys = (None, None) if key is None else jax.random.split(key)
        memory_bsd = self.encode(inputs_bs, input_segments_bs, key=keys[0], train=train)
        if input_segments_bs is not None and segments_bt is None:
            segments_bt = jnp.ones(tokens_bt.shape, jnp.int32)
        if segments_bt is not None and input_segments_bs is None:
            input_segments_bs = jnp.ones(inputs_bs.shape, jnp.int32)
        where = dict(memory_bsd=memory_bsd, memory_segments_bs=input_segments_bs)
        x, _ = self.decoder(
            self._embedded(tokens_bt), keys[1], None, train, segments_bt=segments_bt, **where
        )
        return self._scaled(x), self._head()

    def encode(
        self,
        inputs_bs: Array,
        segments_bs: Array | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Returns the encoder's last states (b, s, d)."""
        x = self._embedded(inputs_bs)
        key = key if train else None
        return self.encoder(x, key, None, train, segments_bt=segments_bs)[0]

    def empty_cache(
        self,
        batch: int,
        length: int,
        memory_bsd: Array,
        memory_segments_bs: Array | None = None,
        *,
        key: Any = None,
        train: bool = False,
    ) -> dict[str, Any]:
        """Returns zero keys and values of `length` tokens, and those of the input's states."""
        a = self.arguments
        shape = (a["decoder_layers"], batch, length, a["num_heads"], a["head_dim"])
        memory = collect(
            self.decoder.layers,
            lambda layer: layer.cross.keys_values(memory_bsd, train=False),
            scan=a["scan"],
        )
        if memory_segments_bs is None:
            memory_segments_bs = jnp.ones(memory_bsd.shape[:2], jnp.int32)
        zeros = {name: jnp.zeros(shape, self.dtype) for name in ("k", "v")}
        layers = zeros | {f"memory_{name}": value for name, value in memory.items()}
        # As in every leaf of a cache the batch is the second axis.
        return {"layers": layers, "segments": memory_segments_bs[None]}

    def decode_step(
        self,
        tokens_bt: Array,
        positions_bt: Array,
        cache: dict[str, Any],
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Array, dict[str, Any]]:
        """Writes `tokens_bt` into the cache at `positions_bt` and returns their states (b, t, d)
        for `logits`."""
        where = dict(memory_segments_bs=cache["segments"][0], positions_bt=positions_bt)
        x = self._embedded(tokens_bt)
        x, layers = self.decoder(x, None, cache["layers"], False, segments_bt=None, **where)
        return self._scaled(x), cache | {"layers": layers}

    def logits(self, hidden_btd: Array, *, key: Any = None, train: bool = False) -> Array:
        """Returns float32 logits (b, t, v); those of the vocabulary's padding are -inf."""
        return vocab_logits(hidden_btd, self._head(), self.arguments["vocab_size"])

    def _embedded(self, tokens: Array) -> Array:
        return constrain(look_up(self.embed, tokens, self.dtype), "batch", "sequence", None)

    def _scaled(self, x: Array) -> Array:
        """The tied head is as large as the embedding: states shrink (v1.0)."""
        a = self.arguments
        return (wide(x) * a["width"] ** -0.5).astype(x.dtype) if a["tie_embeddings"] else x

    def _head(self) -> Array:
        return self.embed[...].T if self.arguments["tie_embeddings"] else self.head[...]
