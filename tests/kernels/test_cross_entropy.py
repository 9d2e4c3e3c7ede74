"""Chunked cross-entropy against optax on whole logits."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research.arguments import InputError
from research.kernels.cross_entropy import cross_entropy

BATCH, LENGTH, WIDTH, COLUMNS, VOCAB = 4, 21, 16, 128, 100


def inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (BATCH, LENGTH, WIDTH), dtype)
    head = jax.random.normal(keys[1], (WIDTH, COLUMNS))
    targets = jax.random.randint(keys[2], (BATCH, LENGTH), 0, VOCAB)
    weight = jnp.round(jax.random.uniform(keys[3], (BATCH, LENGTH)) * 2) / 2  # 0, 0.5 and 1
    return hidden, head, targets, weight


def plain(hidden, head, targets, weight):
    logits = jnp.einsum("btd,dv->btv", hidden.astype(jnp.float32), head)[..., :VOCAB]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return (weight * nll).sum(), (weight * (logits.argmax(-1) == targets)).sum()


@partial(jax.jit, static_argnums=0)
def gradients(function, hidden, head, targets, weight):
    """Returns ((0.3 loss, correct), gradients by hidden, head and weight)."""

    def loss(hidden, head, weight):
        total, correct = function(hidden, head, targets, weight)
        return 0.3 * total, correct

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(hidden, head, weight)


@pytest.mark.core
@pytest.mark.parametrize("chunk", [1, 7, 20, 64, None])
def test_value_and_gradients_equal_those_of_whole_logits(chunk):
    ours = partial(cross_entropy, vocab_size=VOCAB, chunk=chunk)
    got, expected = (
        jax.jit(gradients, static_argnums=0)(ours, *inputs()),
        gradients(plain, *inputs()),
    )
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    for x, y in zip(jax.jit(ours)(*inputs()), jax.jit(plain)(*inputs()), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


@pytest.mark.core
def test_padding_columns_get_no_gradient():
    head_gradient = gradients(partial(cross_entropy, vocab_size=VOCAB, chunk=8), *inputs())[1][1]
    assert not np.any(head_gradient[:, VOCAB:]) and np.all(np.any(head_gradient[:, :VOCAB], axis=0))


@pytest.mark.core
def test_tokens_of_weight_zero_contribute_nothing():
    hidden, head, targets, weight = inputs()
    absent = (weight == 0)[..., None]
    run = partial(gradients, partial(cross_entropy, vocab_size=VOCAB, chunk=8))
    changed = jnp.where(absent[..., 0], -1, targets)  # as collators mark what is to be ignored
    one = run(hidden, head, targets, weight)
    two = run(jnp.where(absent, 100.0, hidden), head, changed, weight)
    for x, y in zip(one[0] + one[1][:2], two[0] + two[1][:2], strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.any(np.where(absent, two[1][0], 0))


@pytest.mark.core
def test_large_logits_stay_finite_and_exact():
    hidden, head, targets, weight = inputs()
    (got, _), grads = gradients(
        partial(cross_entropy, vocab_size=VOCAB), 1e4 * hidden, *inputs()[1:]
    )
    np.testing.assert_allclose(got, gradients(plain, 1e4 * hidden, *inputs()[1:])[0][0], rtol=1e-5)
    assert all(np.all(np.isfinite(g)) for g in grads)


def test_an_untrained_head_scores_as_argmax_does():
    hidden, head, targets, _ = inputs()
    weight = jnp.ones((BATCH, LENGTH))
    _, correct = cross_entropy(hidden, 0 * head, targets, weight, vocab_size=VOCAB)
    assert correct == (targets == 0).sum()  # a tie goes to the first column, not to every target


def test_bfloat16_is_as_close_as_its_rounding():
    hidden, *rest = inputs(jnp.bfloat16)
    (loss, _), (d_hidden, d_head, _) = gradients(
        partial(cross_entropy, vocab_size=VOCAB, chunk=8), hidden, *rest
    )
    expected, (e_hidden, e_head, _) = gradients(plain, hidden, *rest)
    assert (d_hidden.dtype, d_head.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(loss, expected[0], rtol=5e-3)
    np.testing.assert_allclose(np.asarray(d_hidden, float), e_hidden, atol=0.05)
    np.testing.assert_allclose(d_head, e_head, atol=0.05)


@pytest.mark.core
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_smoothed_labels_equal_those_of_whole_logits(smoothing):
    """The smoothing is a tracer here; padded columns take no part in it."""

    def smooth(hidden, head, targets, weight):
        logits = jnp.einsum("btd,dv->btv", hidden, head)[..., :VOCAB]
        labels = optax.smooth_labels(jax.nn.one_hot(targets, VOCAB), smoothing)
        nll = optax.softmax_cross_entropy(logits, labels)
        return (weight * nll).sum(), (weight * (logits.argmax(-1) == targets)).sum()

    @jax.jit
    def ours(smoothing):
        call = partial(cross_entropy, vocab_size=VOCAB, chunk=8, label_smoothing=smoothing)
        return gradients(call, *inputs()), call(*inputs())

    got, values = ours(smoothing)
    expected = gradients(smooth, *inputs())
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(values[0], smooth(*inputs())[0], rtol=1e-5)
    assert not np.any(got[1][1][:, VOCAB:])


def test_no_smoothing_costs_nothing():
    def program(**options):
        run = partial(gradients, partial(cross_entropy, vocab_size=VOCAB, chunk=8, **options))
        return str(jax.make_jaxpr(run)(*inputs()))

    assert program(label_smoothing=0) == program(label_smoothing=0.0) == program()
    assert program(label_smoothing=0.1) != program()


@pytest.mark.core
def test_float16_keeps_the_gradient_of_improbable_tokens():
    """Of probability 2e-8, below float16's least number, where a loss scale does not reach."""
    hidden, head, targets, weight = inputs()
    head = (0.1 * head).at[:, 50].set(-8.0)  # with hidden states that add up to 2 or so
    hidden = (0.1 * hidden + 0.125).astype(jnp.float16)
    targets = jnp.where(targets == 50, 0, targets)
    run = partial(gradients, partial(cross_entropy, vocab_size=VOCAB, chunk=8))
    (_, (d_hidden, d_head, _)) = run(hidden, head, targets, weight)
    exact = (hidden.astype(jnp.float32), head.astype(jnp.float16).astype(jnp.float32))
    (_, (e_hidden, e_head, _)) = gradients(plain, *exact, targets, weight)
    assert d_hidden.dtype == jnp.float16 and 0 < jnp.abs(e_head[:, 50]).max() < 1e-5
    scale = jnp.abs(e_head[:, 50]).max()
    np.testing.assert_allclose(d_head[:, 50], e_head[:, 50], atol=0.02 * scale)
    np.testing.assert_allclose(np.asarray(d_hidden, float), e_hidden, atol=1e-3)


