"""Attention with grouped queries, one call for every backend.

    out_bthd = attention(q_bthd, k_bshd, v_bshd, causal=True, window=None, segments_bt=None)

`choose` says which backend serves a call and why, so that a program can log it: "splash" (TPU,
Pallas), "cudnn" (GPU) or "xla" (anywhere). Both fused kernels are forms of arXiv:2205.14135;
grouped queries are arXiv:2305.13245. Shapes: b batch, t queries, s keys, h heads, d head size,
k key-value heads, g queries of one key-value head.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from research.arguments import InputError, nearest
from research.kernels import mesh
from research.kernels.matmul import exactness

BACKENDS = ("auto", "xla", "splash", "cudnn")
MASKED = -1e30  # finite, so that a row without any visible key stays finite
Shape = tuple[int, ...]


def attention(
    q_bthd: jax.Array,
    k_bshd: jax.Array,
    v_bshd: jax.Array,
    *,
    causal: bool = True,
    window: int | None = None,
    segments_bt: jax.Array | None = None,
    kv_segments_bs: jax.Array | None = None,
    query_positions_bt: jax.Array | None = None,
    backend: str = "auto",
) -> jax.Array:
    """Returns softmax(q k / sqrt(d)) v of shape (b, t, h, d), the softmax in float32.

    A query sees: the keys up to its own position if `causal`; of these the last `window`, its own
    included; only keys of an equal segment (packed documents; padding is segment 0 and sees
    padding). `query_positions_bt` are the cache slots of the queries while decoding. A query that
    sees no key returns 0. Raises InputError for shapes that do not fit and for a named backend that
    cannot serve them.
    """
    cached = query_positions_bt is not None
    _check(q_bthd, k_bshd, v_bshd, causal, window, segments_bt, kv_segments_bs, cached)
    own_keys = kv_segments_bs is None
    kv_segments_bs = segments_bt if own_keys else kv_segments_bs
    request = (mesh.platform(), q_bthd.dtype, q_bthd.shape, k_bshd.shape)
    state = dict(cached=cached, packed=segments_bt is not None, shards=mesh.shards())
    if backend == "auto":
        backend, _ = choose(*request, **state)
    elif problem := refusal(backend, *request, **state):
        raise InputError(f"attention backend {backend!r} cannot serve this model: {problem}")

    rule = (causal, window, segments_bt, kv_segments_bs)
    with jax.named_scope("attention"):
        if backend == "splash":
            out_bthd = _splash(q_bthd, k_bshd, v_bshd, *rule)
        elif backend == "cudnn":
            out_bthd = _cudnn(q_bthd, k_bshd, v_bshd, *rule)
        else:
            out_bthd = _xla(q_bthd, k_bshd, v_bshd, *rule, query_positions_bt)
        if cached or not own_keys:  # otherwise every query sees at least itself
            seen = _visible(q_bthd.shape[1], k_bshd.shape[1], *rule, query_positions_bt).any(-1)
            out_bthd = jnp.where(seen[:, :, None, None], out_bthd, 0)
    return out_bthd


def choose(
    platform: str,
    dtype: jnp.dtype,
    q_shape: Shape,
    k_shape: Shape,
    *,
    cached: bool = False,
    packed: bool = False,
    shards: tuple[int, int, int] = (1, 1, 1),
) -> tuple[str, str]:
    """Returns (backend, reason) for q (b, t, h, d) and k (b, s, k, d) on "tpu", "gpu" or "cpu".

    `shards` are the parts into which the mesh splits batch, heads and sequence.
    """
    fused = {"tpu": "splash", "gpu": "cudnn"}.get(platform)
    if fused is None:
        return "xla", f"no fused attention for {platform}"
    if dtype == jnp.float32:
        return "xla", f"{fused} would not multiply in full float32"
    state = dict(cached=cached, packed=packed, shards=shards)
    problem = refusal(fused, platform, dtype, q_shape, k_shape, **state)
    return ("xla", problem) if problem else (fused, f"the fused attention of {platform}")


def refusal(
    backend: str,
    platform: str,
    dtype: jnp.dtype,
    q_shape: Shape,
    k_shape: Shape,
    *,
    cached: bool,
    packed: bool,
    shards: tuple[int, int, int],
) -> str:
    """Returns why `backend` cannot serve a request, or "". Raises InputError for an unknown name."""
    if backend not in BACKENDS:
        raise InputError(f"attention backend {backend!r} is not known{nearest(backend, BACKENDS)}")
    if backend == "xla":
        return ""
    (batch, queries, _, dim), (_, keys, kv_heads, _) = q_shape, k_shape
    home = {"splash": "tpu", "cudnn": "gpu"}[backend]
    rules = [
        (platform != home, f"it runs on {home}, this is {platform}; use auto or xla"),
        (cached, "it does not read a cache; use auto or xla"),
        (shards[2] > 1, "it does not split the sequence; use xla or config.mesh.seq=1"),
        (
            batch % shards[0],
            f"a batch of {batch} does not divide over {shards[0]} devices",
        ),
        (
            kv_heads % shards[1],
            f"{kv_heads} key-value heads do not divide over tensor={shards[1]}",
        ),
    ]
    if backend == "splash":
        kinds = (jnp.bfloat16, jnp.float32)
        long = queries % 128 or keys % 128
        rules += [(long, f"lengths {queries} and {keys} are not multiples of 128")]
    else:
        kinds = (jnp.bfloat16, jnp.float16)
        odd = packed and (queries % 2 or keys % 2)
        rules += [
            (dim > 128 or dim % 8, f"head size {dim} is not a multiple of 8 up to 128"),
            (odd, f"packed lengths {queries} and {keys} are not even"),
        ]
    rules += [
        (
            dtype not in kinds,
            f"it does not take {jnp.dtype(dtype).name}; use bf16 or xla",
        )
    ]
    return next((reason for applies, reason in rules if applies), "")


def _check(q, k, v, causal, window, segments, kv_segments, cached) -> None:
    batch, queries, heads, dim = q.shape
    rules = [
        (
            k.shape != v.shape or not q.dtype == k.dtype == v.dtype,
            "keys and values differ",
        ),
        (k.shape[::3] != (batch, dim), "batch or head size of queries and keys differ"),
        (heads % k.shape[2], "query heads must be a multiple of key-value heads"),
        (
            window is not None and (window < 1 or not causal),
            f"{window=} needs causal and >= 1",
        ),
        (cached and not causal, "query positions need causal=True"),
        (
            queries != k.shape[1] and causal and not cached,
            "causal attention needs as many keys as queries, or query positions",
        ),
        (
            kv_segments is None and segments is not None and queries != k.shape[1],
            "other keys than queries need kv_segments_bs too",
        ),
        (
            kv_segments is not None and segments is None,
            "kv_segments_bs needs segments_bt",
        ),
    ]
    for applies, reason in rules:
        if applies:
            given = f"q {q.dtype} {q.shape}, k {k.dtype} {k.shape}, v {v.dtype} {v.shape}"
            raise InputError(f"attention of {given}: {reason}")


def _visible(
    queries,
    keys,
    causal,
    window,
    segments_bt,
    kv_segments_bs,
    positions_bt=None,
    group=1,
):
    """Returns the mask (b or 1, t * group, s), or None if every key is visible."""
    positions_bt = jnp.arange(queries)[None] if positions_bt is None else positions_bt
    positions = jnp.repeat(positions_bt, group, axis=1)[:, :, None]
    slots, mask = jnp.arange(keys), None
    if causal:
        mask = slots <= positions
    if window is not None:
        mask &= slots > positions - window
    if segments_bt is not None:
        equal = jnp.repeat(segments_bt, group, axis=1)[:, :, None] == kv_segments_bs[:, None]
        mask = equal if mask is None else mask & equal
    return mask


def _xla(
    q_bthd,
    k_bshd,
    v_bshd,
    causal,
    window,
    segments_bt,
    kv_segments_bs,
    positions_bt=None,
):
    (batch, queries, heads, dim), (_, keys, kv_heads, _) = q_bthd.shape, k_bshd.shape
    group, dtype = heads // kv_heads, q_bthd.dtype
    mask = _visible(queries, keys, causal, window, segments_bt, kv_segments_bs, positions_bt, group)
    # The queries of one key-value head become one axis r = (t, g), so that every product has four
    # axes: the fastest form measured on CPU, and t before g keeps a split of t over the mesh.
    q_bkrd = _scaled(q_bthd).reshape(batch, queries, kv_heads, group, dim).swapaxes(1, 2)
    q_bkrd = q_bkrd.reshape(batch, kv_heads, queries * group, dim)
    k_bksd, v_bksd = k_bshd.swapaxes(1, 2), v_bshd.swapaxes(1, 2)
    kind = dict(precision=exactness(dtype), preferred_element_type=jnp.float32)
    scores_bkrs = jnp.einsum("bkrd,bksd->bkrs", q_bkrd, k_bksd, **kind)
    if mask is not None:
        scores_bkrs = jnp.where(mask[:, None], scores_bkrs, MASKED)
    weights_bkrs = jax.nn.softmax(scores_bkrs).astype(dtype)
    out = jnp.einsum("bkrs,bksd->bkrd", weights_bkrs, v_bksd, precision=exactness(dtype))
    out = out.reshape(batch, kv_heads, queries, group, dim).swapaxes(1, 2)
    return out.reshape(batch, queries, heads, dim)


def _cudnn(q_bthd, k_bshd, v_bshd, causal, window, segments_bt, kv_segments_bs):
    mask, local = None, None if window is None else (window - 1, 0)
    if segments_bt is not None:  # one explicit mask, of which cuDNN makes a bias
        mask = _visible(
            q_bthd.shape[1],
            k_bshd.shape[1],
            causal,
            window,
            segments_bt,
            kv_segments_bs,
        )[:, None]
        local = None  # already in the mask; cuDNN does not combine a bias with a window
    return jax.nn.dot_product_attention(
        q_bthd,
        k_bshd,
        v_bshd,
        mask=mask,
        is_causal=causal,
        local_window_size=local,
        implementation="cudnn",
    )


def _splash(
    q_bthd,
    k_bshd,
    v_bshd,
    causal,
    window,
    segments_bt,
    kv_segments_bs,
    interpret: bool = False,
):
    # Imported here: Pallas costs start-up time that only a TPU needs to pay.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    def local(q_bthd, k_bshd, v_bshd, *segments):
        queries, keys, heads = q_bthd.shape[1], k_bshd.shape[1], q_bthd.shape[2]
        if window is not None:
            mask = splash.LocalMask((queries, keys), (window - 1, 0), 0)
        else:
            mask = (splash.CausalMask if causal else splash.FullMask)((queries, keys))
        rows, columns = (next(n for n in (512, 256, 128) if not x % n) for x in (queries, keys))
        kernel = splash.make_splash_mha(
            splash.splash_attention_mask.MultiHeadMask([mask] * heads),
            head_shards=1,
            q_seq_shards=1,
            block_sizes=splash.BlockSizes(
                block_q=rows,
                block_kv=columns,
                block_q_dkv=rows,
                block_kv_dkv=columns,
                block_q_dq=rows,
                block_kv_dq=columns,
            ),
            interpret=interpret,
        )
        heads_first = (x.swapaxes(1, 2) for x in (_scaled(q_bthd), k_bshd, v_bshd))
        ids = splash.SegmentIds(*segments) if segments else None
        return jax.vmap(kernel)(*heads_first, ids).swapaxes(1, 2)

    operands = (q_bthd, k_bshd, v_bshd)
    operands += () if segments_bt is None else (segments_bt, kv_segments_bs)
    if not mesh.automatic():
        return local(*operands)
    # XLA cannot partition a Pallas call by itself.
    spec = P(mesh.automatic(mesh.BATCH), None, mesh.automatic(mesh.HEADS))
    specs = (spec,) * 3 + (P(mesh.automatic(mesh.BATCH)),) * (len(operands) - 3)
    taken = set(mesh.automatic())
    return jax.shard_map(local, in_specs=specs, out_specs=spec, axis_names=taken, check_vma=False)(
        *operands
    )


def _scaled(q_bthd):
    """Returns q / sqrt(d), rounded once."""
    return (q_bthd.astype(jnp.float32) * q_bthd.shape[-1] ** -0.5).astype(q_bthd.dtype)
