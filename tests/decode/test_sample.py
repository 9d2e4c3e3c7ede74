"""Sampling: each cut keeps what it says, and generation equals decoding step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.decode.sample import decode, sample
from research.models import gpt


def frequencies(logits, count=4000, **options):
    rows = jnp.broadcast_to(jnp.asarray(logits), (count, len(logits)))
    keys = jax.random.split(jax.random.key(0), count)
    drawn = np.asarray(jax.jit(lambda rows: sample(rows, keys, **options))(rows))
    return np.bincount(drawn, minlength=len(logits)) / count


LOGITS = np.log([0.5, 0.25, 0.15, 0.1])


def test_sampling_follows_the_probabilities():
    np.testing.assert_allclose(frequencies(LOGITS), [0.5, 0.25, 0.15, 0.1], atol=0.03)


def test_temperature_sharpens_and_zero_is_greedy():
    sharp = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    np.testing.assert_allclose(frequencies(LOGITS, temperature=0.5), sharp / sharp.sum(), atol=0.03)
    np.testing.assert_array_equal(frequencies(LOGITS, temperature=0.0), [1, 0, 0, 0])


def test_top_k_keeps_the_k_likeliest():
    np.testing.assert_allclose(frequencies(LOGITS, top_k=2), [2 / 3, 1 / 3, 0, 0], atol=0.03)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    np.testing.assert_allclose(frequencies(LOGITS, top_p=0.7), [2 / 3, 1 / 3, 0, 0], atol=0.03)
    np.testing.assert_array_equal(frequencies(LOGITS, top_p=0.01), [1, 0, 0, 0])
    all_kept = frequencies(LOGITS, top_p=1.0)
    assert (all_kept > 0).all()


def test_top_p_applies_to_what_top_k_left():
    np.testing.assert_array_equal(frequencies(LOGITS, top_k=2, top_p=0.6), [1, 0, 0, 0])


@pytest.mark.parametrize(
    "options", [dict(), dict(top_k=2), dict(top_p=0.7), dict(top_k=3, top_p=0.7)]
)
def test_cuts_that_are_tracers_keep_what_numbers_keep(options):
    rows = jnp.broadcast_to(jnp.asarray(LOGITS), (4000, 4))
    keys = jax.random.split(jax.random.key(1), 4000)
    draw = jax.jit(lambda rows, options: sample(rows, keys, **options))
    traced = np.bincount(np.asarray(draw(rows, dict(top_k=0, top_p=1.0) | options)), minlength=4)
    np.testing.assert_allclose(traced / 4000, frequencies(LOGITS, **options), atol=0.03)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_greedy_generation_equals_the_whole_text_run_again_for_each_token(positions):
    model = gpt.make(
        vocab_size=40, context=24, num_layers=2, num_heads=2, width=16, positions=positions
    )
    variables = jax.tree.map(lambda x: x * 5, model.init(jax.random.key(0)))
    prompts = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
    padded = np.full((3, 8), 7, np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    inputs = {"tokens": padded, "lengths": np.array([5, 1, 3], np.int32)}
    end, keys = 39, jax.random.split(jax.random.key(0), 3)
    new = jax.jit(
        lambda inputs: decode(
            model, variables, inputs, keys, max_tokens=10, end=end, temperature=0.0
        )
    )(inputs)
    whole = jax.jit(lambda tokens: model.apply(variables, tokens)[0])  # causal: padding is unseen
    for prompt, row in zip(prompts, np.asarray(new), strict=True):
        text = list(prompt)
        for token in row:
            logits = whole(jnp.array([text + [0] * (24 - len(text))]))
            best = int(jnp.argmax(logits[0, len(text) - 1]))
            assert token == best
            text.append(best)
            if best == end:
                break


def test_a_sampled_row_does_not_depend_on_the_rows_beside_it_and_stops_at_its_limit():
    model = gpt.make(vocab_size=40, context=12, num_layers=1, num_heads=2, width=16)
    variables = jax.tree.map(lambda x: x * 5, model.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), 3)
    tokens = np.arange(18, dtype=np.int32).reshape(3, 6)
    lengths = np.array([6, 1, 3], np.int32)
    inputs = {"tokens": tokens, "lengths": lengths, "limits": 12 - lengths}
    run = jax.jit(
        lambda inputs, keys: decode(model, variables, inputs, keys, max_tokens=11, end=39)
    )
    together = np.asarray(run(inputs, keys))
    assert (together[0, 6:] == 39).all() and (together[2, 9:] == 39).all()
    assert (together[1] != 39).sum() > 6
    for row in range(3):
        one = slice(row, row + 1)
        alone = run(jax.tree.map(lambda x: x[one], inputs), keys[one])  # noqa: B023
        np.testing.assert_array_equal(alone[0], together[row])


def test_after_the_end_comes_only_the_end():
    model = gpt.make(vocab_size=4, context=64, num_layers=1, num_heads=1, width=8)
    variables = model.init(jax.random.key(0))
    inputs = {"tokens": np.zeros((16, 1), np.int32), "lengths": np.ones(16, np.int32)}
    keys = jax.random.split(jax.random.key(1), 16)
    new = np.asarray(decode(model, variables, inputs, keys, max_tokens=63, end=2, temperature=1.0))
    for row in new:
        ends = np.flatnonzero(row == 2)
        assert len(ends) and (row[ends[0] :] == 2).all()
