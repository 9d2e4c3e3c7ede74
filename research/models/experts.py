"""Mixture of experts: each token is served by a few of many feed-forward networks.

- capacity None: dropless, by products of ragged groups (MegaBlocks, arXiv:2211.15841), with the
  renormalised top-k weights of Mixtral (arXiv:2401.04088).
- capacity c: an expert takes at most c x top_k x t / e tokens of a text of t, in their order; the
  others pass by (Switch, arXiv:2101.03961). All shapes are static, and so are all-to-alls.
- room r: the same with at most r tokens, however long the text is, as transformers counts.

With a cache, that is while generating, nothing is dropped: a text may not depend on its neighbours.
What the router did with a batch stays in the model's state as a Routing: tasks turn it into the
balance and z losses and into metrics (tasks/__init__.py).
Shape suffixes: as in layers.py, and e experts, c capacity, n (token, choice) pairs.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from research.arguments import InputError
from research.kernels import mesh
from research.kernels.matmul import compute_dtype, exactness, wide, wide_einsum
from research.models.layers import GATED, MLPKind, activate, param, project
from research.sharding import constrain

Array = jax.Array


class Routing(nnx.Variable):
    """What a router did with the tokens of a batch, padding left out: a part of the state."""


class Weights(nnx.Module):
    """The matrices of all experts; `project` multiplies with them."""

    def __init__(
        self,
        count: int,
        width: int,
        hidden: int,
        kind: MLPKind,
        std: float,
        out_std: float,
        precision: str,
        rngs: nnx.Rngs,
    ) -> None:
        self.precision, inner = precision, ("expert", "embed", "mlp")
        self.up = param(rngs, (count, width, hidden), inner, std)
        if kind in GATED:
            self.gate = param(rngs, (count, width, hidden), inner, std)
        self.down = param(rngs, (count, hidden, width), ("expert", "mlp", "embed"), out_std)
        self.up_bias = self.gate_bias = self.down_bias = None


class Experts(nnx.Module):
    """A feed-forward layer of `count` experts."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        count: int,
        top_k: int,
        capacity: float | None,
        kind: MLPKind,
        std: float,
        out_std: float,
        precision: str,
        rngs: nnx.Rngs,
        room: int | None = None,
    ) -> None:
        if precision in ("int8", "fp8"):
            raise InputError(
                f"config.precision={precision}: products of experts have no such form; use bf16"
            )
        self.count, self.top_k, self.capacity, self.kind = count, top_k, capacity, kind
        self.precision, self.room = precision, room
        self.router = param(rngs, (width, count), ("embed", "router"), std)
        self.experts = Weights(count, width, hidden, kind, std, out_std, precision, rngs)
        self.load = Routing(jnp.zeros(count))  # tokens of an expert / tokens: sums to top_k
        self.importance = Routing(jnp.zeros(count))  # mean probability: sums to 1
        self.z = Routing(jnp.zeros(()))  # mean square of log sum exp of the router's logits
        self.dropped = Routing(jnp.zeros(()))  # share of the choices that found no room

    def __call__(
        self, x_btd: Array, segments_bt: Array | None, *, train: bool, cached: bool = False
    ) -> Array:
        """Returns (b, t, d); tokens of segment 0, the padding, are not counted and take no room."""
        # In float32, as Switch asks for: rounding would choose other experts.
        logits_bte = wide_einsum("btd,de->bte", wide(x_btd), wide(self.router[...]))
        probability_bte = jax.nn.softmax(logits_bte)
        gates_btk, chosen_btk = jax.lax.top_k(probability_bte, self.top_k)
        if self.top_k > 1:
            gates_btk /= gates_btk.sum(-1, keepdims=True)
        real_bt = jnp.ones(x_btd.shape[:2]) if segments_bt is None else wide(segments_bt > 0)
        taken_btke = jax.nn.one_hot(chosen_btk, self.count) * real_bt[..., None, None]
        tokens = jnp.maximum(real_bt.sum(), 1)
        self.load[...] = taken_btke.sum((0, 1, 2)) / tokens
        self.importance[...] = (probability_bte * real_bt[..., None]).sum((0, 1)) / tokens
        self.z[...] = ((jax.nn.logsumexp(logits_bte, -1) ** 2) * real_bt).sum() / tokens
        if cached or (self.capacity is None and self.room is None):
            return self._dropless(x_btd, gates_btk, chosen_btk)
        y_btd, kept = self._within_capacity(x_btd, gates_btk, taken_btke, train)
        self.dropped[...] = 1 - kept / (tokens * self.top_k)
        return y_btd

    def _within_capacity(
        self, x_btd: Array, gates_btk: Array, taken_btke: Array, train: bool
    ) -> tuple[Array, Array]:
        """Gathers the tokens of each expert and text into (b, e, c, d), and spreads the results."""
        batch, length, width = x_btd.shape
        pairs = length * self.top_k
        room = self.room or max(1, int(self.capacity * pairs / self.count))
        room = min(length, room)
        # Earlier tokens come first, so that no token's place depends on those after it.
        taken_bne = taken_btke.reshape(batch, pairs, self.count)
        place_bne = jnp.where(taken_bne > 0, jnp.cumsum(taken_bne, 1) - 1, room).astype(jnp.int32)
        place_bn = place_bne.min(-1)  # of the one expert it chose; `room` and beyond: dropped
        expert_bn = taken_bne.argmax(-1)
        kept_bn = place_bn < room
        slot_bn = jnp.where(kept_bn, expert_bn * room + place_bn, self.count * room)
        token_n = jnp.repeat(jnp.arange(length), self.top_k)
        row = lambda slots: jnp.full(self.count * room + 1, length).at[slots].set(token_n)  # noqa: E731
        source_bs = jax.vmap(row)(slot_bn)[:, :-1]  # which token fills a slot; `length` is a zero
        padded = jnp.pad(x_btd, ((0, 0), (0, 1), (0, 0)))
        x_becd = jnp.take_along_axis(padded, source_bs[..., None], 1)
        x_becd = x_becd.reshape(batch, self.count, room, width)
        # Split by expert from here on, by text around it: the compiler's all-to-all.
        x_becd = constrain(x_becd, "groups", "expert", None, None)
        h_becf = project(self.experts, "up", "becd,edf->becf", x_becd, train)
        if self.kind in GATED:
            gate = project(self.experts, "gate", "becd,edf->becf", x_becd, train)
            h_becf = h_becf * activate(self.kind, gate)
        else:
            h_becf = activate(self.kind, h_becf)
        y_becd = project(self.experts, "down", "becf,efd->becd", h_becf, train)
        y_bsd = constrain(y_becd.reshape(batch, -1, width), "batch", None, None)
        y_bsd = jnp.pad(y_bsd, ((0, 0), (0, 1), (0, 0)))
        y_bnd = jnp.take_along_axis(y_bsd, slot_bn[..., None], 1)
        y_btkd = y_bnd.reshape(batch, length, self.top_k, width)
        y_btd = (wide(y_btkd) * gates_btk[..., None]).sum(2).astype(x_btd.dtype)
        return y_btd, kept_bn.sum()

    def _dropless(self, x_btd: Array, gates_btk: Array, chosen_btk: Array) -> Array:
        """Sorts the tokens by expert and multiplies group by group, on each device for its experts.

        Over an expert axis the tokens are gathered and the results summed and scattered: it costs
        more traffic than an all-to-all, whose sizes nobody knows without dropping."""
        dtype = compute_dtype(self.precision)
        gate = self.experts.gate[...].astype(dtype) if self.kind in GATED else None
        up, down = self.experts.up[...].astype(dtype), self.experts.down[...].astype(dtype)
        local = partial(_grouped, kind=self.kind)
        axes = mesh.free()
        if not axes or jax.sharding.get_abstract_mesh().size == 1:
            return local(x_btd, gates_btk, chosen_btk, up, gate, down)
        batch, tensor = mesh.free(mesh.BATCH), mesh.free(mesh.HEADS)
        expert = "expert" if "expert" in axes else None
        inner = P(expert, None, tensor)
        sequence = mesh.free(mesh.SEQUENCE)
        tokens = P(batch, sequence)
        divided = jax.shard_map(
            partial(local, expert=expert, tensor=tensor),
            in_specs=(tokens, tokens, tokens, inner, inner, P(expert, tensor)),
            out_specs=tokens,
            axis_names=set(axes),
            check_vma=False,
        )
        # A batch that does not divide (a few prompts) is padded: shard_map takes no other.
        rows, missing = len(x_btd), -len(x_btd) % mesh.shards()[0]
        pad = lambda x: jnp.pad(x, ((0, missing), (0, 0), (0, 0)))  # noqa: E731
        return divided(pad(x_btd), pad(gates_btk), pad(chosen_btk), up, gate, down)[:rows]


