"""The transducer's loss against every path written out, published values, and float64."""

from functools import partial
from math import comb, log

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.arguments import InputError
from research.kernels.transducer import lattice_loss, log_probs, transducer_loss

# torchaudio's small test, as read in test/torchaudio_unittest/rnnt/utils.py.
SMALL = np.array(
    [[[.1, .6, .1, .1, .1], [.1, .1, .6, .1, .1], [.1, .1, .2, .8, .1]],
     [[.1, .6, .1, .1, .1], [.1, .1, .2, .1, .1], [.7, .1, .2, .1, .1]]]
)  # fmt: skip
# warp-transducer's, pytorch_binding/test/test.py.
PAIR = np.array(
    """0.065357 0.787530 0.081592 0.529716 0.750675 0.754135 0.609764 0.868140 0.622532 0.668522
    0.858039 0.164539 0.989780 0.944298 0.603168 0.946783 0.666203 0.286882 0.094184 0.366674
    0.736168 0.166680 0.714154 0.399400 0.535982 0.291821 0.612642 0.324241 0.800764 0.524106
    0.779195 0.183314 0.113745 0.240222 0.339470 0.134160 0.505562 0.051597 0.640290 0.430733
    0.829473 0.177467 0.320700 0.042883 0.302803 0.675178 0.569537 0.558474 0.083132 0.060165
    0.107958 0.748615 0.943918 0.486356 0.418199 0.652408 0.024243 0.134582 0.366342 0.295830
    0.923670 0.689929 0.741898 0.250005 0.603430 0.987289 0.592606 0.884672 0.543450 0.660770
    0.377128 0.358021""".split(),
    float,
).reshape(2, 4, 3, 3)
TOKENS = [3, 1, 5]
JUMPS = (0, 1, 2)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def every_path(logits, tokens, blank, jumps=(), sigma=0.0):
    """-log of the summed chances of all paths of one example, one after the other, and how many."""
    vocabulary = logits.shape[-1] - len(jumps)
    arcs = log_softmax(logits[..., :vocabulary]) - (sigma if jumps else 0.0)
    lasts = log_softmax(logits[..., vocabulary:]) if jumps else None
    frames, found = len(logits), []

    def go(t, u, total):
        for i, jump in enumerate(jumps):
            if jump and (t + jump < frames or (t + jump == frames and u == len(tokens))):
                step(t + jump, u, total + arcs[t, u, blank] + lasts[t, u, i])
            if u < len(tokens) and t + jump < frames:
                step(t + jump, u + 1, total + arcs[t, u, tokens[u]] + lasts[t, u, i])
        if not jumps:
            if t + 1 < frames or u == len(tokens):
                step(t + 1, u, total + arcs[t, u, blank])
            if u < len(tokens):
                step(t, u + 1, total + arcs[t, u, tokens[u]])

    def step(t, u, total):
        if t == frames:
            found.append(total)
        else:
            go(t, u, total)

    go(0, 0, 0.0)
    return -np.logaddexp.reduce(found), len(found)


def loss_and_gradient(logits, tokens, frames=None, counts=None, **options):
    """Of a batch of equal lengths, unless told otherwise."""
    batch, t, u1, _ = logits.shape
    tokens = np.reshape(np.array(tokens, np.int32), (batch, u1 - 1))
    frames = np.full(batch, t) if frames is None else np.array(frames)
    counts = np.full(batch, u1 - 1) if counts is None else np.array(counts)

    def total(x):
        loss_b = transducer_loss(x, tokens, frames, counts, **options)
        return loss_b.sum(), loss_b

    (_, loss_b), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.asarray(logits))
    return np.asarray(loss_b), np.asarray(gradient)


def example(seed=0, frames=4, tokens=3, vocabulary=6):
    return np.random.RandomState(seed).randn(frames, tokens + 1, vocabulary)


