"""AdEMAMix (arXiv:2409.03137): Adam with a second momentum, of ten thousand updates and more."""

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from research.arguments import NonNegative, Range, Rate, Size

Memory = Annotated[float, Range(0, 1, above=True, below=True)]


def make(
    b1: Memory = 0.9,
    b2: Rate = 0.999,
    b3: Memory = 0.9999,
    alpha: NonNegative = 5.0,
    eps: NonNegative = 1e-8,
    warmup: Size = 0,
) -> optax.GradientTransformation:
    """Adds `alpha` x the slow momentum (decay `b3`) to Adam's.

    Over the first `warmup` updates (the paper: all of them) alpha rises from 0, and b3 from b1 such
    that the half-life of the momentum grows linearly.
    """

    def rising(count: jax.Array) -> jax.Array:
        return jnp.minimum(1.0, (count + 1.0) / jnp.maximum(warmup, 1))

    def slow(count: jax.Array) -> jax.Array:
        done, start, end = rising(count), jnp.log(b1), jnp.log(b3)
        # Not e^(ln b3) in the end: 1 - b3 would be off by a thousandth in float32.
        return jnp.where(done < 1, jnp.exp(start * end / ((1 - done) * end + done * start)), b3)

    def share(count: jax.Array) -> jax.Array:
        return alpha * rising(count)

    return optax.contrib.scale_by_ademamix(b1=b1, b2=b2, b3=slow, alpha=share, eps=eps)
