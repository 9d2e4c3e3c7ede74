"""Gradient wrappers on a small regression, each against what its paper says."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.gradients import accumulate, layer_norms, loss_scale, noise_scale, plain, sam
from research.optim import chain, lr
from research.step import init_state, make_train_step
from research.tasks import Aux

WIDTH = 6


class State(NamedTuple):
    """What of a TrainState gradients look at."""

    params: Any
    model_state: Any = None
    frozen: Any = None
    grad_state: Any = None


def loss(variables, batch, key):
    """Squared error of a linear model in the precision of the inputs."""
    w = variables["params"]["w"].astype(batch["x"].dtype)
    error = (batch["x"] @ w).astype(jnp.float32) - batch["y"]
    return (jnp.sum(batch["weight"] * error**2), batch["weight"].sum()), Aux({}, {})


def make_batch(rows=32, seed=0, scale=1.0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, WIDTH))
    y = x @ np.arange(WIDTH) + rng.normal(size=rows)
    weight = jnp.ones(rows)
    return {"x": jnp.asarray(scale * x, dtype), "y": jnp.asarray(scale * y, jnp.float32),
            "weight": weight}  # fmt: skip


def state(**grad_state):
    return State({"w": jnp.linspace(-1, 1, WIDTH)}, {}, {}, grad_state)


KEY = jax.random.key(0)


def test_scaled_gradients_are_the_gradients():
    batch = make_batch()
    scaled = loss_scale.make(plain.make(loss))
    expected = plain.make(loss)(state(), batch, KEY).grads["w"]
    sums = scaled(state(loss_scale=loss_scale.init(1024.0)), batch, KEY)
    np.testing.assert_array_equal(sums.grads["w"], expected)  # a power of two costs nothing
    assert sums.metrics["loss_scale"][0] == 1024.0


def fp16_batch(size):
    return make_batch(dtype=jnp.float16) | {"weight": jnp.full(32, size, jnp.float32)}


def test_gradients_below_float16_survive_by_their_scale():
    """Without a scale the backward pass through float16 loses most of their bits."""
    tiny = fp16_batch(1e-9)
    bare = plain.make(loss)(state(), tiny, KEY).grads["w"]
    kept = loss_scale.make(plain.make(loss))(
        state(loss_scale=loss_scale.init(2.0**15)), tiny, KEY
    ).grads["w"]
    exact = plain.make(loss)(state(), tiny | {"x": make_batch()["x"]}, KEY).grads["w"]
    assert np.abs(np.asarray(bare) - exact).max() > 0.2 * np.abs(exact).max()
    np.testing.assert_allclose(kept, exact, rtol=0.02)


def test_an_overflow_costs_one_update_and_lowers_the_scale_and_is_no_streak():
    tx = chain([("lr", lr.make(1e-3, "constant"))])
    grad_fn = loss_scale.make(plain.make(loss), initial=2.0**15, grow_every=3)
    step = jax.jit(make_train_step(grad_fn, tx, seed=0))
    variables = {"params": {"w": jnp.linspace(-1, 1, WIDTH)}, "model_state": {}}
    first = init_state(variables, tx, grad_state={"loss_scale": loss_scale.init(2.0**15)})
    batch = fp16_batch(1.0)  # the cotangent of the product is 65504 and more at the first scales
    now, scales, refused = first, [], []
    for _ in range(14):
        now, metrics = step(now, batch)
        scales.append(float(metrics["loss_scale"]))
        refused.append(float(metrics["refused"]))
        assert metrics["refused_in_a_row"] == 0
    assert refused[0] == 1.0 and refused[-4:].count(0.0) >= 2
    fell = [b < a for a, b in zip(scales, scales[1:], strict=False)]
    assert fell == [bool(r) for r in refused[:-1]]
    assert any(b > a for a, b in zip(scales, scales[1:], strict=False))  # after three good steps
    assert jax.tree.all(jax.tree.map(lambda x: jnp.isfinite(x).all(), now.params))
    # A loss that is not finite is not the scale's fault: that is a streak.
    bad = batch | {"y": batch["y"].at[0].set(jnp.nan)}
    again, metrics = step(now, bad)
    assert metrics["refused_in_a_row"] == 1
    assert again.grad_state["loss_scale"].value == now.grad_state["loss_scale"].value


def test_accumulation_threads_the_state_of_an_inner_wrapper():
    inner = loss_scale.make(plain.make(loss), initial=8.0, grow_every=2)
    sums = accumulate.make(inner, 4)(state(loss_scale=loss_scale.init(8.0)), make_batch(), KEY)
    assert sums.grad_state["loss_scale"].value == 32.0  # grew after two, and after two more
    expected = plain.make(loss)(state(), make_batch(), KEY).grads["w"]
    np.testing.assert_allclose(sums.grads["w"], expected, rtol=1e-5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_takes_the_gradient_at_the_worst_point_of_the_ball(adaptive):
    batch, here = make_batch(), state()
    g = np.asarray(plain.make(loss)(here, batch, KEY).grads["w"], np.float64)
    w = np.asarray(here.params["w"], np.float64)
    size = np.abs(w) if adaptive else np.ones(WIDTH)
    worst = w + 0.1 * size**2 * g / np.linalg.norm(size * g)
    moved = here._replace(params={"w": jnp.asarray(worst, jnp.float32)})
    sums = sam.make(plain.make(loss), rho=0.1, adaptive=adaptive)(here, batch, KEY)
    np.testing.assert_allclose(
        sums.grads["w"], plain.make(loss)(moved, batch, KEY).grads["w"], rtol=1e-4
    )
    np.testing.assert_allclose(sums.loss, plain.make(loss)(here, batch, KEY).loss, rtol=1e-6)


def test_norms_of_layers_are_those_of_the_mean_gradient():
    grads = {
        "layers": {"a": jnp.arange(24.0).reshape(3, 2, 4), "b": jnp.ones((3, 2))},
        "embed": jnp.full((2, 2), 3.0),
        "norm": {"scale": jnp.ones(4)},
    }

    def given(state, batch, key):
        return plain.Gradients(grads, jnp.float32(1), jnp.float32(2), {}, {}, {})

    metrics = layer_norms.make(given)(None, {}, KEY).metrics
    found = {name: float(total / weight) for name, (total, weight) in metrics.items()}
    assert found["grad_norm/embed"] == 3.0 and found["grad_norm/norm"] == 1.0
    for layer in range(3):
        both = np.concatenate([grads["layers"][n][layer].ravel() for n in "ab"])
        np.testing.assert_allclose(
            found[f"grad_norm/layers/{layer}"], np.linalg.norm(both) / 2, rtol=1e-6
        )
    assert len(found) == 5
    unrolled = {"decoder": {"layers": {"0": {"w": jnp.ones(4)}, "1": {"w": jnp.zeros(4)}}}}
    grads = unrolled
    names = set(layer_norms.make(given)(None, {}, KEY).metrics)
    assert names == {"grad_norm/decoder/layers/0", "grad_norm/decoder/layers/1"}


def test_the_noise_scale_is_the_ratio_that_the_examples_give():
    """tr(S) / |G|^2 of a linear regression, where both follow from the examples themselves."""
    rows, w = 64, np.linspace(-1, 1, WIDTH)
    every = make_batch(rows=200_000, seed=1)
    x, y = (np.asarray(every[name], np.float64) for name in ("x", "y"))
    gradients = 2 * x * (x @ w - y)[:, None]
    expected = gradients.var(0).sum() / (gradients.mean(0) ** 2).sum()
    make = noise_scale.make(plain.make(loss), micro_batches=4, decay=0.999)

    @jax.jit
    def step(kept, seed):
        keys = jax.random.split(seed, 2)
        x = jax.random.normal(keys[0], (rows, WIDTH))
        y = x @ jnp.arange(WIDTH) + jax.random.normal(keys[1], (rows,))
        batch = {"x": x, "y": y, "weight": jnp.ones(rows)}
        sums = make(state(noise_scale=kept), batch, KEY)
        return sums.grad_state["noise_scale"], sums.metrics["noise_scale"][0]

    kept = noise_scale.init()
    for key in jax.random.split(jax.random.key(3), 400):
        kept, ratio = step(kept, key)
    assert abs(float(ratio) / expected - 1) < 0.1
    # A batch that is not finite leaves the averages alone.
    broken = make_batch(64) | {"y": jnp.full(64, jnp.nan)}
    after = make(state(noise_scale=kept), broken, KEY).grad_state["noise_scale"]
    jax.tree.map(np.testing.assert_array_equal, after, kept)


def test_noise_scale_accumulates_exactly():
    sums = noise_scale.make(plain.make(loss), 4)(
        state(noise_scale=noise_scale.init()), make_batch(), KEY
    )
    expected = plain.make(loss)(state(), make_batch(), KEY)
    np.testing.assert_allclose(sums.grads["w"], expected.grads["w"], rtol=1e-5)
    assert optax.tree.get(sums.metrics, "micro") is None
