"""Beam search: exact where beams suffice, and equal to a plain one that keeps no cache."""

import functools
import itertools

import jax
import numpy as np
import pytest

from research.decode import beam, sample
from research.models import gpt, t5

END = 3


@functools.cache
def small(name, vocab_size):
    """A model with weights large enough for its choices to differ."""
    sizes = dict(vocab_size=vocab_size, num_layers=2, num_heads=2, width=16, tie_embeddings=False)
    if name == "gpt":
        model = gpt.make(context=24, **sizes)
    else:
        model = t5.make(head_dim=8, mlp_width=32, **sizes)
    return model, jax.tree.map(lambda x: x * 4, jax.jit(model.init)(jax.random.key(1)))


def prompts_of(name, vocab_size, rows=3):
    """Inputs of a batch with texts of several lengths."""
    random = np.random.default_rng(0)
    lengths = np.array([5, 1, 3, 2, 4, 5][:rows], np.int32)
    texts = random.integers(0, vocab_size, (rows, 6)).astype(np.int32)
    if name == "gpt":
        return {"tokens": texts, "lengths": lengths}
    segments = (np.arange(6) < lengths[:, None]).astype(np.int32)
    start = {"tokens": np.full((rows, 1), END, np.int32), "lengths": np.ones(rows, np.int32)}
    return start | {"inputs": texts, "input_segments": segments}


def followers(name, model, variables, inputs):
    """Returns for each row a function of new tokens: the log probabilities of what follows them, of
    the whole text without a cache."""

    @jax.jit
    def whole(tokens, *source):
        call = (*source[:1], tokens, *source[1:])
        return jax.nn.log_softmax(model.apply(variables, *call)[0])

    def of(row):
        prompt = inputs["tokens"][row, : inputs["lengths"][row]]
        names = () if name == "gpt" else ("inputs", "input_segments")
        source = [inputs[name][row : row + 1] for name in names]
        known = {}

        def follow(new):
            if new not in known:
                text = [*prompt, *new]
                padded = np.array([text + [0] * (24 - len(text))], np.int32)  # causal: unseen
                known[new] = np.asarray(whole(padded, *source))[0, len(text) - 1]
            return known[new]

        return follow

    return [of(row) for row in range(len(inputs["tokens"]))]


def penalty(count, alpha):
    return ((5 + count) / 6) ** alpha


def all_sequences(follow, vocab_size, limit, alpha):
    """The best of all that end within the limit."""
    best = (-np.inf, ())
    others = [token for token in range(vocab_size) if token != END]
    for count in range(limit):
        for begun in itertools.product(others, repeat=count):
            text = (*begun, END)
            log = sum(float(follow(text[:i])[token]) for i, token in enumerate(text))
            best = max(best, (log / penalty(count + 1, alpha), text))
    return best


def plain(follow, vocab_size, limit, alpha, beams):
    """Beam search, a list of texts at a time."""
    live, ended = [(0.0, ())], []
    for count in range(1, limit + 1):
        options = [
            (log + float(follow(text)[token]), (*text, token))
            for log, text in live
            for token in range(vocab_size)
        ]
        options = sorted(options, reverse=True)[: 2 * beams]
        live = [(log, text) for log, text in options if text[-1] != END][:beams]
        ended += [(x / penalty(count, alpha), t) for x, t in options[:beams] if t[-1] == END]
        won = ended and max(ended)[0] >= live[0][0] / penalty(limit, alpha)
        if won or len(ended) >= beams:
            break
    if ended:
        return max(ended)
    return live[0][0] / penalty(limit, alpha), live[0][1]


def decoder(model, variables, **options):
    """Returns a function of inputs and length penalty: each row as far as its end, and scores."""

    @jax.jit
    def call(inputs, alpha):
        return beam.decode(model, variables, inputs, end=END, length_penalty=alpha, **options)

    def decoded(inputs, alpha):
        tokens, scores = map(np.asarray, call(inputs, alpha))
        return [ended(row) for row in tokens], scores

    return decoded


def ended(row):
    """The tokens of a row as far as its first end, behind which there is nothing else."""
    text = [*itertools.takewhile(lambda token: token != END, row.tolist())]
    assert (row[len(text) :] == END).all()
    return tuple(text)


@pytest.mark.parametrize("name", ["gpt", "t5"])
def test_with_enough_beams_the_best_of_all_sequences_is_found(name):
    model, variables = small(name, 4)
    inputs = prompts_of(name, 4)
    # 9 live texts of two tokens, each with four continuations: all of them are candidates.
    decoded = decoder(model, variables, max_tokens=3, beams=36)
    follow, found = followers(name, model, variables, inputs), set()
    for alpha in (0.0, 0.6, 3.0):
        for row, (text, score) in enumerate(zip(*decoded(inputs, alpha), strict=True)):
            best, right = all_sequences(follow[row], 4, 3, alpha)
            assert (*text, END) == right
            np.testing.assert_allclose(score, best, rtol=1e-5)
            found.add((row, text))
    assert len(found) > 3  # the penalty decides


@pytest.mark.parametrize("name", ["gpt", "t5"])
@pytest.mark.parametrize("beams", [1, 4])
def test_it_equals_a_plain_search_that_reads_the_whole_text_for_each_token(name, beams):
    model, variables = small(name, 12)
    limits = np.array([10, 10, 6, 10, 3, 1], np.int32)
    inputs = prompts_of(name, 12, rows=6) | {"limits": limits}
    decoded = decoder(model, variables, max_tokens=10, beams=beams)
    follow, cut = followers(name, model, variables, inputs), set()
    for alpha in (0.0, 1.0, 3.0):
        for row, (text, score) in enumerate(zip(*decoded(inputs, alpha), strict=True)):
            best, right = plain(follow[row], 12, int(limits[row]), alpha, beams)
            assert text == ended(np.array(right))
            np.testing.assert_allclose(score, best, rtol=1e-5)
            cut.add(right[-1] != END)
    assert cut == {True, False}


@pytest.mark.parametrize("name", ["gpt", "t5"])
def test_one_beam_is_greedy(name):
    model, variables = small(name, 12)
    inputs = prompts_of(name, 12, rows=6)
    keys = jax.random.split(jax.random.key(0), 6)
    options = dict(max_tokens=12, end=END)
    long = dict(beams=1, length_penalty=9.0)  # a longer text would win, if it were looked for

    @jax.jit
    def both(inputs):
        greedy = sample.decode(model, variables, inputs, keys, temperature=0.0, **options)
        return greedy, beam.decode(model, variables, inputs, **long, **options)[0]

    greedy, tokens = map(np.asarray, both(inputs))
    assert (greedy == END).any() and len(set(map(tuple, greedy))) > 3
    np.testing.assert_array_equal(tokens, greedy)


def test_a_row_does_not_depend_on_the_rows_beside_it():
    model, variables = small("gpt", 12)
    inputs = prompts_of("gpt", 12, rows=6)
    decoded = decoder(model, variables, max_tokens=10, beams=3)
    together, _ = decoded(inputs, 1.0)
    for row in (0, 5):
        one = {key: value[row : row + 1] for key, value in inputs.items()}
        assert decoded(one, 1.0)[0] == together[row : row + 1]
