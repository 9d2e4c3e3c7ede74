"""GPT in every precision: what scan, remat, meshes, state and overflow do to it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding, tree
from research.checkpoint import Checkpoints
from research.kernels.cross_entropy import cross_entropy
from research.kernels.quantized import HISTORY
from research.models import gpt

GPT2 = dict(vocab_size=65, context=16, num_layers=2, num_heads=2, width=32)
LLAMA = GPT2 | dict(
    norm="rmsnorm", positions="rotary", mlp="swiglu", bias=False, tie_embeddings=False
)
SHAPES = {"gpt2": GPT2, "llama": LLAMA}
# Relative errors of the whole gradient: beside float32, and between two programs of one precision,
# which differ where a sum in another order crosses the middle between two numbers of few bits.
NEAR = {"bf16": (0.02, 0.02), "fp16": (0.005, 0.005), "int8": (0.05, 0.05), "fp8": (0.25, 0.12)}
SLOW = (("llama", "int8"), ("gpt2", "int8"), ("llama", "fp8"), ("gpt2", "bf16"), ("llama", "fp16"))
TOKENS = jax.random.randint(jax.random.key(1), (8, 16), 0, 65)


def loss(model, params, model_state, train=True, tokens=TOKENS):
    variables = {"params": params, "model_state": model_state}
    (hidden, head), state = model.apply(variables, tokens, method="encode", train=train)
    weight = jnp.ones(tokens.shape)
    return cross_entropy(hidden, head, tokens, weight, vocab_size=65)[0] / weight.size, state


def step(model):
    """(params, model_state) -> ((loss, new model_state), gradients)"""
    return jax.jit(jax.value_and_grad(functools.partial(loss, model), has_aux=True))


@functools.cache
def result(shape, precision):
    model = gpt.make(**SHAPES[shape], precision=precision)
    variables = model.init(jax.random.key(0))
    params = jax.tree.map(lambda x: 2 * x, variables["params"])
    return params, variables["model_state"], step(model)(params, variables["model_state"])


def distance(one, two):
    """Relative, of two gradients as a whole."""
    one, two = (jax.tree.map(lambda x: np.asarray(x, np.float64), x) for x in (one, two))
    squares = jax.tree.map(lambda a, b: (((a - b) ** 2).sum(), (b**2).sum()), one, two)
    pairs = np.array(jax.tree.leaves(squares)).reshape(-1, 2).sum(0)
    return (pairs[0] / pairs[1]) ** 0.5


def unrolled(model_tree):
    layers = model_tree.get("layers")
    if layers is None:
        return model_tree
    parts = {i: jax.tree.map(lambda x: x[i], layers) for i in range(2)}  # noqa: B023
    return {**model_tree, "layers": parts}


@pytest.mark.core
@pytest.mark.parametrize(
    "shape, precision",
    [
        ("gpt2", "fp8"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW),
    ],
)
def test_scanned_unrolled_and_eight_devices_are_near_float32_and_nearer_each_other(
    shape, precision
):
    to_fp32, to_itself = NEAR[precision]
    params, state, ((value, new), grads) = result(shape, precision)
    (exact, _), expected = result(shape, "fp32")[2]
    assert abs(value - exact) < 0.1 * to_fp32 and distance(grads, expected) < to_fp32

    other = gpt.make(**SHAPES[shape], precision=precision, scan=False)
    (loss2, new2), grads2 = step(other)(unrolled(params), unrolled(state))
    np.testing.assert_allclose(loss2, value, rtol=to_itself / 5)
    assert distance(grads2, unrolled(grads)) < to_itself
    assert jax.tree.structure(new2) == jax.tree.structure(unrolled(new))

    model = gpt.make(**SHAPES[shape], precision=precision, remat="dots")
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    places, _ = sharding.param_shardings(mesh, model.axes, params)
    with jax.set_mesh(mesh):
        tokens = jax.device_put(TOKENS, sharding.batch_sharding(mesh, 8))
        call = functools.partial(loss, model)
        run = jax.jit(
            jax.value_and_grad(lambda p, s, t: call(p, s, tokens=t), has_aux=True),
            in_shardings=(places, None, tokens.sharding),
        )
        (loss3, new3), grads3 = run(jax.device_put(params, places), state, tokens)
    np.testing.assert_allclose(loss3, value, rtol=to_itself / 5)
    assert distance(grads3, grads) < to_itself
    # The largest magnitude of all devices, not of one (later layers differ by the roundings).
    for a, b in zip(jax.tree.leaves(new3), jax.tree.leaves(new), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.1)
    for path, leaf in tree.flatten(new3).items():
        first = tree.flatten(new)[path]
        if path.endswith(("q_amax", "k_amax", "v_amax")):
            np.testing.assert_allclose(leaf[0], first[0], rtol=0.01)
        np.testing.assert_allclose(leaf[:, 1], first[:, 1], rtol=1e-6)  # of weights: the same


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_remat_computes_the_same_again(precision, remat):
    params, state, ((value, new), grads) = result("gpt2", precision)
    (value2, new2), grads2 = step(gpt.make(**GPT2, precision=precision, remat=remat))(params, state)
    np.testing.assert_allclose(value2, value, rtol=1e-5)
    assert distance(grads2, grads) < 1e-3
    for a, b in zip(jax.tree.leaves(new2), jax.tree.leaves(new), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)


def test_only_fp8_has_a_state_and_its_products_are_those_of_the_layers():
    for precision in ("fp32", "bf16", "bf16_params", "fp16", "int8"):
        model = gpt.make(**GPT2, precision=precision)
        assert model.init(jax.random.key(0))["model_state"] == {}
    state = gpt.make(**LLAMA, precision="fp8").init(jax.random.key(0))["model_state"]
    names = {path.split("/")[-1]: leaf.shape for path, leaf in tree.flatten(state).items()}
    weights = ("q", "k", "v", "out", "up", "gate", "down")
    assert names == {f"{name}_amax": (2, 2, HISTORY) for name in weights}


@pytest.mark.core
def test_training_moves_the_history_by_one_and_evaluation_not_at_all():
    params, state, ((_, once), _) = result("gpt2", "fp8")
    model = gpt.make(**GPT2, precision="fp8")
    (_, twice), _ = step(model)(params, once)
    for path, leaf in tree.flatten(twice).items():
        np.testing.assert_allclose(leaf[..., 1], tree.flatten(once)[path][..., 0])
        assert (leaf[..., :2] > 0).all() and (leaf[..., 2:] == 0).all()
    np.testing.assert_array_equal(
        twice["layers"]["mlp"]["up_amax"][:, 1, 0],
        jnp.abs(params["layers"]["mlp"]["up"]).max((1, 2)).astype(jnp.bfloat16),
    )
    kept = jax.jit(functools.partial(loss, model, train=False))(params, twice)[1]
    jax.tree.map(np.testing.assert_array_equal, kept, twice)
    # Decoding reads it too, and writes nothing.
    cache, _ = model.apply({"params": params, "model_state": twice}, 8, 16, method="empty_cache")
    (hidden, _), kept = model.apply(
        {"params": params, "model_state": twice},
        *(TOKENS, jnp.broadcast_to(jnp.arange(16), (8, 16)), cache),
        method="decode_step",
    )
    jax.tree.map(np.testing.assert_array_equal, kept, twice)
    (whole, _), _ = model.apply({"params": params, "model_state": twice}, TOKENS, method="encode")
    assert distance(hidden, whole) < 0.1


@pytest.mark.core
def test_two_steps_a_checkpoint_and_two_more_are_four_steps(tmp_path):
    params, state, _ = result("gpt2", "fp8")
    run = step(gpt.make(**GPT2, precision="fp8"))

    def steps(carry, count):
        for _ in range(count):
            params, state = carry["params"], carry["model_state"]
            (_, state), grads = run(params, state)
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
            carry = {"params": params, "model_state": state}
        return carry

    start = {"params": params, "model_state": state}
    half, whole = steps(start, 2), steps(start, 4)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, half)
        checkpoints.wait()
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), half
        )
        resumed = steps(checkpoints.restore(2, abstract), 2)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.core
@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_what_is_not_finite_reaches_the_loss(precision):
    params, state, ((value, new), _) = result("gpt2", precision)
    model = gpt.make(**GPT2, precision=precision)
    run = jax.jit(functools.partial(loss, model))
    assert np.isfinite(value)
    for bad in (jnp.nan, jnp.inf):
        broken = {**params, "positions": params["positions"].at[3, 5].set(bad)}
        for history in (state, new):
            assert not np.isfinite(run(broken, history)[0])


@pytest.mark.core
@pytest.mark.parametrize("shape", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_an_overflow_of_float16_in_the_backward_pass_shows_in_the_gradient(shape):
    params, state, ((value, _), grads) = result(shape, "fp16")
    model = gpt.make(**SHAPES[shape], precision="fp16")

    @jax.jit
    def scaled(scale):
        value, back, _ = jax.vjp(lambda p: loss(model, p, state), params, has_aux=True)
        return jax.tree.map(lambda g: g / scale, back(scale)[0])

    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))
    assert distance(scaled(jnp.float32(2**12)), result(shape, "fp32")[2][1]) < 0.005
    overflown = scaled(jnp.float32(2**40))
    assert np.isfinite(value) and not all(np.isfinite(g).all() for g in jax.tree.leaves(overflown))


def test_large_activations_of_float16_have_a_gradient():
    """GELU squares its input: beyond 256 that is infinity in float16, and times 0 a NaN."""
    params, state, _ = result("gpt2", "fp16")
    layers = params["layers"]
    large = {**layers, "mlp": {**layers["mlp"], "up_bias": layers["mlp"]["up_bias"] + 1000.0}}
    (value, _), grads = step(gpt.make(**GPT2, precision="fp16"))({**params, "layers": large}, state)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.core
@pytest.mark.parametrize(
    "change",
    [dict(remat="full"), pytest.param(dict(scan=False), marks=pytest.mark.slow)],
    ids=str,
)
def test_numbers_of_a_model_may_be_tracers(change):
    """As in a population: the model is made inside of jit and vmap."""
    key, dropped = jax.random.key(0), jax.random.key(1)

    def train(rate, epsilon, precision="fp32"):
        numbers = dict(dropout=rate, norm_epsilon=epsilon)
        model = gpt.make(**GPT2, **numbers, **change, precision=precision)
        variables = model.init(key)

        def value(params):
            (hidden, _), state = model.apply(
                {**variables, "params": params}, TOKENS, method="encode", key=dropped, train=True
            )
            return jnp.square(hidden[..., 0]).sum(), state

        return jax.value_and_grad(value, has_aux=True)(variables["params"])

    rates, epsilons = jnp.array([0.1, 0.5]), jnp.array([1e-5, 1e-2])
    (values, states), grads = jax.jit(jax.vmap(train))(rates, epsilons)
    assert states == {}
    for i in range(2):
        (value, _), grad = jax.jit(train)(float(rates[i]), float(epsilons[i]))
        np.testing.assert_allclose(values[i], value, rtol=1e-5)
        assert distance(jax.tree.map(lambda g: g[i], grads), grad) < 1e-5  # noqa: B023
    assert abs(values[0] - values[1]) > 1e-3
