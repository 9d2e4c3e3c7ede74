"""Layers that the transformers share: parameters with logical axes, normalisation, rotary
positions, attention and the two feed-forward forms.

Shape suffixes: b batch, t time, d width, f feed-forward width, h query heads, g key-value heads,
k head dimension, s cache slots.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.kernels.attention import attention
from research.kernels.matmul import einsum
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

    def __init__(self, width: int, kind: NormKind, bias: bool, epsilon: float) -> None:
        self.kind, self.epsilon = kind, epsilon
        self.scale = constant((width,), ("norm",), 1.0)
        self.bias = constant((width,), ("norm",), 0.0) if bias and kind == "layernorm" else None

    def __call__(self, x_btd: Array) -> Array:
        y = x_btd.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.epsilon) * self.scale[...]
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
        out_std: float,
        precision: str,
        backend: str,
        window: int | None,
        rngs: nnx.Rngs,
    ) -> None:
        self.precision, self.backend, self.window = precision, backend, window
        dim = width // heads
        q_axes, kv_axes = ("heads", "head_dim"), ("kv_heads", "head_dim")
        self.q = param(rngs, (width, heads, dim), ("embed", *q_axes), 0.02)
        self.k = param(rngs, (width, kv_heads, dim), ("embed", *kv_axes), 0.02)
        self.v = param(rngs, (width, kv_heads, dim), ("embed", *kv_axes), 0.02)
        self.out = param(rngs, (heads, dim, width), (*q_axes, "embed"), out_std)
        self.q_bias = constant((heads, dim), q_axes, 0.0) if bias else None
        self.k_bias = constant((kv_heads, dim), kv_axes, 0.0) if bias else None
        self.v_bias = constant((kv_heads, dim), kv_axes, 0.0) if bias else None
        self.out_bias = constant((width,), ("norm",), 0.0) if bias else None

    def __call__(
        self,
        x_btd: Array,
        *,
        segments_bt: Array | None,
        positions_bt: Array,
        cos_sin: tuple[Array, Array] | None,
        cache: dict[str, Array] | None,
    ) -> tuple[Array, dict[str, Array] | None]:
        q = self._project("btd,dhk->bthk", x_btd, self.q, self.q_bias)
        k = self._project("btd,dgk->btgk", x_btd, self.k, self.k_bias)
        v = self._project("btd,dgk->btgk", x_btd, self.v, self.v_bias)
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
        return self._project("bthk,hkd->btd", y, self.out, self.out_bias), cache

    def _project(self, form: str, x: Array, weight: nnx.Param, bias: nnx.Param | None) -> Array:
        y = einsum(form, x, weight[...], self.precision)
        return y if bias is None else y + bias[...].astype(y.dtype)


class MLP(nnx.Module):
    """Feed-forward: GELU (tanh form, as GPT-2) or SwiGLU (arXiv:2002.05202)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        kind: Literal["gelu", "swiglu"],
        bias: bool,
        out_std: float,
        precision: str,
        rngs: nnx.Rngs,
    ) -> None:
        self.precision = precision
        self.up = param(rngs, (width, hidden), ("embed", "mlp"), 0.02)
        self.gate = (
            param(rngs, (width, hidden), ("embed", "mlp"), 0.02) if kind == "swiglu" else None
        )
        self.down = param(rngs, (hidden, width), ("mlp", "embed"), out_std)
        self.up_bias = constant((hidden,), ("mlp",), 0.0) if bias else None
        self.down_bias = constant((width,), ("norm",), 0.0) if bias else None

    def __call__(self, x_btd: Array) -> Array:
        y = einsum("btd,df->btf", x_btd, self.up[...], self.precision)
        if self.up_bias is not None:
            y = y + self.up_bias[...].astype(y.dtype)
        if self.gate is None:
            y = jax.nn.gelu(y, approximate=True)
        else:
            y = y * jax.nn.silu(einsum("btd,df->btf", x_btd, self.gate[...], self.precision))
        y = constrain(y, "batch", "sequence", "mlp")
        y = einsum("btf,fd->btd", y, self.down[...], self.precision)
        return y if self.down_bias is None else y + self.down_bias[...].astype(y.dtype)
