"""GPT in both shapes: causality, padding, packing, scan, remat and the cache, by property."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.arguments import InputError
from research.kernels.cross_entropy import cross_entropy
from research.models import gpt

GPT2 = dict(vocab_size=65, context=16, num_layers=3, num_heads=4, width=32)
LLAMA = GPT2 | dict(
    norm="rmsnorm",
    positions="rotary",
    mlp="swiglu",
    bias=False,
    num_kv_heads=2,
    tie_embeddings=False,
)
SHAPES = pytest.mark.parametrize("shape", [GPT2, LLAMA], ids=["gpt2", "llama"])


def setup(shape, **changes):
    model = gpt.make(**(shape | changes))
    # Larger weights than at the start: attention then really depends on its inputs.
    variables = jax.tree.map(lambda x: x * 3, model.init(jax.random.key(0)))
    tokens = jax.random.randint(jax.random.key(1), (2, 16), 0, 65)
    return model, variables, tokens


def gradient_at_inputs(model, variables, tokens, select, *extra):
    """|d select(logits) / d embedding| of each position, by perturbing the embedded inputs."""

    def f(table):
        # One row of the table for each position: its gradient is the gradient of that position.
        size = tokens.size
        padded = jnp.zeros((-(-size // 128) * 128, table.shape[-1])).at[:size].set(table)
        rows = {**variables["params"], "embed": padded}
        ids = jnp.arange(size).reshape(tokens.shape)
        logits, _ = model.apply({**variables, "params": rows}, ids, *extra)
        return select(logits)

    table = variables["params"]["embed"][tokens.reshape(-1)]
    return jnp.abs(jax.jit(jax.grad(f))(table)).sum(-1).reshape(tokens.shape)


@pytest.mark.core
@SHAPES
def test_future_token_has_zero_gradient(shape):
    model, variables, tokens = setup(shape, tie_embeddings=False)
    grads = gradient_at_inputs(model, variables, tokens, lambda logits: logits[0, 7, :65].sum())
    assert (np.asarray(grads[0, :8]) > 0).all()
    assert (np.asarray(grads[0, 8:]) == 0).all()
    assert (np.asarray(grads[1]) == 0).all()


@SHAPES
def test_a_window_ends_where_it_says(shape):
    model, variables, tokens = setup(shape, tie_embeddings=False, window=3, num_layers=1)
    grads = gradient_at_inputs(model, variables, tokens, lambda logits: logits[0, 7, :65].sum())
    assert (np.asarray(grads[0, 5:8]) > 0).all()
    assert (np.asarray(grads[0, :5]) == 0).all()


def test_rotary_positions_count_distances_only():
    model, variables, tokens = setup(LLAMA)
    positions = jnp.broadcast_to(jnp.arange(16), tokens.shape)
    logits = jax.jit(lambda p: model.apply(variables, tokens, None, p)[0][..., :65])
    here = logits(positions)
    np.testing.assert_allclose(logits(positions + 9), here, atol=1e-4)
    assert jnp.abs(logits(positions * 2) - here).max() > 1e-2


@SHAPES
def test_packed_documents_do_not_see_each_other(shape):
    model, variables, tokens = setup(shape, tie_embeddings=False)
    segments = jnp.array([[1] * 6 + [2] * 7 + [0] * 3, [1] * 16])
    positions = jnp.array([[*range(6), *range(7), 0, 0, 0], [*range(16)]])
    extra = (segments, positions)
    grads = gradient_at_inputs(
        model, variables, tokens, lambda logits: logits[0, 6:13, :65].sum(), *extra
    )
    assert (np.asarray(grads[0, 6:12]) > 0).all()
    assert (np.asarray(grads[0, :6]) == 0).all() and (np.asarray(grads[0, 13:]) == 0).all()
    # Packed, each document gets the logits it gets alone.
    packed, _ = model.apply(variables, tokens, *extra)
    alone, _ = model.apply(variables, tokens[:1, 6:13])
    np.testing.assert_allclose(packed[0, 6:13, :65], alone[0, :, :65], atol=1e-5)


@SHAPES
def test_padding_does_not_change_loss_or_gradient(shape):
    model, variables, tokens = setup(shape)
    weight = jnp.ones((2, 16)).at[1, 9:].set(0)
    segments = (weight > 0).astype(jnp.int32)

    def loss(variables, tokens):
        (hidden, head), _ = model.apply(variables, tokens, segments, method="encode")
        return cross_entropy(hidden, head, tokens, weight, vocab_size=65)[0]

    step = jax.jit(jax.value_and_grad(loss))
    value, grads = step(variables, tokens)
    other, other_grads = step(variables, tokens.at[1, 9:].set(3))
    assert value == other
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(other_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@SHAPES
@pytest.mark.parametrize(
    "change", [dict(scan=False), dict(unroll=3), dict(remat="full"), dict(remat="dots")]
)
def test_scan_unroll_and_remat_change_nothing(shape, change):
    model, variables, tokens = setup(shape, dropout=0.2)
    other, _, _ = setup(shape, dropout=0.2, **change)

    def loss(model, variables):
        logits, _ = model.apply(variables, tokens, key=jax.random.key(5), train=True)
        return jax.nn.log_softmax(logits[..., :65])[..., 0].sum()

    def unstack(params):
        layers = params["layers"]
        unstacked = {i: jax.tree.map(lambda x: x[i], layers) for i in range(3)}  # noqa: B023
        return {**params, "layers": unstacked}

    value, grads = jax.jit(jax.value_and_grad(lambda v: loss(model, v)))(variables)
    changed = variables
    if change == dict(scan=False):
        changed = {**variables, "params": unstack(variables["params"])}
        grads = {**grads, "params": unstack(grads["params"])}
    other_value, other_grads = jax.jit(jax.value_and_grad(lambda v: loss(other, v)))(changed)
    np.testing.assert_allclose(value, other_value, rtol=1e-6)
    # Absolute, on the scale of all gradients: those of key biases are zero but for rounding.
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads))
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(other_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * scale, rtol=1e-5)


def test_each_remat_recomputes_what_it_says():
    """Without it, a remat option that does nothing would pass the equality above."""

    def products(remat):
        model, variables, tokens = setup(GPT2, remat=remat)
        loss = lambda v: model.apply(v, tokens)[0][..., :65].sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(variables)).count("dot_general")

    # "dots" keeps the products of weights, and computes only those inside attention again.
    assert products("full") > products("dots") > products("none")


@pytest.mark.core
@SHAPES
def test_cached_decoding_gives_the_logits_of_the_whole_text(shape):
    model, variables, tokens = setup(shape)
    full, _ = model.apply(variables, tokens)
    cache, _ = model.apply(variables, 2, 16, method="empty_cache")
    parts = []
    for start, stop in [(0, 9), (9, 10), (10, 16)]:
        positions = jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start))
        (hidden, cache), _ = model.apply(
            variables, tokens[:, start:stop], positions, cache, method="decode_step"
        )
        parts.append(model.apply(variables, hidden, method="logits")[0])
    np.testing.assert_allclose(jnp.concatenate(parts, 1)[..., :65], full[..., :65], atol=1e-5)


def test_padding_of_the_vocabulary_is_never_predicted():
    model, variables, tokens = setup(GPT2)
    logits, _ = model.apply(variables, tokens)
    assert logits.shape == (2, 16, 128)
    assert (np.asarray(logits[..., 65:]) == -np.inf).all()


@SHAPES
def test_every_parameter_carries_a_name_for_each_axis(shape):
    model, variables, _ = setup(shape)
    names = jax.tree.leaves(model.axes, is_leaf=lambda x: isinstance(x, tuple))
    leaves = jax.tree.leaves(variables["params"])
    assert [len(n) for n in names] == [leaf.ndim for leaf in leaves]


@pytest.mark.core
@pytest.mark.parametrize(
    "shape", [GPT2, LLAMA, GPT2 | dict(scan=False)], ids=["gpt2", "llama", "unrolled"]
)
def test_weights_start_as_gpt2_says(shape):
    """Deviation 0.02, of projections into the residual stream 0.02 / sqrt(2 x layers)."""
    model = gpt.make(**(shape | dict(width=64, num_layers=4, context=64)))
    params = model.init(jax.random.key(0))["params"]
    starts = set()
    for path, leaf in tree.flatten(params).items():
        if path.endswith(("scale", "bias")):
            assert (leaf == (1 if path.endswith("scale") else 0)).all(), path
            continue
        expected = 0.02 / 8**0.5 if re.search(r"/(out|down)$", path) else 0.02
        # Five standard errors, of a deviation and of a mean.
        assert abs(leaf.std() / expected - 1) < 5 / (2 * leaf.size) ** 0.5, path
        assert abs(leaf.mean() / expected) < 5 / leaf.size**0.5, path
        parts = leaf if tree.stacked_axes(path) else leaf[None]
        values = {float(part.reshape(-1)[0] / expected) for part in parts}
        assert len(values) == len(parts) and not values & starts, path  # no two start alike
        starts |= values


@pytest.mark.parametrize("wrong", [dict(num_heads=5), dict(num_kv_heads=3), dict(vocab_size=None)])
def test_a_shape_that_does_not_divide_is_refused(wrong):
    with pytest.raises(InputError):
        gpt.make(**(GPT2 | wrong))


def test_bf16_keeps_float32_parameters_and_stays_near():
    model, variables, tokens = setup(GPT2)
    low, _, _ = setup(GPT2, precision="bf16")
    hidden, _ = low.apply(variables, tokens, method="encode")
    assert hidden[0].dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(low.init(jax.random.key(0))))
    a, _ = model.apply(variables, tokens)
    b, _ = low.apply(variables, tokens)
    np.testing.assert_allclose(a[..., :65], b[..., :65], atol=0.06)
