"""Layers that the transformers share: parameters with logical axes, normalisation, rotary
positions, attention and the two feed-forward forms.

Shape suffixes: b batch, t time, d width, f feed-forward width, h query heads, g key-value heads,
k head dimension, s keys: cache slots, or the positions of a memory.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from research.kernels.attention import attention
from research.kernels.matmul import einsum, wide, wide_einsum
from research.kernels.quantized import empty_history, fp8_einsum
from research.models.lora import Adapted
from research.sharding import constrain

Array = jax.Array
NormKind = Literal["layernorm", "rmsnorm"]


def param(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], std: float) -> nnx.Param:
    """Returns a float32 parameter drawn from N(0, std^2) that carries its logical axis names."""
    value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value, out_sharding=axes, eager_sharding=False)


def constant(shape: tuple[int, ...], axes: tuple[str, ...], value: float) -> nnx.Param:
    """Returns a float32 parameter filled with `value`."""
    return nnx.Param(jnp.full(shape, value, jnp.float32), out_sharding=axes, eager_sharding=False)


def padded_size(vocab_size: int) -> int:
    """Returns the rows of a table for `vocab_size` ids: a multiple of 128."""
    return -(-vocab_size // 128) * 128


def look_up(table: nnx.Param, ids: Array, dtype: Any) -> Array:
    """Returns the rows `ids` of an embedding. The gather needs whole rows: without the constraint
    a table sharded over both axes is rematerialised in full on every device."""
    return constrain(table[...].astype(dtype), "vocab", None)[ids]


def vocab_logits(hidden_btd: Array, head_dv: Array, vocab_size: int) -> Array:
    """Returns float32 logits (b, t, v); those of the vocabulary's padding are -inf."""
    logits = wide_einsum("btd,dv->btv", hidden_btd, head_dv.astype(hidden_btd.dtype))
    logits = constrain(logits, "batch", "sequence", "vocab")
    return jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, -jnp.inf)


class Number:
    """A number that a module holds and that may be a tracer (a population under vmap): flax, which
    compares what modules are made of, compares it by identity, and takes it for no state."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Number):
            return False
        plain = isinstance(self.value, (int, float)) and isinstance(other.value, (int, float))
        return self.value == other.value if plain else self.value is other.value

    def __hash__(self) -> int:
        return hash(Number)


class Amax(nnx.Variable):
    """The largest magnitudes that an fp8 product met in the last steps, in the model's state."""


def histories(module: nnx.Module, *names: str) -> None:
    """Gives `module` a history for each weight that it multiplies, if its precision is fp8."""
    if module.precision == "fp8":
        for name in names:
            setattr(module, f"{name}_amax", Amax(empty_history()))


def project(module: nnx.Module, name: str, spec: str, x: Array, train: bool) -> Array:
    """Returns the product of `x` with the weight `name` of `module`, plus its bias if it has one.
    Training writes the history of an fp8 product; evaluation reads it."""
    weight, bias = getattr(module, name)[...], getattr(module, f"{name}_bias")
    adapters = weight if isinstance(weight, Adapted) else None
    weight = weight if adapters is None else adapters.base
    if module.precision == "fp8":
        amax = getattr(module, f"{name}_amax")
        y, history = fp8_einsum(spec, x, weight, amax[...])
        if train:
            amax[...] = history
    else:
        y = einsum(spec, x, weight, module.precision)
    if adapters is not None:
        y = y + _adapted(spec, x, adapters, module.precision).astype(y.dtype)
    y = checkpoint_name(y, "product")  # what remat="dots" keeps
    return y if bias is None else y + bias[...].astype(y.dtype)