def _grouped(
    x_btd: Array,
    gates_btk: Array,
    chosen_btk: Array,
    up_edf: Array,
    gate_edf: Array | None,
    down_efd: Array,
    *,
    kind: MLPKind,
    expert: str | None = None,
    tensor: tuple[str, ...] = (),
) -> Array:
    """The experts of one device for the tokens of its group, under shard_map or alone."""
    (*_, width), top_k, count = x_btd.shape, gates_btk.shape[-1], len(up_edf)
    x_td, gates_n, chosen_n = (
        x_btd.reshape(-1, width),
        gates_btk.reshape(-1),
        chosen_btk.reshape(-1),
    )
    if expert is not None:
        every = partial(jax.lax.all_gather, axis_name=expert, tiled=True)
        x_td, gates_n, chosen_n = every(x_td), every(gates_n), every(chosen_n)
        # Those of other devices come last and belong to no group.
        chosen_n = chosen_n - jax.lax.axis_index(expert) * count
        chosen_n = jnp.where((chosen_n >= 0) & (chosen_n < count), chosen_n, count)
    order_n = jnp.argsort(chosen_n, stable=True)
    sizes_e = jnp.bincount(chosen_n, length=count + 1)[:count].astype(jnp.int32)
    dot = partial(jax.lax.ragged_dot, group_sizes=sizes_e, precision=exactness(up_edf.dtype))
    own_n1 = (chosen_n < count)[order_n, None]
    x_nd = jnp.where(own_n1, x_td.astype(up_edf.dtype)[order_n // top_k], 0)
    h_nf = dot(x_nd, up_edf)
    if gate_edf is not None:
        h_nf = h_nf * activate(kind, dot(x_nd, gate_edf))
    else:
        h_nf = activate(kind, h_nf)
    y_nd = jnp.where(own_n1, dot(h_nf, down_efd), 0)
    y_nd = wide(y_nd) * gates_n[order_n, None]
    # Back in the order of the tokens: a gather, whose sum has one order on every device.
    y_td = y_nd[jnp.argsort(order_n)].reshape(-1, top_k, width).sum(1)
    if tensor:
        y_td = jax.lax.psum(y_td, tensor)
    if expert is not None:
        y_td = jax.lax.psum_scatter(y_td, expert, tiled=True)
    return y_td.reshape(x_btd.shape).astype(x_btd.dtype)
