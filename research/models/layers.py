"""Layers that the transformers share: parameters with logical axes, normalisation, rotary
positions, attention and the two feed-forward forms.

Shape suffixes: b batch, t time, d width, f feed-forward width, h query heads, g key-value heads,
k head dimension, s cache slots.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from research.kernels.attention import attention
from research.kernels.matmul import einsum
from research.kernels.quantized import empty_history, fp8_einsum
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
    if module.precision == "fp8":
        amax = getattr(module, f"{name}_amax")
        y, history = fp8_einsum(spec, x, weight, amax[...])
        if train:
            amax[...] = history
    else:
        y = einsum(spec, x, weight, module.precision)
    y = checkpoint_name(y, "product")  # what remat="dots" keeps
    return y if bias is None else y + bias[...].astype(y.dtype)


def dropout(x: Array, rate: Any, key: Array | None) -> Array:
    """Zeroes elements with probability `rate` (may be a tracer) and rescales; no key: as is."""
    if key is None or (isinstance(rate, (int, float)) and rate == 0):
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def rotary(positions_bt: Array, dim: int, theta: float) -> tuple[Array, Array]:
    """Returns cosines and sines (b, t, 1, dim/2) of rotary positions (arXiv:2104.09864)."""
    frequencies = theta ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    angles = positions_bt[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_bthk: Array, cos_sin: tuple[Array, Array]) -> Array:
    """Rotates the two halves of each head, as Llama's published weights expect."""
    cos, sin = cos_sin
    first, second = jnp.split(x_bthk.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_bthk.dtype)


class Norm(nnx.Module):
    """LayerNorm (arXiv:1607.06450) or RMSNorm (arXiv:1910.07467), computed in float32."""

    def __init__(self, width: int, kind: NormKind, bias: bool, epsilon: Any) -> None:
        self.kind, self.epsilon = kind, Number(epsilon)
        self.scale = constant((width,), ("norm",), 1.0)
        self.bias = constant((width,), ("norm",), 0.0) if bias and kind == "layernorm" else None

    def __call__(self, x_btd: Array) -> Array:
        y = x_btd.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        variance = jnp.mean(y * y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(variance + self.epsilon.value) * self.scale[...]
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(x_btd.dtype)


class Attention(nnx.Module):
    """Causal self-attention (arXiv:1706.03762), grouped queries (arXiv:2305.13245)."""

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
        window: int | None,
        query_scale: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.precision, self.backend, self.window = precision, backend, window
        self.query_scale = query_scale  # on top of 1 / sqrt(dim)
        dim = width // heads
        q_axes, kv_axes = ("heads", "head_dim"), ("kv_heads", "head_dim")
        self.q = param(rngs, (width, heads, dim), ("embed", *q_axes), std)
        self.k = param(rngs, (width, kv_heads, dim), ("embed", *kv_axes), std)
        self.v = param(rngs, (width, kv_heads, dim), ("embed", *kv_axes), std)
        self.out = param(rngs, (heads, dim, width), (*q_axes, "embed"), out_std)
        self.q_bias = constant((heads, dim), q_axes, 0.0) if bias else None
        self.k_bias = constant((kv_heads, dim), kv_axes, 0.0) if bias else None
        self.v_bias = constant((kv_heads, dim), kv_axes, 0.0) if bias else None
        self.out_bias = constant((width,), ("norm",), 0.0) if bias else None
        histories(self, "q", "k", "v", "out")

    def __call__(
        self,
        x_btd: Array,
        *,
        segments_bt: Array | None,
        positions_bt: Array,
        cos_sin: tuple[Array, Array] | None,
        cache: dict[str, Array] | None,
        train: bool,
    ) -> tuple[Array, dict[str, Array] | None]:
        q = project(self, "q", "btd,dhk->bthk", x_btd, train)
        k = project(self, "k", "btd,dgk->btgk", x_btd, train)
        v = project(self, "v", "btd,dgk->btgk", x_btd, train)
        if self.query_scale != 1:
            q = (q.astype(jnp.float32) * self.query_scale).astype(q.dtype)
        if cos_sin is not None:
            q, k = rotate(q, cos_sin), rotate(k, cos_sin)
        q = constrain(q, "batch", "sequence", "heads", None)
        if cache is None:
            y = attention(
                q, k, v, window=self.window, segments_bt=segments_bt, backend=self.backend
            )
        else:  # each row writes at its own positions and sees the slots up to them
            rows = jnp.arange(len(x_btd))[:, None]
            cache = {
                "k": cache["k"].at[rows, positions_bt].set(k),
                "v": cache["v"].at[rows, positions_bt].set(v),
            }
            y = attention(
                q, cache["k"], cache["v"], window=self.window, query_positions_bt=positions_bt
            )
        return project(self, "out", "bthk,hkd->btd", y, train), cache


class MLP(nnx.Module):
    """Feed-forward: GELU (tanh form, as GPT-2) or SwiGLU (arXiv:2002.05202)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        kind: Literal["gelu", "swiglu"],
        bias: bool,
        std: float,
        out_std: float,
        precision: str,
        rngs: nnx.Rngs,
    ) -> None:
        self.precision, self.kind = precision, kind
        self.up = param(rngs, (width, hidden), ("embed", "mlp"), std)
        if kind == "swiglu":
            self.gate = param(rngs, (width, hidden), ("embed", "mlp"), std)
        self.down = param(rngs, (hidden, width), ("mlp", "embed"), out_std)
        self.up_bias = constant((hidden,), ("mlp",), 0.0) if bias else None
        self.down_bias = constant((width,), ("norm",), 0.0) if bias else None
        self.gate_bias = None
        histories(self, "up", "down", *(["gate"] if kind == "swiglu" else []))

    def __call__(self, x_btd: Array, *, train: bool) -> Array:
        y = project(self, "up", "btd,df->btf", x_btd, train)
        if self.kind == "gelu":
            # The square in its derivative overflows float16 at 256, and infinity times 0 is NaN.
            wide = jnp.float32 if y.dtype == jnp.float16 else y.dtype
            y = jax.nn.gelu(y.astype(wide), approximate=True).astype(y.dtype)
        else:
            y = y * jax.nn.silu(project(self, "gate", "btd,df->btf", x_btd, train))
        y = constrain(y, "batch", "sequence", "mlp")
        return project(self, "down", "btf,fd->btd", y, train)