@pytest.mark.parametrize("blank, published", [(0, 4.495666773770733), (4, 5.095666773770732)])
def test_torchaudios_values_are_met_with_the_first_and_the_last_as_blank(blank, published):
    loss, gradient = loss_and_gradient(SMALL[None], [1, 2], blank=blank)
    np.testing.assert_allclose(loss, published, rtol=1e-14)
    np.testing.assert_allclose(loss, every_path(SMALL, [1, 2], blank)[0], rtol=1e-14)
    ends = {
        0: ([-.131166855091, -.399926795353, .177031216815, .177031216815, .177031216815],
            [-.692588200183, .168711172812, .186454681746, .168711172812, .168711172812]),
        4: ([.177031216815, -.399926795353, .177031216815, .177031216815, -.131166855091],
            [.307411799817, .168711172812, .186454681746, .168711172812, -.831288827188]),
    }  # fmt: skip
    for node, wanted in zip((gradient[0, 0, 0], gradient[0, 1, 2]), ends[blank], strict=True):
        np.testing.assert_allclose(node, wanted, atol=1e-11)


def test_warp_transducers_values_are_met():
    loss, gradient = loss_and_gradient(PAIR, [[1, 2], [1, 1]], blank=0)
    np.testing.assert_allclose(loss, [4.280653034405768, 3.938436926995651], rtol=1e-14)
    corners = gradient[[0, 0, 1, 1], [0, -1, 0, -1], [0, -1, 0, -1]]
    wanted = [[-.186844, -.062555, .249399], [-.667078, .367659, .299419],
              [-.356344, -.055347, .411691], [-.598687, .302203, .296484]]  # fmt: skip
    np.testing.assert_allclose(corners, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "frames, tokens, blank, jumps",
    [(4, 3, 2, ()), (4, 0, 0, ()), (1, 3, 5, ()), (1, 0, 0, ()), (2, 5, 0, ()),
     (6, 2, 5, (0, 1, 2)), (5, 2, 0, (1, 3)), (2, 3, 2, (0, 1, 2, 3, 4)), (1, 0, 0, (0, 1))],
)  # fmt: skip
def test_the_loss_is_that_of_every_path_and_its_gradient_the_slope(frames, tokens, blank, jumps):
    logits = example(0, frames, tokens, 6 + len(jumps))
    words = [3, 1, 4, 1, 3][:tokens]
    wanted, _ = every_path(logits, words, blank, jumps)
    loss, gradient = loss_and_gradient(logits[None], words, blank=blank, jumps=jumps)
    np.testing.assert_allclose(loss, wanted, rtol=1e-12)
    rng, step = np.random.default_rng(1), 1e-5
    for _ in range(3):
        way = rng.normal(size=logits.shape)
        high, low = (every_path(logits + s * way, words, blank, jumps)[0] for s in (step, -step))
        slope = (high - low) / (2 * step)
        np.testing.assert_allclose((gradient[0] * way).sum(), slope, rtol=1e-7, atol=1e-8)


def test_the_values_of_the_reference_case_of_tdt_are_met():
    random = np.random.RandomState(1)
    logits = np.concatenate([random.randn(5, 4, 6), random.randn(5, 4, 3)], -1)
    run = partial(loss_and_gradient, logits[None], [3, 1, 4], blank=0, jumps=JUMPS)
    assert every_path(logits, [3, 1, 4], 0, JUMPS)[1] == 456
    # transformers' tdt_loss gives 8.920515060 and 9.152421952 in float32.
    np.testing.assert_allclose(run()[0], 8.920513913852638, rtol=1e-14)
    np.testing.assert_allclose(run(sigma=0.05)[0], 9.152421373241001, rtol=1e-14)


def test_uniform_logits_give_the_number_of_paths():
    for frames, tokens, vocabulary in ((10, 2, 4), (3, 7, 5), (30, 20, 11)):
        logits = np.full((1, frames, tokens + 1, vocabulary), 0.1)
        loss, _ = loss_and_gradient(logits, [1] * tokens, blank=0)
        wanted = (frames + tokens) * log(vocabulary) - log(comb(frames - 1 + tokens, tokens))
        np.testing.assert_allclose(loss, wanted, rtol=1e-13)


