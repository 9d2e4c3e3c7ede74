"""Cached generation: greedy, temperature, top-k and top-p (nucleus, arXiv:1904.09751) sampling.

Shape suffixes: b batch, n new tokens, v vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.decode import begin

Array = jax.Array


class Progress(NamedTuple):
    """What a step of generation hands to the next."""

    count: Array
    logits_bv: Array
    tokens_bn: Array
    done_b: Array
    cache: Any


def decode(
    model: Any,
    variables: dict,
    inputs: dict[str, Array],
    key_b: Array,
    *,
    max_tokens: int,
    end: int,
    temperature: Array | float = 1.0,
    top_k: Array | int = 0,
    top_p: Array | float = 1.0,
) -> Array:
    """Returns new tokens (b, n), `end` after the end of a text.

    inputs: those of `begin`, and optionally limits (b,), the new tokens a row may have. Each row
    has its own key, so its result does not depend on the rows beside it.
    temperature 0 is greedy; top_k 0 and top_p 1 cut nothing. All three may be tracers; as numbers
    top_k and top_p spare a sort of the vocabulary for each token.
    """
    lengths_b, limits_b = inputs["lengths"], inputs.get("limits", max_tokens)
    logits, cache, advance = begin(model, variables, inputs, max_tokens)

    def step(now: Progress) -> Progress:
        now_b = jax.vmap(jax.random.fold_in, (0, None))(key_b, now.count)
        token_b = sample(now.logits_bv, now_b, temperature, top_k, top_p)
        token_b = jnp.where(now.done_b, end, token_b)
        # A row past its limit may be at positions that the model does not have: all it gives from
        # here on is `end`.
        done_b = now.done_b | (token_b == end) | (now.count + 1 >= limits_b)
        tokens_bn = now.tokens_bn.at[:, now.count].set(token_b)
        logits_bv, cache = advance(token_b, lengths_b + now.count, now.cache)
        return Progress(now.count + 1, logits_bv, tokens_bn, done_b, cache)

    start = Progress(
        count=jnp.zeros((), jnp.int32),
        logits_bv=logits,
        tokens_bn=jnp.full((len(lengths_b), max_tokens), end, jnp.int32),
        done_b=jnp.zeros(len(lengths_b), bool),
        cache=cache,
    )
    return jax.lax.while_loop(
        lambda now: (now.count < max_tokens) & ~now.done_b.all(), step, start
    ).tokens_bn


def sample(
    logits_bv: Array,
    key_b: Array,
    temperature: Array | float = 1.0,
    top_k: Array | int = 0,
    top_p: Array | float = 1.0,
) -> Array:
    """Draws one token a row, each with its key. top-p keeps the smallest set of the likeliest
    tokens whose probability reaches top_p (of what top_k left), and always the likeliest one."""
    greedy_b = jnp.argmax(logits_bv, axis=-1)
    scaled = logits_bv / jnp.where(temperature > 0, temperature, 1.0)
    known = isinstance(top_k, int) and isinstance(top_p, int | float)
    if known and top_k <= 0 and top_p >= 1:  # nothing is cut
        sampled_b = jax.vmap(jax.random.categorical)(key_b, scaled)
    else:
        # Sorting a vocabulary costs more than a small model: it is left to what needs all of it.
        if known and 0 < top_k < scaled.shape[-1]:
            ranked, order = jax.lax.top_k(scaled, top_k)
        else:
            order = jnp.argsort(-scaled, axis=-1)
            ranked = jnp.take_along_axis(scaled, order, axis=-1)
        rank = jnp.arange(ranked.shape[-1])
        ranked = jnp.where((rank < top_k) | (jnp.asarray(top_k) <= 0), ranked, -jnp.inf)
        probability = jax.nn.softmax(ranked, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        ranked = jnp.where((before < top_p) | (rank == 0), ranked, -jnp.inf)
        drawn = jax.vmap(jax.random.categorical)(key_b, ranked)
        sampled_b = jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0]
    return jnp.where(temperature > 0, sampled_b, greedy_b).astype(jnp.int32)