def _adapted(spec: str, x: Array, weight: Adapted, precision: str) -> Array:
    """Returns the product with the adapters alone (lora.py), the small one of two in int8 and fp8
    runs too, where both are bfloat16's."""
    inputs, outputs = spec.replace("...", "").split("->")
    left, right = inputs.split(",")
    shared = "".join(c for c in right if c in left and c in outputs)  # experts
    ins = "".join(c for c in right if c in left and c not in outputs)
    outs = "".join(c for c in right if c not in left)
    rest = "".join(c for c in left if c not in ins)
    dots = "..." if "..." in spec else ""
    precision = "bf16" if precision in ("int8", "fp8") else precision
    low = einsum(f"{dots}{left},{shared}{ins}r->{dots}{rest}r", x, weight.a, precision)
    y = einsum(f"{dots}{rest}r,{shared}r{outs}->{dots}{outputs}", low, weight.b, precision)
    return y * weight.scale


def dropout(x: Array, rate: Any, key: Array | None) -> Array:
    """Zeroes elements with probability `rate` (may be a tracer) and rescales; no key: as is."""
    if key is None or (isinstance(rate, (int, float)) and rate == 0):
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def rotary(positions_bt: Array, dim: int, theta: float) -> tuple[Array, Array]:
    """Returns cosines and sines (b, t, 1, dim/2) of rotary positions (arXiv:2104.09864)."""
    # The default float: float32, but for proofs in float64.
    frequencies = theta ** (-jnp.arange(0, dim, 2, dtype=float) / dim)
    angles = positions_bt[..., None, None].astype(frequencies.dtype) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_bthk: Array, cos_sin: tuple[Array, Array]) -> Array:
    """Rotates the two halves of each head, as Llama's published weights expect."""
    cos, sin = cos_sin
    first, second = jnp.split(wide(x_bthk), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_bthk.dtype)


class Norm(nnx.Module):
    """LayerNorm (arXiv:1607.06450) or RMSNorm (arXiv:1910.07467), computed in float32."""

    def __init__(self, width: int, kind: NormKind, bias: bool, epsilon: Any) -> None:
        self.kind, self.epsilon = kind, Number(epsilon)
        self.scale = constant((width,), ("norm",), 1.0)
        self.bias = constant((width,), ("norm",), 0.0) if bias and kind == "layernorm" else None

    def __call__(self, x_btd: Array) -> Array:
        y = wide(x_btd)
        if self.kind == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        variance = jnp.mean(y * y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(variance + self.epsilon.value) * self.scale[...]
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(x_btd.dtype)


class Attention(nnx.Module):
    """Attention (arXiv:1706.03762) with grouped queries (arXiv:2305.13245), to the texts themselves
    or to a memory: the states of an encoder."""

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        *,
        bias: bool,
        std: float,
        out_std: float,
        precision: str,
        backend: str,
        rngs: nnx.Rngs,
        dim: int | None = None,
        causal: bool = True,
        window: int | None = None,
        query_scale: float = 1.0,
        query_std: float | None = None,
    ) -> None:
        self.precision, self.backend, self.causal, self.window = precision, backend, causal, window
        self.query_scale = query_scale  # on top of 1 / sqrt(dim)
        dim = dim or width // heads
        q_axes, kv_axes = ("heads", "head_dim"), ("kv_heads", "head_dim")
        self.q = param(rngs, (width, heads, dim), ("embed", *q_axes), query_std or std)
        self.k = param(rngs, (width, kv_heads, dim), ("embed", *kv_axes), std)
        self.v = param(rngs, (width, kv_heads, dim), ("embed", *kv_axes), std)
        self.out = param(rngs, (heads, dim, width), (*q_axes, "embed"), out_std)
        self.q_bias = constant((heads, dim), q_axes, 0.0) if bias else None
        self.k_bias = constant((kv_heads, dim), kv_axes, 0.0) if bias else None
        self.v_bias = constant((kv_heads, dim), kv_axes, 0.0) if bias else None
        self.out_bias = constant((width,), ("norm",), 0.0) if bias else None
        histories(self, "q", "k", "v", "out")

    def keys_values(self, x_bsd: Array, *, train: bool) -> dict[str, Array]:
        """Returns keys and values (b, s, g, k) of `x_bsd`: what a cache holds of it."""
        return {name: project(self, name, "btd,dgk->btgk", x_bsd, train) for name in ("k", "v")}

    def __call__(
        self,
        x_btd: Array,
        *,
        segments_bt: Array | None,
        train: bool,
        positions_bt: Array | None = None,
        cos_sin: tuple[Array, Array] | None = None,
        bias_bhts: Array | None = None,
        cache: dict[str, Array] | None = None,
        memory: dict[str, Array] | None = None,
        memory_segments_bs: Array | None = None,
    ) -> tuple[Array, dict[str, Array] | None]:
        """Returns the result (b, t, d) and the cache with the new keys and values in it. With a
        `memory` (what keys_values returns) the queries see that alone; no cache is written."""
        q = project(self, "q", "btd,dhk->bthk", x_btd, train)
        own = self.keys_values(x_btd, train=train) if memory is None else memory
        if self.query_scale != 1:
            q = (wide(q) * self.query_scale).astype(q.dtype)
        if cos_sin is not None:
            q, own = rotate(q, cos_sin), own | {"k": rotate(own["k"], cos_sin)}
        q = constrain(q, "batch", "sequence", "heads", None)
        where = dict(causal=self.causal, window=self.window, bias_bhts=bias_bhts)
        if cache is None:
            where |= dict(segments_bt=segments_bt, kv_segments_bs=memory_segments_bs)
            y = attention(q, own["k"], own["v"], **where, backend=self.backend)
        else:  # each row writes at its own positions and sees the slots up to them
            rows = jnp.arange(len(x_btd))[:, None]
            cache = {name: cache[name].at[rows, positions_bt].set(own[name]) for name in cache}
            y = attention(q, cache["k"], cache["v"], **where, query_positions_bt=positions_bt)
        return project(self, "out", "bthk,hkd->btd", y, train), cache