@pytest.mark.parametrize("jumps", [(), JUMPS])
def test_padding_changes_nothing_and_has_no_gradient(jumps):
    logits = example(vocabulary=6 + len(jumps))
    options = dict(blank=0, jumps=jumps)
    loss, gradient = loss_and_gradient(logits[None], TOKENS, **options)
    wide = np.full((3, 9, 6, 6 + len(jumps)), 7.0)
    wide[1, :4, :4] = logits
    tokens = [[2] * 5, [*TOKENS, 4, 4], [1] * 5]
    found, more = loss_and_gradient(wide, tokens, [9, 4, 0], [5, 3, 2], **options)
    np.testing.assert_allclose(found[1], loss[0], rtol=1e-14)
    np.testing.assert_allclose(more[1, :4, :4], gradient[0], atol=1e-15)
    assert found[2] == 0 and not more[2].any()  # no frames: an example of padding
    more = more.copy()
    more[1, :4, :4] = 0
    assert not more[1].any()


def test_the_gradient_of_each_node_sums_to_zero_and_a_constant_changes_nothing():
    logits = example()
    loss, gradient = loss_and_gradient(logits[None], TOKENS, blank=0)
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-15)
    moved = logits + np.random.default_rng(0).normal(size=(4, 4, 1)) * 100
    found, same = loss_and_gradient(moved[None], TOKENS, blank=0)
    np.testing.assert_allclose(found, loss, rtol=1e-13)
    np.testing.assert_allclose(same, gradient, atol=1e-13)


def test_the_names_of_the_tokens_do_not_matter():
    logits, order = example(), np.array([4, 2, 0, 5, 1, 3])
    loss, gradient = loss_and_gradient(logits[None], TOKENS, blank=0)
    renamed = np.empty_like(logits)
    renamed[..., order] = logits
    found, same = loss_and_gradient(renamed[None], order[TOKENS], blank=int(order[0]))
    np.testing.assert_allclose(found, loss, rtol=1e-14)
    np.testing.assert_allclose(same[..., order], gradient, atol=1e-15)


def test_the_chances_of_all_arcs_into_a_diagonal_sum_to_one():
    arcs = log_probs(jnp.asarray(example()[None]), np.array([TOKENS]), blank=0)
    total = lambda arcs: lattice_loss(*arcs, np.array([4]), np.array([3])).sum()  # noqa: E731
    blank, token = (-np.asarray(x[0, 0]) for x in jax.jit(jax.grad(total))(arcs))
    for n in range(7):  # each path leaves each diagonal once
        taken = sum(blank[t, n - t] + token[t, n - t] for t in range(4) if 0 <= n - t <= 3)
        np.testing.assert_allclose(taken, 1, rtol=1e-13)


def test_fastemit_pulls_at_tokens_alone_and_leaves_the_loss():
    logits = jnp.asarray(example()[None])
    arcs = log_probs(logits, np.array([TOKENS]), blank=0)

    def gradient(fastemit):
        total = lambda arcs: lattice_loss(  # noqa: E731
            *arcs, np.array([4]), np.array([3]), fastemit=fastemit
        ).sum()
        return jax.jit(jax.value_and_grad(total))(arcs)

    (loss, (blank, token)), (same, (blank_too, more)) = gradient(0.0), gradient(jnp.float64(0.3))
    assert loss == same
    np.testing.assert_array_equal(blank_too, blank)
    np.testing.assert_allclose(more, 1.3 * token, rtol=1e-14)


