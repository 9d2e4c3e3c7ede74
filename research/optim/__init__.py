"""make(**config) -> optax.GradientTransformation; names not found here are optax's own.

A chain turns a gradient into an update, part by part: clipping and coupled penalties first, then
the direction (adam, muon, ...), what goes with it undiminished (decay), and the learning rate `lr`.

    tx = chain([("clip", clip.make()), ("adam", adam.make()), ("lr", lr.make(1e-3))])
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.kernels.rounding import pack, stochastic_round, unpack

Parts = Sequence[tuple[str, optax.GradientTransformation]]

# Parameters that are no matrix between two hidden layers, whatever their shape.
NOT_HIDDEN = r"(^|/)(embed|positions|types|distances|head|router|\w*bias|scale)$"

# Parts of optax that look at norms or matrices of a leaf (a test holds that no other does).
NORMWISE = (
    "adaptive_grad_clip", "centralize", "clip_by_block_rms", "fromage", "lamb", "lars", "novograd",
    "scale_by_distance_over_gradients", "scale_by_factored_rms", "scale_by_novograd",
    "scale_by_param_block_norm", "scale_by_param_block_rms", "scale_by_sm3",
    "scale_by_trust_ratio", "sm3",
)  # fmt: skip


def chain(parts: Parts, state_dtype: str = "fp32") -> optax.GradientTransformationExtraArgs:
    """An optax.named_chain that also tells the parts behind `lr` the learning rate.

    All parts compute in float32 (or float64). Parameters in bfloat16 are rounded stochastically, so
    that an update smaller than their spacing arrives on average. `state_dtype` "bf16" or "fp8"
    stores every statistic of a parameter's shape so (kernels/rounding.py).
    """
    parts = [(name, optax.with_extra_args_support(tx)) for name, tx in parts]

    def init(params: optax.Params) -> dict[str, Any]:
        params = _wide(params)
        return pack({name: tx.init(params) for name, tx in parts}, params, state_dtype)

    def update(
        updates: optax.Updates, state: dict[str, Any], params: optax.Params, **extra: Any
    ) -> tuple[optax.Updates, dict[str, Any]]:
        key = extra.pop("key", None)
        wide, updates = _wide(params), _wide(updates)
        state = unpack(state, wide, state_dtype)
        new = {}
        for name, tx in parts:
            updates, new[name] = tx.update(updates, state[name], wide, **extra)
            if hasattr(new[name], "learning_rate"):
                extra["learning_rate"] = new[name].learning_rate
        return _rounded(updates, params, key), pack(new, wide, state_dtype, key)

    return optax.GradientTransformationExtraArgs(init, update)


def _wide(values: Any) -> Any:
    narrow = lambda x: jnp.finfo(x.dtype).bits < 32  # noqa: E731
    return jax.tree.map(lambda x: x.astype(jnp.float32) if narrow(x) else x, values)


def _rounded(updates: optax.Updates, params: optax.Params, key: jax.Array | None) -> optax.Updates:
    """Turns the update of a bfloat16 parameter into one that leads to a bfloat16 value exactly."""

    def one(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
        if param.dtype != jnp.bfloat16:
            return update
        wide = param.astype(jnp.float32)
        return stochastic_round(wide + update, param.dtype, tree.key_of(key, path)) - wide

    return tree.map_named(one, updates, params)


def layerwise(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Applies `tx` to each layer, and each expert, of a stacked leaf as to a leaf of its own.

    For every part that looks at norms or matrices: a leaf (layers, d, d) is not one matrix. `tx`
    may not add anything up over leaves, and sees paths and shapes without the layers.
    """
    tx = optax.with_extra_args_support(tx)

    def groups(values: Any) -> dict[str, Any]:
        """The leaves of each number of layers, the others None: one vmap serves a group."""
        named = tree.flatten(values)
        size = {
            path: "x".join(map(str, leaf.shape[: tree.stacked_axes(path)]))
            for path, leaf in named.items()
        }
        pick = lambda group: tree.map_named(  # noqa: E731
            lambda path, leaf: leaf if size[path] == group else None, values
        )
        return {group or "single": pick(group) for group in sorted(set(size.values()))}

    def over(group: str, function: Callable) -> Callable:
        for _ in () if group == "single" else group.split("x"):
            function = jax.vmap(function)
        return function

    def init(params: optax.Params) -> dict[str, Any]:
        return {group: over(group, tx.init)(part) for group, part in groups(params).items()}

    def update(
        updates: optax.Updates, state: dict[str, Any], params: optax.Params, **extra: Any
    ) -> tuple[optax.Updates, dict[str, Any]]:
        params, new, found = groups(params), {}, {}
        for group, part in groups(updates).items():
            call = over(group, lambda u, s, p: tx.update(u, s, p, **extra))
            changed, new[group] = call(part, state[group], params[group])
            found |= tree.flatten(changed)
        return tree.map_named(lambda path, _: found[path], updates), new

    return optax.GradientTransformationExtraArgs(init, update)


def is_hidden(path: str, leaf: jax.Array) -> bool:
    """Tells whether a parameter of one layer is a matrix between hidden layers."""
    return leaf.ndim > 1 and re.search(NOT_HIDDEN, path) is None


def is_matrix(path: str, leaf: jax.Array) -> bool:
    """Tells whether a parameter of one layer is a matrix: a bias (heads, k) is a vector."""
    return leaf.ndim > 1 and re.search(r"(bias|scale)$", path) is None


def as_matrix(path: str, leaf: jax.Array) -> tuple[int, int]:
    """Returns the (inputs, outputs) of a parameter of one layer as a matrix: `q` of shape
    (d, heads, k) is (d, heads k), attention's `out` (heads, k, d) is (heads k, d)."""
    split = tree.input_axes(path, leaf.ndim)
    inputs = 1
    for size in leaf.shape[:split]:
        inputs *= size
    return inputs, leaf.size // inputs
