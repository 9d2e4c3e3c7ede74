"""Attention with grouped queries, one call for every backend.

    out_bthd = attention(q_bthd, k_bshd, v_bshd, causal=True, window=None, segments_bt=None)

`choose` says which backend serves a call and why: "splash" (TPU, Pallas), "cudnn" (GPU) or "xla"
(anywhere). The fused ones are forms of arXiv:2205.14135; grouped queries are arXiv:2305.13245.
Shapes: b batch, t queries, s keys, h heads, d head size, k key-value heads.
"""

import logging
from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from research.arguments import InputError, nearest
from research.kernels import mesh
from research.kernels.matmul import exactness, wide, wide_einsum

Array = jax.Array
BACKENDS = ("auto", "xla", "splash", "cudnn")


def attention(
    q_bthd: Array,
    k_bshd: Array,
    v_bshd: Array,
    *,
    causal: bool = True,
    window: int | None = None,
    segments_bt: Array | None = None,
    kv_segments_bs: Array | None = None,
    query_positions_bt: Array | None = None,
    bias_bhts: Array | None = None,
    backend: str = "auto",
) -> Array:
    """Returns softmax(q k / sqrt(d)) v of shape (b, t, h, d), the softmax in float32.

    A query sees the keys up to its own if `causal`; of these the last `window`, its own included;
    and only keys of its own segment (packed documents; padding is segment 0 and sees padding).
    `query_positions_bt` are the cache slots of the queries while decoding. `bias_bhts` is added to
    the scores (b may be 1): relative positions. A query that sees no key returns 0.
    Raises InputError for what does not fit and a named backend that cannot serve it.
    """
    queries, keys, cached = q_bthd.shape[1], k_bshd.shape[1], query_positions_bt is not None
    packed, own_keys = segments_bt is not None, kv_segments_bs is None
    for wrong, expected in (
        (k_bshd.shape != v_bshd.shape, "keys and values of one shape"),
        (not q_bthd.dtype == k_bshd.dtype == v_bshd.dtype, "one dtype"),
        (k_bshd.shape[::3] != q_bthd.shape[::3], "one batch and head size"),
        (q_bthd.shape[2] % k_bshd.shape[2], "query heads a multiple of the key-value heads"),
        (window is not None and (window < 1 or not causal), "a window of at least 1, and causal"),
        (cached and not causal, "causal=True with query positions"),
        (causal and not cached and queries != keys, "as many keys as queries, or query positions"),
        (packed and own_keys and queries != keys, "kv_segments_bs for other keys than the queries"),
        (not own_keys and not packed, "segments_bt with kv_segments_bs"),
    ):
        if wrong:
            given = ", ".join(f"{x.dtype}{x.shape}" for x in (q_bthd, k_bshd, v_bshd))
            raise InputError(
                f"attention of q, k, v {given}, {window=}, {causal=}: expected {expected}"
            )
    shapes = (q_bthd.dtype, q_bthd.shape, k_bshd.shape)
    biased = bias_bhts is not None
    backend, why = choose(backend, mesh.platform(), *shapes, cached, packed, mesh.shards(), biased)
    _log("cached" if cached else "whole", backend, why)
    kv_segments_bs = segments_bt if own_keys else kv_segments_bs
    visible = partial(
        _visible, queries, keys, causal, window, segments_bt, kv_segments_bs, query_positions_bt
    )
    with jax.named_scope("attention"):  # research/flops.py counts what happens in here apart
        if backend == "splash":
            segments = (segments_bt, kv_segments_bs) if packed else ()
            out_bthd = _splash(q_bthd, k_bshd, v_bshd, *segments, causal=causal, window=window)
        elif backend == "cudnn":
            # One explicit mask for segments, of which cuDNN makes a bias; it takes no window then.
            out_bthd = jax.nn.dot_product_attention(
                *(q_bthd, k_bshd, v_bshd),
                mask=visible()[:, None] if packed else None,
                is_causal=causal,
                local_window_size=None if packed or window is None else (window - 1, 0),
                implementation="cudnn",
            )
        else:
            out_bthd = _xla(q_bthd, k_bshd, v_bshd, visible, bias_bhts)
        if cached or not own_keys:  # otherwise every query sees itself
            out_bthd = jnp.where(visible().any(-1)[:, :, None, None], out_bthd, 0)
    return out_bthd


@cache
def _log(kind: str, backend: str, why: str) -> None:
    """Says once, while tracing, what runs."""
    logging.getLogger("anneal").info("attention over %s sequences: %s (%s)", kind, backend, why)