def test_a_weight_of_an_example_scales_its_gradient_alone():
    logits, ones = jnp.asarray(PAIR), np.array([4, 4])

    def total(x, weight):
        loss_b = transducer_loss(x, np.array([[1, 2], [1, 1]]), ones, ones // 2, blank=0)
        return (loss_b * weight).sum()

    plain, scaled = (
        jax.jit(jax.grad(total))(logits, np.array(w)) for w in ([1.0, 1.0], [3.0, 0.0])
    )
    np.testing.assert_allclose(scaled[0], 3 * plain[0], atol=1e-14)
    assert not np.asarray(scaled[1]).any()


def exact(logits, tokens):
    """Returns the gradient in float64, from alpha and beta of one example."""
    arcs = log_softmax(logits.astype(np.float64))
    frames, nodes, _ = arcs.shape
    alpha, beta = (np.full((frames + 1, nodes + 1), -np.inf) for _ in range(2))
    alpha[0, 0], beta[frames, nodes - 1] = 0.0, 0.0
    for t in range(frames):
        for u in range(nodes):
            if t:
                alpha[t, u] = np.logaddexp(alpha[t, u], alpha[t - 1, u] + arcs[t - 1, u, 0])
            if u:
                ahead = alpha[t, u - 1] + arcs[t, u - 1, tokens[u - 1]]
                alpha[t, u] = np.logaddexp(alpha[t, u], ahead)
    for t in reversed(range(frames)):
        for u in reversed(range(nodes)):
            beta[t, u] = arcs[t, u, 0] + beta[t + 1, u]
            if u < nodes - 1:
                beta[t, u] = np.logaddexp(beta[t, u], arcs[t, u, tokens[u]] + beta[t, u + 1])
    chance = np.zeros_like(arcs)
    chance[..., 0] = np.exp(alpha[:-1, :-1] + arcs[..., 0] + beta[1:, :-1] - beta[0, 0])
    for u in range(nodes - 1):
        token = arcs[:, u, tokens[u]]
        chance[:, u, tokens[u]] += np.exp(alpha[:-1, u] + token + beta[:-1, u + 1] - beta[0, 0])
    return -beta[0, 0], np.exp(arcs) * chance.sum(-1, keepdims=True) - chance


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_float32_keeps_the_gradient_of_a_long_lattice(scale):
    # Alpha plus beta is off by 1e-3 to 1e-2 here (experiments/transducer).
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(1, 200, 61, 16)) * scale).astype(np.float32)
    tokens = rng.integers(1, 16, 60)
    loss, gradient = loss_and_gradient(logits, tokens, blank=0)
    assert loss.dtype == gradient.dtype == np.float32
    wanted, slope = exact(logits[0], tokens)
    np.testing.assert_allclose(loss[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(gradient[0], slope, atol=6e-5)


def test_large_logits_and_forbidden_tokens_stay_finite():
    logits = example() * 1e4
    logits[..., 4] = -np.inf
    loss, gradient = loss_and_gradient(logits.astype(np.float32)[None], TOKENS, blank=0)
    assert np.isfinite(loss).all() and np.isfinite(gradient).all()


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.asarray(example()[None], jnp.bfloat16)
    loss, gradient = loss_and_gradient(logits, TOKENS, blank=0)
    wanted, _ = loss_and_gradient(logits.astype(jnp.float32), TOKENS, blank=0)
    assert gradient.dtype == jnp.bfloat16 and loss.dtype == np.float32
    np.testing.assert_array_equal(loss, wanted)


def test_nothing_of_the_size_of_the_logits_is_held_beside_them_and_their_gradient():
    shape = jax.ShapeDtypeStruct((4, 50, 21, 512), jnp.float32)
    lengths = jnp.full(4, 50), jnp.full(4, 20)
    total = lambda x: transducer_loss(x, jnp.ones((4, 20), int), *lengths, blank=0).sum()  # noqa: E731
    memory = jax.jit(jax.value_and_grad(total)).lower(shape).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.05 * memory.argument_size_in_bytes


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(blank=6), "blank=6 is none of the 6 tokens"),
        (dict(blank=-1), "blank=-1"),
        (dict(jumps=(2, 1)), "must be whole numbers of frames that rise"),
        (dict(jumps=(0,)), "never move on"),
        (dict(tokens=[1, 2]), "which tokens (1, 2) do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = dict(tokens=TOKENS, blank=0) | change
    tokens = np.array([arguments.pop("tokens")])
    with pytest.raises(InputError) as caught:
        transducer_loss(
            jnp.asarray(example()[None]), tokens, np.array([4]), np.array([3]), **arguments
        )
    assert message in str(caught.value)
