"""Layers stacked on a first axis and scanned, or unrolled, each with leaves of its own.

    layers = stack(lambda rngs, index: Block(..., rngs=rngs), 12, scan=True, rngs=rngs)
    x, cache = run(layers, x, keys, cache, dict(train=True), scan=True)

A scanned model compiles as fast with 80 layers as with 2. Where kinds of layers alternate, with
`period` of them, a stack holds groups: `layers/turn1of2/...` are every second layer's.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
Remat = Literal["none", "full", "dots"]
POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    # The results, not the products themselves, whose sums are wider in int8 and fp8.
    "dots": jax.checkpoint_policies.save_only_these_names("product"),
}


class Group(nnx.Module):
    """Layers of different kinds that follow each other, again and again."""

    def __init__(self, make: Callable, keys: Array) -> None:
        for turn in range(len(keys)):
            setattr(self, f"turn{turn}of{len(keys)}", make(nnx.Rngs(keys[turn]), turn))
        self.period = len(keys)

    def turns(self) -> list[Any]:
        """Returns the layers, in their order."""
        return [getattr(self, f"turn{turn}of{self.period}") for turn in range(self.period)]

    def __call__(self, x: Array, keys: Array | None, cache: Any, **call: Any) -> tuple[Array, Any]:
        caches = []
        for turn, layer in enumerate(self.turns()):
            x, new = layer(x, _at(keys, turn), _at(cache, turn), **call)
            caches.append(new)
        return x, _stacked(caches)


def stack(make: Callable, count: int, scan: bool, rngs: nnx.Rngs, period: int = 1) -> Any:
    """Returns `count` layers make(rngs, index), whose kinds repeat after `period`, each with random
    numbers of its own; these do not depend on `scan`."""
    keys = jax.random.split(rngs.params(), count)
    if not scan:
        return nnx.List([make(nnx.Rngs(key), index) for index, key in enumerate(keys)])
    one = lambda key: make(nnx.Rngs(key), 0)  # noqa: E731
    if period > 1:
        one, keys = lambda keys: Group(make, keys), keys.reshape(-1, period)
    return nnx.vmap(one, transform_metadata={nnx.PARTITION_NAME: "layers"})(keys)


def run(
    layers: Any,
    x: Array,
    keys: Array | None,
    cache: Any,
    call: dict[str, Any],
    *,
    scan: bool,
    unroll: int = 1,
    remat: Remat = "none",
) -> tuple[Array, Any]:
    """Calls every layer as layer(x, key, cache, **call) -> (x, cache), and keeps the state that the
    layers come out with (histories of fp8, loads of experts). `keys` and the leaves of `cache` have
    one entry a layer; either may be None. Returns x and the new caches, stacked."""

    def body(graphdef: Any, x: Array, layer: tuple[Any, ...]) -> tuple[Array, Any]:
        params, state, key, cache = layer
        block = nnx.merge(graphdef, params, state)
        x, cache = block(x, key, cache, **call)
        return x, (_split(block)[2], cache)

    if remat != "none":
        policy = POLICIES[remat]
        body = jax.checkpoint(body, policy=policy, prevent_cse=not scan, static_argnums=0)
    if not scan:
        caches = []
        for i, layer in enumerate(layers):
            graphdef, params, state = _split(layer)
            x, (state, new) = body(graphdef, x, (params, state, _at(keys, i), _at(cache, i)))
            nnx.update(layer, state)
            caches.append(new)
        return x, _stacked(caches)
    grouped = isinstance(layers, Group)
    if grouped:
        grouping = lambda leaf: leaf.reshape(-1, layers.period, *leaf.shape[1:])  # noqa: E731
        keys, cache = jax.tree.map(grouping, (keys, cache))
    graphdef, params, state = _split(layers)
    x, (state, cache) = jax.lax.scan(
        lambda x, layer: body(graphdef, x, layer), x, (params, state, keys, cache), unroll=unroll
    )
    nnx.update(layers, state)
    if grouped:
        cache = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), cache)
    return x, cache


def collect(layers: Any, function: Callable[[Any], Any], *, scan: bool) -> Any:
    """Returns function(layer) of every layer, stacked; it reads the layers only."""
    if not scan:
        return _stacked([function(layer) for layer in layers])
    graphdef, params, state = _split(layers)

    def one(carry: None, layer: tuple[Any, Any]) -> tuple[None, Any]:
        block = nnx.merge(graphdef, *layer)
        if not isinstance(block, Group):
            return None, function(block)
        return None, _stacked([function(layer) for layer in block.turns()])

    found = jax.lax.scan(one, None, (params, state))[1]
    if isinstance(layers, Group):
        found = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)
    return found


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    return nnx.split(module, nnx.Param, ...)


def _at(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
