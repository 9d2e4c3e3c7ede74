"""Gradient accumulation: a batch in micro-batches, one after the other, in the memory of one.

Sums of gradients, losses and weights add, so the result is exact for token weights however the
tokens are spread over the micro-batches. Model state (batch statistics) of every micro-batch
starts from the same old state and is averaged: momentum is applied once, to averaged moments.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from research.arguments import Count, InputError
from research.gradients import Gradients, widen
from research.sharding import batch_shards, constrain


def make(grad_fn: Callable, micro_batches: Count = 1) -> Callable:
    """Returns a grad_fn that calls `grad_fn` on `micro_batches` equal parts and adds.

    Raises InputError when the batch does not divide.
    """

    def split(leaf: jax.Array) -> jax.Array:
        shards = batch_shards(jax.sharding.get_abstract_mesh())
        if leaf.shape[0] % (micro_batches * shards):
            raise InputError(
                f"a batch of {leaf.shape[0]} does not divide into "
                f"config.gradients.accumulate.micro_batches={micro_batches} for each of {shards} "
                f"devices; use a multiple of {micro_batches * shards}"
            )
        # Strided, not contiguous: every device keeps its own rows in every micro-batch.
        return leaf.reshape(-1, micro_batches, *leaf.shape[1:]).swapaxes(0, 1)

    def accumulated(state: Any, batch: dict, key: jax.Array) -> Gradients:
        parts = jax.tree.map(split, batch)

        def one(grad_state: Any, index: jax.Array) -> Gradients:
            part = jax.tree.map(lambda leaf: constrain(leaf[index], "batch"), parts)
            now = state._replace(grad_state=grad_state)
            sums = grad_fn(now, part, jax.random.fold_in(key, index))
            # Sums in float32, also of the gradients of bfloat16 parameters.
            return sums._replace(grads=jax.tree.map(widen, sums.grads))

        def add(total: Gradients, index: jax.Array) -> tuple[Gradients, None]:
            sums = one(total.grad_state, index)
            new = jax.tree.map(jnp.add, total._replace(grad_state={}), sums._replace(grad_state={}))
            return new._replace(grad_state=sums.grad_state), None

        shapes = jax.eval_shape(one, state.grad_state, 0)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        begin = zeros._replace(grad_state=state.grad_state)
        total, _ = jax.lax.scan(add, begin, jnp.arange(micro_batches))
        mean = jax.tree.map(lambda leaf: leaf / micro_batches, total.model_state)
        return total._replace(model_state=mean)

    return accumulated