def sizes(jaxpr):
    for eqn in jaxpr.eqns:
        yield from (x.aval.size for x in eqn.outvars if hasattr(x.aval, "size"))
        for value in eqn.params.values():
            body = getattr(value, "jaxpr", value)
            if hasattr(body, "eqns"):
                yield from sizes(body)


@pytest.mark.core
def test_logits_of_all_tokens_never_exist():
    def largest(chunk):
        run = partial(gradients, partial(cross_entropy, chunk=chunk))
        return max(sizes(jax.make_jaxpr(run)(*inputs()).jaxpr))

    assert largest(LENGTH) == BATCH * LENGTH * COLUMNS
    assert largest(7) == BATCH * 7 * COLUMNS


@pytest.fixture
def eight():
    axes = ("stage", "data", "fsdp", "seq", "tensor", "expert")
    return jax.make_mesh((1, 2, 2, 1, 2, 1), axes, axis_types=(AxisType.Auto,) * 6)


@pytest.mark.core
def test_eight_devices_agree_and_reduce_the_head_gradient_once(eight):
    batch, head = P(("data", "fsdp")), P("fsdp", "tensor")
    place = [NamedSharding(eight, spec) for spec in (batch, head, batch, batch)]
    expected = gradients(plain, *inputs())
    run = partial(gradients, partial(cross_entropy, vocab_size=VOCAB, chunk=7))
    with jax.set_mesh(eight):
        placed = [jax.device_put(x, s) for x, s in zip(inputs(), place, strict=True)]
        step = jax.jit(lambda *args: run(*args)).lower(*placed).compile()
        got = step(*placed)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)

    # The text of a loop body stands before that of the entry computation.
    loops, entry = step.as_text().split("\nENTRY")
    whole = f"f32\\[{WIDTH},{COLUMNS // 2}\\]"  # a head, split over tensor only
    moved = f"{whole}.* (all-gather|all-reduce|reduce-scatter)\\("
    assert not re.findall(moved, loops)
    assert sorted(re.findall(moved, entry)) == ["all-gather", "all-reduce"]


@pytest.mark.core
@pytest.mark.parametrize(
    "change, message",
    [
        ({"chunk": 0}, "at least 1 position"),
        ({"vocab_size": 129}, "128 columns"),
        ({"targets_bt": jnp.zeros((BATCH, 3), int)}, "do not fit"),
        ({"head_dv": jnp.zeros((WIDTH + 1, COLUMNS))}, "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    names = ("hidden_btd", "head_dv", "targets_bt", "weight_bt")
    with pytest.raises(InputError, match=message):
        cross_entropy(**dict(zip(names, inputs(), strict=True)) | change)