# What is applied to the product of a feed-forward's hidden layer; the gated ones have two products.
ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=True),  # the tanh form, as GPT-2
    "gelu_erf": partial(jax.nn.gelu, approximate=False),  # as BERT
    "relu": jax.nn.relu,
    "swiglu": jax.nn.silu,
    "geglu": partial(jax.nn.gelu, approximate=True),
}
GATED = ("swiglu", "geglu")
MLPKind = Literal["gelu", "gelu_erf", "relu", "swiglu", "geglu"]


def activate(kind: MLPKind, x: Array) -> Array:
    """Applies the activation of a feed-forward `kind`."""
    # The square in GELU's derivative overflows float16 at 256, and infinity times 0 is NaN.
    return ACTIVATIONS[kind](x.astype(jnp.float32) if x.dtype == jnp.float16 else x).astype(x.dtype)


class MLP(nnx.Module):
    """Feed-forward: one hidden layer, or a gated one (arXiv:2002.05202)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        kind: MLPKind,
        bias: bool,
        std: float,
        out_std: float,
        precision: str,
        rngs: nnx.Rngs,
    ) -> None:
        self.precision, self.kind = precision, kind
        self.up = param(rngs, (width, hidden), ("embed", "mlp"), std)
        if kind in GATED:
            self.gate = param(rngs, (width, hidden), ("embed", "mlp"), std)
        self.down = param(rngs, (hidden, width), ("mlp", "embed"), out_std)
        self.up_bias = constant((hidden,), ("mlp",), 0.0) if bias else None
        self.down_bias = constant((width,), ("norm",), 0.0) if bias else None
        self.gate_bias = None
        histories(self, "up", "down", *(["gate"] if kind in GATED else []))

    def __call__(self, x_btd: Array, *, train: bool) -> Array:
        y = project(self, "up", "btd,df->btf", x_btd, train)
        if self.kind in GATED:
            y = y * activate(self.kind, project(self, "gate", "btd,df->btf", x_btd, train))
        else:
            y = activate(self.kind, y)
        y = constrain(y, "batch", "sequence", "mlp")
        return project(self, "down", "btf,fd->btd", y, train)
