"""Penalties and clipping against the gradient of what they stand for, layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.arguments import InputError
from research.optim import (
    agc,
    chain,
    clip_block,
    clip_parameter,
    clip_value,
    l1,
    l2,
    layer_decay,
    lr,
    multiply,
    mup,
    orthogonal,
    proximal_l1,
    spectral,
)


def draw(seed, **shapes):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: jax.random.normal(k, s) for (name, s), k in zip(shapes.items(), keys, strict=True)
    }


# Scanned layers: three of each; and what is not in a layer.
PARAMS = {
    "layers": {
        "attention": draw(0, q=(3, 4, 2, 3), out=(3, 2, 3, 4), q_bias=(3, 2, 3)),
        "mlp": draw(1, up=(3, 4, 8)),
    },
    "embed": jax.random.normal(jax.random.key(2), (8, 4)),
    "head": jax.random.normal(jax.random.key(3), (4, 8)),
}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)
MATRICES = (("attention", "q", (4, 6)), ("attention", "out", (6, 4)), ("mlp", "up", (4, 8)))


def run(tx, updates=ZEROS, params=PARAMS, times=1, **extra):
    state = tx.init(params)
    for _ in range(times):
        new, state = optax.with_extra_args_support(tx).update(updates, state, params, **extra)
    return new


def test_l1_and_l2_add_the_gradient_of_their_penalty():
    penalty = lambda p: sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(p))  # noqa: E731
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, 0.1 * b, rtol=1e-6),
        run(l1.make(0.1)),
        jax.grad(penalty)(PARAMS),
    )
    jax.tree.map(
        lambda a, p: np.testing.assert_allclose(a, 0.1 * p, rtol=1e-6), run(l2.make(0.1)), PARAMS
    )


def test_proximal_l1_solves_its_proximal_problem():
    """argmin_z |z - (p + u)|^2 / 2 + rate x lr x |z|, by a fine grid."""
    tx = chain([("lr", lr.make(0.5, "constant")), ("proximal_l1", proximal_l1.make(0.4))])
    gradient, params = jnp.array([0.3, -0.2, 1.0, 0.0]), jnp.array([1.0, 0.05, 0.4, -0.1])
    updates, _ = tx.update(gradient, tx.init(params), params)
    grid = np.linspace(-2, 2, 400_001)
    for g, p, u in zip(gradient, params, updates, strict=True):
        cost = (grid - float(p - 0.5 * g)) ** 2 / 2 + 0.4 * 0.5 * np.abs(grid)
        assert abs(float(p + u) - grid[cost.argmin()]) < 2e-5
    assert (np.asarray(params + updates) == 0).any()  # exactly
    with pytest.raises(InputError, match="put it last"):
        run(proximal_l1.make())


def test_the_orthogonality_penalty_adds_its_gradient_per_layer():
    def penalty(w):
        w = w if w.shape[0] >= w.shape[1] else w.T
        return jnp.sum((w.T @ w - jnp.eye(w.shape[1])) ** 2) / 4

    found = run(orthogonal.make(0.1))
    for block, name, shape in MATRICES:
        for layer in range(3):
            w = PARAMS["layers"][block][name][layer]
            expected = 0.1 * jax.grad(lambda x, s=shape: penalty(x.reshape(s)))(w)
            actual = found["layers"][block][name][layer]
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert not found["embed"].any() and not found["layers"]["attention"]["q_bias"].any()


def test_the_spectral_penalty_adds_its_gradient_per_layer():
    found = run(spectral.make(0.1), times=200)
    for block, name, shape in MATRICES:
        for layer in range(3):
            u, s, v = np.linalg.svd(PARAMS["layers"][block][name][layer].reshape(shape))
            expected = 0.1 * s[0] * np.outer(u[:, 0], v[0])
            actual = found["layers"][block][name][layer].reshape(shape)
            np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
    assert not found["head"].any()


def test_clipping_by_value_norm_and_rms_bounds_each_parameter_of_each_layer():
    gradients = jax.tree.map(lambda p: 10.0 * p, PARAMS)
    assert np.abs(run(clip_value.make(0.5), gradients)["embed"]).max() == 0.5
    by_norm, by_rms = (
        run(part.make(0.5), gradients)["layers"]["attention"]["q"]
        for part in (clip_parameter, clip_block)
    )
    np.testing.assert_allclose(np.linalg.norm(by_norm.reshape(3, -1), axis=1), 0.5, rtol=1e-5)
    np.testing.assert_allclose(np.sqrt((np.asarray(by_rms) ** 2).mean((1, 2, 3))), 0.5, rtol=1e-5)
    small = jax.tree.map(lambda p: 1e-3 * p, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, run(clip_parameter.make(0.5), small), small)
    assert np.isfinite(run(clip_parameter.make(0.5))["embed"]).all()  # of a zero gradient


def test_adaptive_clipping_bounds_each_unit_by_its_weights():
    gradients = jax.tree.map(lambda p: 10.0 * p[..., ::-1], PARAMS)
    found = run(agc.make(0.01), gradients)
    for block, name, shape in MATRICES:
        for layer in range(3):
            w, g = (
                np.asarray(x["layers"][block][name][layer]).reshape(shape) for x in (PARAMS, found)
            )
            bound = 0.01 * np.linalg.norm(w, axis=0)
            np.testing.assert_allclose(np.linalg.norm(g, axis=0), bound, rtol=1e-4)
    np.testing.assert_array_equal(found["head"], gradients["head"])  # as in the paper


def test_learning_rates_of_their_own_go_by_path_and_layer():
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    found = run(multiply.make(((r"layers/1/mlp", 0.5), (r"^embed$", 0.0))), ones)
    assert list(found["layers"]["mlp"]["up"][:, 0, 0]) == [1.0, 0.5, 1.0]
    assert not found["embed"].any() and found["head"].all()


def test_layer_wise_decay_shrinks_towards_the_input_scanned_or_not():
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    found = run(layer_decay.make(0.5, num_layers=3), ones)
    assert list(found["layers"]["mlp"]["up"][:, 0, 0]) == [0.125, 0.25, 0.5]
    assert found["embed"][0, 0] == 0.0625 and found["head"][0, 0] == 1.0
    unrolled = {
        "layers": {str(i): {"w": jnp.ones((2, 2))} for i in range(3)},
        "embed": jnp.ones(2),
    }
    found = run(layer_decay.make(0.5, num_layers=3), unrolled, unrolled)
    assert [float(found["layers"][str(i)]["w"][0, 0]) for i in range(3)] == [0.125, 0.25, 0.5]


def test_mup_shrinks_the_steps_of_hidden_matrices_only():
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    found = run(mup.make(width=512, base_width=64), ones)
    for block, name, _ in MATRICES:
        assert (found["layers"][block][name] == 0.125).all()
    assert (found["layers"]["attention"]["q_bias"] == 1).all() and (found["head"] == 1).all()
    with pytest.raises(InputError, match="base_width"):
        mup.make()


@pytest.mark.parametrize("part", [l1, l2, proximal_l1, multiply])
@pytest.mark.parametrize("rule", [("(", 1.0), ("a",), (1, 2), "ab"])
def test_a_rule_that_is_none_is_refused_by_name(part, rule):
    with pytest.raises(InputError, match="rules"):
        part.make(rules=(rule,))
