"""Mixture of experts against a loop over tokens, on one device and on eight, dropless and not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research import sharding, tree
from research.arguments import InputError
from research.flops import count
from research.models import gpt, t5
from research.models.experts import Experts
from research.models.layers import activate
from research.tasks import causal_lm, routing

MIXTRAL = dict(
    vocab_size=65,
    context=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    width=32,
    mlp_width=48,
    norm="rmsnorm",
    positions="rotary",
    mlp="swiglu",
    bias=False,
    tie_embeddings=False,
    experts=4,
)


def layer(capacity=None, top_k=2, kind="swiglu", precision="fp32", room=None):
    sizes = dict(count=4, top_k=top_k, capacity=capacity, kind=kind, precision=precision)
    sizes["room"] = room
    return Experts(8, 12, **sizes, std=0.5, out_std=0.5, rngs=nnx.Rngs(0))


def reference(moe, x, segments=None):
    """Token by token, choice by choice: the definition, with nothing sorted or gathered."""
    w = {n: np.asarray(getattr(moe.experts, n)[...], np.float64) for n in ("up", "down")}
    w |= (
        {"gate": np.asarray(moe.experts.gate[...], np.float64)}
        if hasattr(moe.experts, "gate")
        else {}
    )
    x, out = np.asarray(x, np.float64), np.zeros(x.shape)
    pairs = x.shape[1] * moe.top_k
    room = x.shape[1] if moe.capacity is None else max(1, int(moe.capacity * pairs / moe.count))
    room = moe.room or room
    dropped = 0
    for b in range(len(x)):
        logits = x[b] @ np.asarray(moe.router[...], np.float64)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        chosen = np.argsort(-p, axis=-1)[:, : moe.top_k]
        served = np.zeros(moe.count, int)
        for t in range(x.shape[1]):
            for k in range(moe.top_k):
                e = chosen[t, k]
                if segments is not None and segments[b, t] == 0:
                    continue
                if served[e] >= room:
                    dropped += 1
                    continue
                served[e] += 1
                h = x[b, t] @ w["up"][e]
                if "gate" in w:
                    h = h * np.asarray(activate(moe.kind, jnp.asarray(x[b, t] @ w["gate"][e])))
                else:
                    h = np.asarray(activate(moe.kind, jnp.asarray(h)))
                gate = p[t, e] / (p[t, chosen[t]].sum() if moe.top_k > 1 else 1)
                out[b, t] += gate * (h @ w["down"][e])
    return out, dropped


@pytest.mark.parametrize("capacity", [None, 0.5, 1.0, 100.0])
@pytest.mark.parametrize(("top_k", "kind"), [(2, "swiglu"), (1, "relu"), (3, "gelu")])
def test_experts_equal_a_loop_over_tokens(capacity, top_k, kind):
    moe = layer(capacity, top_k, kind)
    x = jax.random.normal(jax.random.key(1), (3, 10, 8))
    segments = jnp.ones((3, 10), int).at[1, 6:].set(0)
    got = moe(x, segments, train=True)
    want, _ = reference(moe, x, segments)
    real = np.asarray(segments) > 0
    np.testing.assert_allclose(np.asarray(got)[real], want[real], atol=2e-5)


def test_the_state_counts_what_was_served_and_dropped():
    moe = layer(0.5)
    x = jax.random.normal(jax.random.key(1), (3, 10, 8))
    moe(x, None, train=True)
    _, dropped = reference(moe, x)
    assert dropped > 0
    np.testing.assert_allclose(moe.dropped[...], dropped / 60, rtol=1e-6)
    np.testing.assert_allclose(moe.load[...].sum(), 2, rtol=1e-6)
    np.testing.assert_allclose(moe.importance[...].sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("room", [1, 3, 50])
def test_a_room_is_that_of_a_text_however_long_it_is(room):
    moe = layer(None, 1, "relu", room=room)
    for length in (6, 12):
        x = jax.random.normal(jax.random.key(1), (2, length, 8))
        want, dropped = reference(moe, x)
        np.testing.assert_allclose(moe(x, None, train=True), want, atol=2e-5)
        np.testing.assert_allclose(moe.dropped[...], dropped / (2 * length), atol=1e-6)
    with pytest.raises(InputError, match="room=3 needs experts, and capacity=None"):
        t5.make(vocab_size=97, experts=4, room=3)


def test_nothing_is_dropped_without_a_capacity_however_uneven_the_router():
    moe = layer()
    moe.router[...] = jnp.zeros((8, 4)).at[0, 2].set(50.0).at[0, 1].set(40.0)
    x = jnp.abs(jax.random.normal(jax.random.key(1), (2, 10, 8)))
    np.testing.assert_allclose(moe(x, None, train=True), reference(moe, x)[0], atol=2e-5)
    assert moe.load[...].max() == 1 and moe.dropped[...] == 0


def test_padding_takes_no_room():
    moe = layer(0.5)
    x = jax.random.normal(jax.random.key(1), (1, 10, 8))
    segments = jnp.zeros((1, 10), int).at[:, 5:].set(1)
    one = moe(x, segments, train=True)
    other = moe(x.at[:, :5].set(7.0), segments, train=True)
    np.testing.assert_array_equal(one[:, 5:], other[:, 5:])


@pytest.mark.parametrize(
    ("mesh", "capacity"),
    [
        pytest.param(dict(expert=2, tensor=2), None, marks=pytest.mark.core),
        pytest.param(dict(fsdp=2, expert=2), 1.0, marks=pytest.mark.slow),
        pytest.param(dict(expert=4), None, marks=pytest.mark.slow),
        pytest.param(dict(expert=4), 1.0, marks=pytest.mark.slow),
        pytest.param(dict(fsdp=2, expert=2), None, marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_are_equal_on_one_and_eight_devices(mesh, capacity):
    model = gpt.make(**MIXTRAL, capacity=capacity)
    task = causal_lm.make(vocab_size=65)
    variables = jax.tree.map(lambda x: x * 3, model.init(jax.random.key(0)))
    tokens = jax.random.randint(jax.random.key(1), (8, 16), 0, 65)
    batch = dict(tokens=tokens, targets=jnp.roll(tokens, -1, 1), weight=jnp.ones((8, 16)))

    def loss(params, batch):
        (total, weight), aux = task.loss(model, variables | {"params": params}, batch, None, True)
        return total / weight, aux.metrics["balance_loss"]

    step = jax.value_and_grad(loss, has_aux=True)
    (want, balance), grads = jax.jit(step)(variables["params"], batch)
    devices = sharding.make_mesh({"data": None} | mesh)
    placed, _ = sharding.param_shardings(devices, model.axes, variables["params"])
    assert "expert" in str(placed["layers"]["moe"]["experts"]["up"].spec)
    where = (placed, sharding.batch_sharding(devices, 8))
    with jax.set_mesh(devices):
        split = jax.jit(step, in_shardings=where, out_shardings=((None, None), placed))
        (got, other), others = split(variables["params"], batch)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(other, balance, rtol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads))
    for path, leaf in tree.flatten(grads).items():
        np.testing.assert_allclose(
            tree.flatten(others)[path], leaf, atol=1e-5 * scale, err_msg=path
        )


def test_the_balance_loss_is_least_at_balance_and_moves_the_router():
    even = dict(load=jnp.full(4, 0.5), importance=jnp.full(4, 0.25), z=jnp.ones(()))
    even["dropped"] = jnp.zeros(())
    one = even | dict(load=jnp.array([2.0, 0, 0, 0]), importance=jnp.array([1.0, 0, 0, 0]))
    weight = jnp.float32(5)
    assert routing({"moe": even}, weight, 1.0, 0.5)[0] == 5 * (2 + 0.5)
    total, health = routing({"moe": one}, weight, 1.0, 0.0)
    assert total == 5 * 8
    assert health["busiest_expert"][0] == 5 * 4 and health["idle_experts"][0] == 5 * 0.75
    model = gpt.make(**MIXTRAL)
    variables = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 16), 0, 65)

    def balance(params):
        _, state = model.apply(variables | {"params": params}, tokens, train=True)
        return routing(state, jnp.float32(1), 1.0, 0.0)[0]

    router = jax.grad(balance)(variables["params"])["layers"]["moe"]["router"]
    assert float(jnp.abs(router).max()) > 0


def test_rules_and_layerwise_optimizers_see_each_expert():
    variables = gpt.make(**MIXTRAL).init(jax.random.key(0))
    up = variables["params"]["layers"]["moe"]["experts"]["up"]
    names = tree.unrolled_paths("layers/moe/experts/up", up)
    assert len(names) == 8 and names[5] == "layers/1/moe/experts/1/up"
    values = tree.rule_values(((r"layers/1/moe/experts/3/", 2.0),), variables["params"], 1.0)
    value = values["layers"]["moe"]["experts"]["up"]
    assert value.shape == (2, 4, 1, 1) and value.sum() == 9 and value[1, 3] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(top_k=5), "top_k=5 of experts=4"),
        (dict(bias=True), "experts have no biases"),
        (dict(experts=None, capacity=1.0), "without experts"),
        (dict(base_width=16), "no rule for a router"),
        (dict(precision="fp8"), "products of experts have no such form"),
    ],
)
def test_what_experts_cannot_do_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        gpt.make(**(MIXTRAL | change))


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_what_comes_later_drops_nothing_before_it(top_k):
    model = gpt.make(**MIXTRAL, top_k=top_k, capacity=0.7)
    variables = jax.tree.map(lambda x: x * 3, model.init(jax.random.key(0)))
    tokens = jax.random.randint(jax.random.key(1), (4, 16), 0, 65)
    logits = jax.jit(lambda tokens: model.apply(variables, tokens)[0][:, :8])
    # By other tokens: a gradient does not see what is dropped.
    np.testing.assert_allclose(logits(tokens), logits(tokens.at[:, 8:].set(3)), atol=1e-5)


def test_a_cached_text_depends_on_no_padding():
    model = gpt.make(**MIXTRAL, capacity=1.0)
    variables = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (1, 16), 0, 65)

    def states(tokens):
        cache, _ = model.apply(variables, 1, 16, method="empty_cache")
        where = jnp.arange(tokens.shape[1])[None]
        return model.apply(variables, tokens, where, cache, method="decode_step")[0][0][:, :9]

    np.testing.assert_allclose(states(tokens[:, :9]), states(tokens), atol=1e-5)


def test_a_batch_that_does_not_divide_over_the_mesh_is_served():
    model = gpt.make(**MIXTRAL)
    variables = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (3, 16), 0, 65)
    want, _ = model.apply(variables, tokens)
    with jax.set_mesh(sharding.make_mesh({"data": None, "expert": 2})):
        got = jax.jit(lambda tokens: model.apply(variables, tokens)[0])(tokens)
    np.testing.assert_allclose(got[..., :65], want[..., :65], atol=1e-5)


def test_dropless_experts_count_top_k_feed_forwards_a_token_on_any_mesh():
    model = gpt.make(**MIXTRAL)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((8, 16), int)
    call = lambda v, tokens: model.apply(v, tokens)[0]  # noqa: E731
    dense = gpt.make(**(MIXTRAL | dict(experts=None)))
    plain = count(
        lambda v, t: dense.apply(v, t)[0], jax.eval_shape(dense.init, jax.random.key(0)), tokens
    )
    layers, pairs = 2, 8 * 16 * 2
    router = layers * 2 * 8 * 16 * 32 * 4
    # Of two choices the dense layer counts one already.
    want = plain.total + layers * 2 * (pairs // 2) * 3 * 32 * 48 + router
    assert count(call, variables, tokens).total == want
    for mesh in (dict(expert=2), dict(expert=4, tensor=2)):
        with jax.set_mesh(sharding.make_mesh({"data": None} | mesh)):
            assert count(call, variables, tokens).total == want
