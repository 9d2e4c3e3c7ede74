"""Layers of one kind: stacked on a first axis and scanned, or unrolled, each with its own leaves.

    layers = stack(lambda rngs: Block(..., rngs=rngs), 12, scan=True, rngs=rngs)
    x, cache = run(layers, x, keys, cache, dict(train=True), scan=True)

A scanned model compiles as fast with 80 layers as with 2.
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


def stack(make: Callable[[nnx.Rngs], nnx.Module], count: int, scan: bool, rngs: nnx.Rngs) -> Any:
    """Returns `count` layers, each with random numbers of its own; equal for both kinds."""
    keys = jax.random.split(rngs.params(), count)
    if not scan:
        return nnx.List([make(nnx.Rngs(key)) for key in keys])
    build = nnx.vmap(
        lambda key: make(nnx.Rngs(key)), transform_metadata={nnx.PARTITION_NAME: "layers"}
    )
    return build(keys)


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
    split = lambda module: nnx.split(module, nnx.Param, ...)  # noqa: E731
    graphdef, params, state = split(layers if scan else layers[0])

    def body(x: Array, layer: tuple[Any, ...]) -> tuple[Array, Any]:
        params, state, key, cache = layer
        block = nnx.merge(graphdef, params, state)
        x, cache = block(x, key, cache, **call)
        return x, (split(block)[2], cache)

    if remat != "none":
        body = jax.checkpoint(body, policy=POLICIES[remat], prevent_cse=not scan)
    if scan:
        x, (state, cache) = jax.lax.scan(body, x, (params, state, keys, cache), unroll=unroll)
        nnx.update(layers, state)
        return x, cache
    take = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree)  # noqa: E731
    caches = []
    for i, layer in enumerate(layers):
        x, (state, new) = body(x, (*split(layer)[1:], take(keys, i), take(cache, i)))
        nnx.update(layer, state)
        caches.append(new)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *caches)