def choose(
    backend: str,
    platform: str,
    dtype: jnp.dtype,
    q_shape: tuple[int, ...],
    k_shape: tuple[int, ...],
    cached: bool = False,
    packed: bool = False,
    shards: tuple[int, int, int] = (1, 1, 1),
    biased: bool = False,
) -> tuple[str, str]:
    """Returns (backend, reason) for q (b, t, h, d) and k (b, s, k, d) on "tpu", "gpu" or "cpu".

    `shards` are the parts into which the mesh splits batch, heads and sequence (mesh.shards()).
    Raises InputError for a named backend that cannot serve the request, never takes another.
    """
    if backend not in BACKENDS:
        raise InputError(f"attention backend {backend!r} is not known{nearest(backend, BACKENDS)}")
    name = {"tpu": "splash", "gpu": "cudnn"}.get(platform) if backend == "auto" else backend
    if name in ("xla", None):
        return "xla", "asked for" if name else f"no fused attention for {platform}"
    (batch, queries, _, dim), (_, keys, kv_heads, _) = q_shape, k_shape
    home = {"splash": "tpu", "cudnn": "gpu"}[name]
    dtypes = ("bfloat16", "float32") if name == "splash" else ("bfloat16", "float16")
    rules = [
        (platform != home, f"it runs on {home}, and this is {platform}"),
        (cached, "it does not read a cache"),
        (biased, "it does not add to the scores"),
        (shards[2] > 1, f"the sequence is split, seq={shards[2]}"),
        (batch % shards[0], f"a batch of {batch} does not divide over {shards[0]} devices"),
        (kv_heads % shards[1], f"{kv_heads} key-value heads do not divide over tensor={shards[1]}"),
        (jnp.dtype(dtype).name not in dtypes, f"it takes no {jnp.dtype(dtype).name}"),
    ]
    if name == "splash":
        inexact = backend == "auto" and dtype == jnp.float32
        rules += [(inexact, "splash would not multiply in full float32")]
        rules += [
            (queries % 128 or keys % 128, f"lengths {(queries, keys)} are not multiples of 128")
        ]
    else:
        rules += [(dim > 128 or dim % 8, f"head size {dim} is not a multiple of 8 up to 128")]
        rules += [(packed and (queries % 2 or keys % 2), "packed sequences have an odd length")]
    problem = next((reason for applies, reason in rules if applies), None)
    if problem is None:
        return name, f"the fused attention of {platform}"
    if backend == "auto":
        return "xla", problem
    raise InputError(f"attention backend {backend!r}: {problem}; use auto or xla")


def _visible(queries, keys, causal, window, segments_bt, kv_segments_bs, positions_bt, group=1):
    """Returns which keys each query sees (b or 1, t * group, s), or None for all."""
    positions_bt = jnp.arange(queries)[None] if positions_bt is None else positions_bt
    positions, slots, mask = jnp.repeat(positions_bt, group, 1)[:, :, None], jnp.arange(keys), None
    if causal:
        mask = slots <= positions
    if window is not None:
        mask &= slots > positions - window
    if segments_bt is not None:
        equal = jnp.repeat(segments_bt, group, 1)[:, :, None] == kv_segments_bs[:, None]
        mask = equal if mask is None else mask & equal
    return mask


def _xla(
    q_bthd: Array, k_bshd: Array, v_bshd: Array, visible: Callable, bias_bhts: Array | None
) -> Array:
    (batch, queries, heads, dim), kv_heads = q_bthd.shape, k_bshd.shape[2]
    group, exact = heads // kv_heads, exactness(q_bthd.dtype)
    # The queries that share a key-value head become one axis r, so that each product has four axes:
    # the fastest form on CPU, and t before the group keeps a split of t over the mesh.
    q = _scaled(q_bthd).reshape(batch, queries, kv_heads, group, dim).swapaxes(1, 2)
    q_bkrd = q.reshape(batch, kv_heads, queries * group, dim)
    k_bksd, v_bksd = k_bshd.swapaxes(1, 2), v_bshd.swapaxes(1, 2)
    scores_bkrs = wide_einsum("bkrd,bksd->bkrs", q_bkrd, k_bksd)
    if bias_bhts is not None:
        bias = bias_bhts.reshape(-1, kv_heads, group, queries, k_bshd.shape[1]).swapaxes(2, 3)
        scores_bkrs += bias.reshape(-1, kv_heads, queries * group, k_bshd.shape[1])
    if (mask := visible(group)) is not None:  # a finite value: a row that sees no key stays finite
        scores_bkrs = jnp.where(mask[:, None], scores_bkrs, -1e30)
    weights_bkrs = jax.nn.softmax(scores_bkrs).astype(q_bthd.dtype)
    out = jnp.einsum("bkrs,bksd->bkrd", weights_bkrs, v_bksd, precision=exact)
    out = out.reshape(batch, kv_heads, queries, group, dim).swapaxes(1, 2)
    return out.reshape(batch, queries, heads, dim)


def _splash(*operands: Array, causal: bool, window: int | None, interpret: bool = False) -> Array:
    """`operands` are q, k, v and, for packed sequences, the segments of queries and keys."""
    # Imported here: only a TPU needs to wait for Pallas.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    def local(q_bthd, k_bshd, v_bshd, *segments):
        shape = (q_bthd.shape[1], k_bshd.shape[1])
        mask = (splash.CausalMask if causal else splash.FullMask)(shape)
        if window is not None:
            mask = splash.LocalMask(shape, (window - 1, 0), 0)
        rows, columns = (next(n for n in (512, 256, 128) if size % n == 0) for size in shape)
        kernel = splash.make_splash_mha(
            splash.splash_attention_mask.MultiHeadMask([mask] * q_bthd.shape[2]),
            head_shards=1,
            q_seq_shards=1,
            # Queries, keys, keys at a time: of the forward pass, of dk and dv; then of dq.
            block_sizes=splash.BlockSizes(*(rows, columns, columns) * 2, rows, columns),
            interpret=interpret,
        )
        segment_ids = splash.SegmentIds(*segments) if segments else None
        q, k, v = (x.swapaxes(1, 2) for x in (_scaled(q_bthd), k_bshd, v_bshd))
        return jax.vmap(kernel)(q, k, v, segment_ids).swapaxes(1, 2)

    if not mesh.free():
        return local(*operands)
    # XLA cannot partition a Pallas call, so each device is told to work on its part.
    batch, heads = mesh.free(mesh.BATCH), mesh.free(mesh.HEADS)
    specs = (P(batch, None, heads),) * 3 + (P(batch),) * (len(operands) - 3)
    divided = jax.shard_map(
        local, in_specs=specs, out_specs=specs[0], axis_names=set(mesh.free()), check_vma=False
    )
    return divided(*operands)


def _scaled(q_bthd: Array) -> Array:
    """Returns q / sqrt(d), rounded once."""
    return (wide(q_bthd) * q_bthd.shape[-1] ** -0.5).astype(q_bthd.dtype)
