"""Directions against torch's trajectories (tests/fixtures/make.py) and against their formulas in
numpy, in float64."""

import functools
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from research import optim
from research.arguments import InputError
from research.build import make_part
from research.gradients import Gradients, schedule_free
from research.optim import lr as lr_lib

FIXTURE = Path(__file__).parents[1] / "fixtures" / "optimizers.npz"
FAST = {"xla_backend_optimization_level": 0}  # to compile
NESTEROV = dict(decay=0.9, nesterov=True)
# Name in the fixture: our chain before `lr`, the learning rate, and the allowed difference.
TORCH = {
    "sgd": ([], 0.05, 1e-12),
    "sgd_momentum": ([("momentum", {})], 0.02, 1e-12),
    "sgd_nesterov": ([("momentum", NESTEROV)], 0.02, 1e-12),
    "sgd_decay": ([("decay", dict(rate=0.01)), ("momentum", {})], 0.02, 1e-12),
    "adagrad": ([("adagrad", {})], 0.1, 1e-12),
    "adagrad_accumulator": ([("adagrad", dict(accumulator=0.1))], 0.1, 1e-12),
    "rmsprop": ([("rmsprop", {})], 0.01, 1e-12),
    "rmsprop_centered": ([("rmsprop", dict(centered=True))], 0.01, 1e-12),
    "rmsprop_momentum": ([("rmsprop", {}), ("momentum", {})], 0.01, 1e-12),
    "adam": ([("adam", {})], 0.05, 1e-12),
    "adam_decay": ([("decay", dict(rate=0.01)), ("adam", {})], 0.05, 1e-12),
    "amsgrad": ([("amsgrad", {})], 0.05, 1e-12),
    "adamw": ([("adam", {}), ("decay", dict(rate=0.01))], 0.05, 1e-12),
    "adamax": ([("adamax", {})], 0.05, 1e-12),
    "nadam": ([("nadam", {})], 0.05, 1e-12),
    "radam": ([("radam", {})], 0.05, 1e-7),  # eps before the bias is corrected
    "adadelta": ([("adadelta", {})], 1.0, 1e-12),
    "adafactor": ([("adafactor", {})], 0.05, 1e-12),
    "adafactor_matrix": ([("adafactor", dict(min_size=1))], 0.05, 1e-12),
    "muon_matrix": ([("muon", dict(compute="bf16"))], 0.02, 2e-3),  # the rounding of bfloat16
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def frozen():
    with np.load(FIXTURE) as file:
        return dict(file)


def bowl(x):
    c, target = jnp.array([1, 10, 0.1, 3]), jnp.array([1, -2, 3, 0.5])
    return 0.5 * jnp.sum(c * (x - target) ** 2) + 0.1 * jnp.sum(jnp.sin(3 * x))


def chain(parts, rate=None):
    """Our parts, with optax's constant learning rate in place of `lr` (its own tests hold it)."""
    rate = {} if rate is None else {"lr": optax.scale(-rate)}
    made = {name: rate.get(name) or make_part(name, options) for name, options in parts}
    return optim.chain([*(made | rate).items()])


def walk(tx, gradient, x, steps):
    """The points after each step."""

    @functools.partial(jax.jit, compiler_options=FAST)
    def run(x):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(gradient(x), state, x)
            x = optax.apply_updates(x, updates)
            return (x, state), x

        return jax.lax.scan(step, (x, tx.init(x)), length=steps)[1]

    return run(x)


def follow(tx, gradients, x):
    """The updates that a part makes of given gradients, at parameters that stand still."""
    state, seen = tx.init(x), []
    update = jax.jit(tx.update, compiler_options=FAST)
    for g in gradients:
        u, state = update(g, state, x)
        seen.append(u)
    return seen


@pytest.mark.parametrize("name", TORCH)
def test_the_whole_trajectory_is_that_of_torch(name, frozen):
    parts, rate, limit = TORCH[name]
    loss, x = bowl, {"x": jnp.array([0.3, 0.7, -0.4, 1.1])}
    if name.endswith("_matrix"):
        a, y, x = frozen["batch/a"], frozen["batch/y"], {"x": jnp.asarray(frozen["params/x"])}
        loss = lambda x: 0.5 * jnp.sum((a @ x - y) ** 2)  # noqa: E731
    gradient = jax.grad(lambda tree: loss(tree["x"]))
    points = walk(chain(parts, rate), gradient, x, len(frozen[name]))["x"]
    assert points.dtype == jnp.float64
    error = float(np.abs(points - frozen[name]).max())
    print(f"{name}: {error:.1e}")
    assert error < limit


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_amsgrad_without_bias_correction_is_algorithm_2_of_the_paper():
    gradients = normal(30, 5) * np.linspace(3, 0.1, 30)[:, None]
    tx = make_part("amsgrad", dict(b1=0.8, b2=0.9, eps=0.0, bias_correction=False))
    m = v = highest = np.zeros(5)
    for g, u in zip(gradients, follow(tx, gradients, jnp.zeros(5)), strict=True):
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        highest = np.maximum(highest, v)
        np.testing.assert_allclose(u, m / np.sqrt(highest), rtol=1e-12)


def test_nadam_equals_its_formula():
    gradients = normal(30, 5)
    tx = make_part("nadam", dict(b1=0.8, b2=0.9, eps=1e-3, momentum_decay=0.1))
    m, v, product = np.zeros(5), np.zeros(5), 1.0
    momentum = lambda t: 0.8 * (1 - 0.5 * 0.96 ** (0.1 * t))  # noqa: E731
    updates = follow(tx, gradients, jnp.zeros(5))
    for t, (g, u) in enumerate(zip(gradients, updates, strict=True), 1):
        m, v, product = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g, product * momentum(t)
        ahead = momentum(t + 1) * m / (1 - product * momentum(t + 1))
        expected = (1 - momentum(t)) * g / (1 - product) + ahead
        np.testing.assert_allclose(u, expected / (np.sqrt(v / (1 - 0.9**t)) + 1e-3), rtol=1e-12)


def test_ademamix_equals_its_formula():
    gradients, warmup = normal(12, 5), 8
    tx = make_part("ademamix", dict(b1=0.9, b2=0.99, b3=0.999, alpha=4.0, warmup=warmup))
    fast, slow, v = np.zeros(5), np.zeros(5), np.zeros(5)
    updates = follow(tx, gradients, jnp.zeros(5))
    for t, (g, u) in enumerate(zip(gradients, updates, strict=True), 1):
        done, start, end = min(1.0, t / warmup), np.log(0.9), np.log(0.999)
        b3 = np.exp(start * end / ((1 - done) * end + done * start))
        fast, slow, v = 0.9 * fast + 0.1 * g, b3 * slow + (1 - b3) * g, 0.99 * v + 0.01 * g * g
        expected = fast / (1 - 0.9**t) + 4.0 * done * slow
        np.testing.assert_allclose(u, expected / (np.sqrt(v / (1 - 0.99**t)) + 1e-8), rtol=1e-9)


def test_lion_equals_its_formula():
    gradients, m = normal(20, 5), np.zeros(5)
    for g, u in zip(gradients, follow(make_part("lion", {}), gradients, jnp.zeros(5)), strict=True):
        np.testing.assert_array_equal(u, np.sign(0.9 * m + 0.1 * g))
        m = 0.99 * m + 0.01 * g


def stacked():
    params = {"layers": {"w": normal(3, 4, 2), "bias": normal(3, 2)}, "head": normal(4, 4, seed=1)}
    gradients = [jax.tree.map(lambda p, s=s: normal(*p.shape, seed=s), params) for s in range(2, 7)]
    return jax.tree.map(jnp.asarray, params), gradients


def leaves_of_one_layer(tree):
    """Numpy arrays, one a layer."""
    layers = {f"w{i}": np.asarray(tree["layers"]["w"][i]) for i in range(3)}
    biases = {f"bias{i}": np.asarray(tree["layers"]["bias"][i]) for i in range(3)}
    return layers | biases | {"head": np.asarray(tree["head"])}


def test_lamb_scales_each_layer_to_the_length_of_its_parameters():
    params, gradients = stacked()
    section = common.lamb(0.1, warmup=1, decay=0.01)
    tx = chain([(name, section[name]) for name in section["chain"] if name not in ("clip", "lr")])
    seen = [leaves_of_one_layer(u) for u in follow(tx, gradients, params)]
    for name, p in leaves_of_one_layer(params).items():
        m = v = 0.0
        for t, g in enumerate(gradients, 1):
            g = leaves_of_one_layer(g)[name]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
            if not name.startswith("bias"):
                u = u + 0.01 * p
                u = u * np.linalg.norm(p) / np.linalg.norm(u)
            np.testing.assert_allclose(seen[t - 1][name], u, rtol=1e-10)


def test_lars_is_that_of_the_paper():
    params, gradients = stacked()
    section = common.lars(2.0, warmup=1, decay=0.01)
    tx = chain([(name, section[name]) for name in section["chain"]], 2.0)
    seen = [leaves_of_one_layer(u) for u in follow(tx, gradients, params)]
    for name, p in leaves_of_one_layer(params).items():
        v = 0.0
        for g, u in zip(gradients, seen, strict=True):
            g = leaves_of_one_layer(g)[name]
            rate, length = 2.0, np.linalg.norm(p)
            if not name.startswith("bias"):
                rate = 2.0 * 1e-3 * length / (np.linalg.norm(g) + 0.01 * length)
                g = g + 0.01 * p
            v = 0.9 * v + rate * g
            np.testing.assert_allclose(u[name], -v, rtol=1e-10)


def test_a_trust_ratio_is_one_where_a_length_is_zero():
    tx = make_part("trust_ratio", dict(coefficient=1e-3))
    params = {"a": jnp.zeros(2), "b": jnp.ones(2)}
    updates, _ = tx.update({"a": jnp.ones(2), "b": jnp.zeros(2)}, tx.init(params), params)
    np.testing.assert_array_equal(updates["a"], 1.0)
    np.testing.assert_array_equal(updates["b"], 0.0)


def newton_schulz(x, steps=5):
    flipped = x.shape[0] > x.shape[1]
    x = x.T if flipped else x
    x = x / np.linalg.norm(x)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if flipped else x


@pytest.mark.parametrize(
    ("scale", "nesterov"), [("spectral", True), ("rms", False), ("none", True)]
)
def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_adam(scale, nesterov):
    params = {
        "layers": {
            "attention": {"q": normal(2, 6, 2, 4), "q_bias": normal(2, 2, 4)},
            "mlp": {"up": normal(2, 6, 9), "down": normal(2, 9, 6)},
        },
        "embed": normal(8, 6),
    }
    params = jax.tree.map(jnp.asarray, params)
    options = dict(scale=scale, nesterov=nesterov, rest_rate=0.5)
    gradients = [jax.tree.map(lambda p, s=s: normal(*p.shape, seed=s), params) for s in range(3)]
    seen = follow(make_part("muon", options), gradients, params)
    shapes = {("attention", "q"): (6, 8), ("mlp", "up"): (6, 9), ("mlp", "down"): (9, 6)}
    for (block, name), (inputs, outputs) in shapes.items():
        factor = {
            "spectral": max(1, outputs / inputs) ** 0.5,
            "rms": 0.2 * max(inputs, outputs) ** 0.5,
            "none": 1.0,
        }[scale]
        for layer in range(2):
            m = np.zeros((inputs, outputs))
            for g, u in zip(gradients, seen, strict=True):
                g = g["layers"][block][name][layer].reshape(inputs, outputs)
                m = 0.95 * m + 0.05 * g
                expected = factor * newton_schulz(0.95 * m + 0.05 * g if nesterov else m)
                u = u["layers"][block][name][layer].reshape(inputs, outputs)
                np.testing.assert_allclose(u, expected, rtol=1e-9, atol=1e-9)
    adam = follow(make_part("adam", dict(b2=0.95)), gradients, params)
    for pick in (lambda t: t["embed"], lambda t: t["layers"]["attention"]["q_bias"]):
        for u, expected in zip(seen, adam, strict=True):
            np.testing.assert_allclose(pick(u), 0.5 * pick(expected), rtol=1e-9)


def test_a_rule_of_muon_may_not_split_a_stacked_parameter():
    params = {"layers": {"w": jnp.ones((3, 4, 4))}}
    with pytest.raises(InputError, match="some layers of layers/w only"):
        make_part("muon", dict(rest=("layers/1/",))).init(params)


def soap_of_one_matrix(gradients, b1, b2, keep, frequency, sides=(True, True)):
    """SOAP as the authors' code has it: the first gradient makes the bases, and moves nothing."""
    shape, eps = gradients[0].shape, 1e-8
    m, v = np.zeros(shape), np.zeros(shape)
    left, right = np.zeros((shape[0],) * 2), np.zeros((shape[1],) * 2)
    ql, qr, updates = np.eye(shape[0]), np.eye(shape[1]), []
    for t, g in enumerate(gradients):
        if t > 0:
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * (ql.T @ g @ qr) ** 2
            inside = ql.T @ (m / (1 - b1**t)) @ qr / (np.sqrt(v / (1 - b2**t)) + eps)
            updates.append(ql @ inside @ qr.T)
        else:
            updates.append(np.zeros(shape))
        left = keep * left + (1 - keep) * g @ g.T
        right = keep * right + (1 - keep) * g.T @ g
        if t == 0:
            ql, qr = np.linalg.eigh(left)[1][:, ::-1], np.linalg.eigh(right)[1][:, ::-1]
        elif t % frequency == 0:
            rows = np.argsort(-np.diag(ql.T @ left @ ql)) if sides[0] else slice(None)
            columns = np.argsort(-np.diag(qr.T @ right @ qr)) if sides[1] else slice(None)
            v = v[rows][:, columns]
            ql, qr = np.linalg.qr(left @ ql[:, rows])[0], np.linalg.qr(right @ qr[:, columns])[0]
        ql = ql if sides[0] else np.eye(shape[0])
        qr = qr if sides[1] else np.eye(shape[1])
    return updates


@pytest.mark.parametrize("max_dim", [100, 4])
def test_soap_equals_a_small_implementation_in_numpy(max_dim):
    # Square where both sides turn: of a longer side, some eigenvectors would be anything.
    shape = (2, 4, 2, 2) if max_dim > 4 else (2, 5, 3)
    params = {"layers": {"w": normal(*shape), "bias": normal(2, 4)}, "out": normal(3, 3)}
    params = jax.tree.map(jnp.asarray, params)
    gradients = [jax.tree.map(lambda p, s=s: normal(*p.shape, seed=s), params) for s in range(9)]
    options = dict(b1=0.9, b2=0.8, shampoo_decay=0.7, frequency=3, max_dim=max_dim)
    seen = follow(make_part("soap", options), gradients, params)
    matrix = lambda w: w.reshape(w.shape[0], -1)  # noqa: E731
    picks = [(lambda t, i=i: matrix(t["layers"]["w"][i]), (max_dim > 4, True)) for i in range(2)]
    for pick, sides in [*picks, (lambda t: t["out"], (True, True))]:
        expected = soap_of_one_matrix([pick(g) for g in gradients], 0.9, 0.8, 0.7, 3, sides)
        for u, e in zip(seen, expected, strict=True):
            np.testing.assert_allclose(pick(u), e, rtol=1e-9, atol=1e-11)
    adam = follow(make_part("adam", dict(b1=0.9, b2=0.8)), gradients[1:], params)
    for u, e in zip(seen[1:], adam, strict=True):
        np.testing.assert_allclose(u["layers"]["bias"], e["layers"]["bias"], rtol=1e-9)


def test_the_basis_of_soap_does_not_turn_over_when_it_is_refreshed():
    """Second moments belong to directions: those must still be there after a refresh."""
    tx, params = make_part("soap", dict(frequency=10)), jnp.zeros((48, 48))
    scales = np.geomspace(1, 1e-2, 48)
    state, sizes = tx.init(params), []
    for t in range(14):
        updates, state = tx.update(jnp.asarray(normal(48, 48, seed=t) * scales[:, None]), state,
                                   params)  # fmt: skip
        sizes.append(float(jnp.sqrt(jnp.mean(updates**2))))
    assert max(sizes[10:]) < 1.2 * sizes[9]


LINALG = ("name=eigh", "name=qr")


def test_the_bases_of_soap_are_refreshed_in_a_branch_and_not_in_every_update():
    params = {"layers": {"w": jnp.ones((2, 4, 4))}}
    tx = make_part("soap", {})
    steps = jax.make_jaxpr(tx.update)(params, tx.init(params), params).eqns
    (choice,) = [step for step in steps if step.primitive.name == "cond"]
    first, again, keep = map(str, choice.params["branches"])
    assert LINALG[0] in first and LINALG[1] in again and not any(word in keep for word in LINALG)
    others = "".join(str(step) for step in steps if step is not choice)
    assert not any(word in others for word in LINALG)


@pytest.mark.parametrize(("warmup", "state_dtype"), [(0, "fp32"), (5, "bf16")])
def test_schedule_free_is_that_of_optax_through_its_gradient_wrapper(warmup, state_dtype):
    sections = common.schedule_free_adamw(0.05, warmup=warmup, decay=0.1, b1=0.8)
    section = sections["optim"] | {"schedule_free": dict(b1=0.8, decay=0.1)}
    assert sections["gradients"]["chain"] == ("schedule_free",)
    parts = [(name, make_part(name, section[name])) for name in section["chain"]]
    tx = optim.chain([part for part in parts if part[0] != "clip"], state_dtype)

    def loss(state, batch, key):
        value, grads = jax.value_and_grad(lambda p: bowl(p["x"]))(state.params)
        return Gradients(grads, value, 1.0, {}, {}, {})

    grad_fn = schedule_free.make(loss)
    rate = lr_lib.make(peak=0.05, schedule="constant", warmup=warmup)

    def rates(count):  # optax counts from 1
        return rate.update({}, lr_lib.LearningRateState(count - 1, jnp.zeros(())))[1].learning_rate

    inner = optax.chain(
        optax.scale_by_adam(b1=0.0, b2=section["adam"]["b2"]),
        optax.add_decayed_weights(0.1),
        optax.scale_by_schedule(lambda count: -rates(count + 1)),
    )
    theirs = optax.contrib.schedule_free(inner, rates, b1=0.8)
    params = {"x": jnp.array([0.3, 0.7, -0.4, 1.1])}
    y, state, their_state = params, tx.init(params), theirs.init(params)

    @jax.jit
    def ours(params, state):
        grads = grad_fn(SimpleState(params, state), None, None).grads
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    their_update = jax.jit(theirs.update)
    for _ in range(20):
        params, state = ours(params, state)
        gradient = jax.grad(lambda p: bowl(p["x"]))(y)
        updates, their_state = their_update(gradient, their_state, y)
        y = optax.apply_updates(y, updates)
        x = optax.contrib.schedule_free_eval_params(their_state, y)
        np.testing.assert_allclose(params["x"], x["x"], rtol=1e-10)
    at = grad_fn(SimpleState(params, state), None, None)
    np.testing.assert_allclose(at.loss, bowl(y["x"]), rtol=1e-10)


class SimpleState(SimpleNamespace):
    """Parameters and optimizer of a TrainState."""

    def __init__(self, params, opt_state):
        super().__init__(params=params, opt_state=opt_state)

    def _replace(self, params):
        return SimpleState(params, self.opt_state)


def test_the_gradient_of_schedule_free_without_its_optimizer_is_refused():
    grad_fn = schedule_free.make(lambda state, batch, key: None)
    with pytest.raises(InputError, match="add it to optim.chain"):
        grad_fn(SimpleState({}, {"adam": optax.EmptyState()}), None, None)


def test_schedule_free_decays_by_rules():
    tx = make_part("schedule_free", dict(decay=1.0, rules=((r"bias$", 0.0),)))
    params = {"w": jnp.ones(2), "bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(zeros, tx.init(params), params, learning_rate=jnp.asarray(0.1))
    np.testing.assert_allclose(state.z["w"], 0.9)
    np.testing.assert_array_equal(state.z["bias"], 1.0)
    np.testing.assert_allclose(updates["w"], -0.1)  # the first average is z itself
