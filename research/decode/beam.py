"""Beam search with the length penalty of GNMT (arXiv:1609.08144, equation 14), for causal language
models and encoder-decoders.

    tokens_bn, score_b = decode(model, variables, inputs, max_tokens=64, beams=4, end=end)

Hypotheses that ended are kept apart from the live ones, as in T5: one that ended early is never
crowded out by longer ones that are likelier so far.
Shape suffixes: b batch, k beams, c candidates (2 k), n new tokens, v vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.decode import begin

Array = jax.Array


class Progress(NamedTuple):
    """What a step of the search hands to the next."""

    count: Array
    logits_bkv: Array
    live_bk: Array  # log probabilities, the likeliest first
    tokens_bkn: Array
    ended_b: Array  # hypotheses that ended
    score_b: Array  # of the best of them
    best_bn: Array
    cache: Any


def decode(
    model: Any,
    variables: dict,
    inputs: dict[str, Array],
    *,
    max_tokens: int,
    beams: int,
    length_penalty: Array | float = 0.6,
    end: int,
) -> tuple[Array, Array]:
    """Returns the best hypothesis of each row (b, n), `end` after its end, and its score (b,): its
    log probability over ((5 + n) / 6) ** length_penalty, where n counts its tokens and its `end`.

    inputs: those of `begin`, and optionally limits (b,), the new tokens a row may have. A candidate
    ends where `end` is among the `beams` likeliest continuations. A row is done when `beams`
    hypotheses ended, so that one beam is greedy, or when no live one can win any more. Where none
    ended within the limit, the likeliest live one is cut there.
    """
    lengths_b = inputs["lengths"]
    limits_b = jnp.minimum(inputs.get("limits", max_tokens), jnp.full_like(lengths_b, max_tokens))
    rows = len(lengths_b)
    logits_bv, cache, advance = begin(model, variables, inputs, max_tokens)

    def normal(log: Array, count: Array) -> Array:
        return log / ((5 + count) / 6) ** length_penalty

    def done(now: Progress) -> Array:
        # What is added to a live hypothesis is negative, and the largest penalty divides it least.
        bound_b = normal(now.live_bk[:, 0], limits_b)
        return (now.ended_b >= beams) | (now.score_b >= bound_b) | (now.count >= limits_b)

    def step(now: Progress) -> Progress:
        log_bkv = now.live_bk[..., None] + jax.nn.log_softmax(now.logits_bkv)
        vocabulary = log_bkv.shape[-1]
        # Of 2 k candidates at most k end, as each beam has one `end`: k stay alive.
        log_bc, place_bc = jax.lax.top_k(log_bkv.reshape(rows, -1), 2 * beams)
        beam_bc, token_bc = place_bc // vocabulary, place_bc % vocabulary
        tokens_bcn = jnp.take_along_axis(now.tokens_bkn, beam_bc[..., None], axis=1)
        tokens_bcn = tokens_bcn.at[:, :, now.count].set(token_bc)

        is_end_bc = token_bc == end
        ends_bc = is_end_bc & (jnp.arange(2 * beams) < beams) & (log_bc > -jnp.inf)
        score_bc = jnp.where(ends_bc, normal(log_bc, now.count + 1), -jnp.inf)
        first_b = score_bc.argmax(1)
        better_b = score_bc.max(1) > now.score_b
        best_bn = jnp.where(better_b[:, None], _pick(tokens_bcn, first_b), now.best_bn)

        live_bk, kept_bk = jax.lax.top_k(jnp.where(is_end_bc, -jnp.inf, log_bc), beams)
        new = dict(
            live_bk=live_bk,
            tokens_bkn=jnp.take_along_axis(tokens_bcn, kept_bk[..., None], axis=1),
            ended_b=now.ended_b + ends_bc.sum(1),
            score_b=jnp.maximum(now.score_b, score_bc.max(1)),
            best_bn=best_bn,
        )
        # A row that is done stays as it is, whatever the model says of it from here on.
        done_b, old = done(now), now._asdict()
        new = {name: _where(done_b, old[name], value) for name, value in new.items()}
        from_bk = jnp.take_along_axis(beam_bc, kept_bk, axis=1)
        cache = jax.tree.map(lambda leaf: _reorder(leaf, from_bk), now.cache)
        token = jnp.take_along_axis(token_bc, kept_bk, axis=1).reshape(-1)
        logits, cache = advance(token, jnp.repeat(lengths_b + now.count, beams), cache)
        return Progress(now.count + 1, logits.reshape(rows, beams, -1), cache=cache, **new)

    start = Progress(
        count=jnp.zeros((), jnp.int32),
        logits_bkv=jnp.repeat(logits_bv[:, None], beams, axis=1),
        live_bk=jnp.full((rows, beams), -jnp.inf).at[:, 0].set(0),  # all beams are the same yet
        tokens_bkn=jnp.full((rows, beams, max_tokens), end, jnp.int32),
        ended_b=jnp.zeros(rows, jnp.int32),
        score_b=jnp.full(rows, -jnp.inf),
        best_bn=jnp.full((rows, max_tokens), end, jnp.int32),
        cache=jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=1), cache),
    )
    last = jax.lax.while_loop(lambda now: ~done(now).all(), step, start)
    ended_b = last.ended_b > 0
    tokens_bn = _where(ended_b, last.best_bn, last.tokens_bkn[:, 0])
    return tokens_bn, _where(ended_b, last.score_b, normal(last.live_bk[:, 0], limits_b))


def _pick(x_bcn: Array, index_b: Array) -> Array:
    return jnp.take_along_axis(x_bcn, index_b[:, None, None], axis=1)[:, 0]


def _reorder(leaf: Array, from_bk: Array) -> Array:
    """The leaf (layers, b * k, ...) of other beams of the same row: no device needs another's."""
    split = leaf.reshape(leaf.shape[0], *from_bk.shape, *leaf.shape[2:])
    index = from_bk.reshape(1, *from_bk.shape, *(1,) * (leaf.ndim - 2))
    return jnp.take_along_axis(split, index, axis=2).reshape(leaf.shape)


def _where(which_b: Array, yes: Array, no: Array) -> Array:
    return jnp.where(which_b.reshape(-1, *(1,) * (yes.ndim - 1)), yes, no)
