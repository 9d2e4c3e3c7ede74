"""What holds for every direction: a stacked layer is a layer, a mesh changes nothing, and numbers
may be tracers."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research import lookup, optim, sharding, tree
from research.arguments import InputError
from research.build import make_part

OURS = set(lookup.names("optim"))
# Files with tests of their own (test_optim, test_lr, test_penalties).
NO_DIRECTION = {
    "agc", "clip", "clip_block", "clip_parameter", "clip_value", "decay", "l1", "l2",
    "layer_decay", "lr", "multiply", "mup", "orthogonal", "plateau", "proximal_l1", "spectral",
}  # fmt: skip
DIRECTIONS = sorted(OURS - NO_DIRECTION)
# Options under which the few numbers of a test meet all branches.
OPTIONS = {
    "adafactor": dict(min_size=1),
    "muon": dict(rest=("bias|head|embed",)),
    "soap": dict(frequency=2, max_dim=4),
    "trust_ratio": dict(rules=(("layers/1/", 0), ("bias", 0))),
    "schedule_free": dict(decay=0.1, rules=(("layers/1/", 2.0),)),
    "adaptive_grad_clip": dict(clipping=0.01),
    "clip_by_block_rms": dict(threshold=0.1),
    "clip_by_global_norm": dict(max_norm=0.1),
    "ema": dict(decay=0.9),
    "trace": dict(decay=0.9),
    "scale": dict(step_size=0.1),
}
# A part of optax's that draws noise for each leaf.
RANDOM = {"add_noise", "noisy_sgd"}


def part(name, **options):
    options = OPTIONS.get(name, {}) | options
    return lookup.find("optim", name)(**options) if name in OURS else make_part(name, options)


def normal(shapes, seed):
    rng = np.random.default_rng(seed)
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s)), shapes, is_leaf=is_shape)


def extra(count):
    return {"learning_rate": 0.1 / (count + 1.0), "value": 1.0 + count}


def run(txs, params, gradients):
    """The updates that each of some parts makes of given gradients, at parameters that stand
    still: {name: updates}, the updates stacked."""
    txs = {name: optax.with_extra_args_support(tx) for name, tx in txs.items()}

    def step(states, given):
        count, g = given
        both = {n: tx.update(g, states[n], params, **extra(count)) for n, tx in txs.items()}
        return {n: state for n, (_, state) in both.items()}, {n: u for n, (u, _) in both.items()}

    states = {name: tx.init(params) for name, tx in txs.items()}
    # A loop, not unrolled: a program of one update.
    gradients = jax.tree.map(lambda *g: jnp.stack(g), *gradients)
    count = jnp.arange(len(jax.tree.leaves(gradients)[0]), dtype=float)
    return jax.lax.scan(step, states, (count, gradients))[1]


def compiled(function, *arguments, **options):
    """One program for all parts: a compilation each would take a minute."""
    fast = {"xla_backend_optimization_level": 0}
    return jax.jit(function, compiler_options=fast, **options)(*arguments)


def optax_names():
    """The names that a config may use, with what they can be built from."""
    found, leaf = {}, {"w": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    for name in sorted(set(dir(optax)) - OURS - RANDOM):
        if name.startswith("_"):
            continue
        for options in (OPTIONS.get(name, {}), {"learning_rate": 0.1}):
            try:
                tx = lookup.find("optim", name, optax)(**options)
                tx = optax.with_extra_args_support(tx)
                update = lambda x, tx=tx: tx.update(x, tx.init(x), x, **extra(0.0))  # noqa: E731
                jax.eval_shape(update, leaf)
            except (InputError, TypeError, AttributeError, ValueError):
                continue
            found[name] = options
            break
    return found


OPTAX = optax_names()


def unrolled(stacked):
    layers = {str(i): jax.tree.map(lambda x, i=i: x[i], stacked["layers"]) for i in range(2)}
    return {"layers": layers, "head": stacked["head"]}


@functools.cache
def scanned_and_unrolled():
    with jax.enable_x64(True):
        shapes = {"layers": {"w": (2, 4, 6), "bias": (2, 4)}, "head": (4, 6)}
        params, *gradients = (normal(shapes, seed) for seed in range(6))
        # One layer unlike the other: parts that look at norms would mix them.
        louder = lambda x: x * np.array([1.0, 30.0]).reshape(2, *[1] * (x.ndim - 1))  # noqa: E731
        gradients = [{**g, "layers": jax.tree.map(louder, g["layers"])} for g in gradients]
        txs = {name: part(name, **OPTAX.get(name, {})) for name in [*DIRECTIONS, *OPTAX]}
        return (
            compiled(functools.partial(run, txs), params, gradients),
            compiled(functools.partial(run, txs), unrolled(params), list(map(unrolled, gradients))),
        )


@pytest.mark.parametrize("name", [*DIRECTIONS, *OPTAX])
def test_scanned_layers_are_updated_as_unrolled_ones(name):
    scanned, apart = (tree.flatten(updates[name]) for updates in scanned_and_unrolled())
    for path, u in apart.items():
        parts = path.split("/")
        stacked = scanned[path] if path == "head" else scanned[f"layers/{parts[2]}"]
        expected = stacked if path == "head" else stacked[:, int(parts[1])]
        np.testing.assert_allclose(u, expected, rtol=1e-7, atol=1e-12, err_msg=path)


def test_all_parts_of_optax_that_look_at_norms_are_tried():
    assert set(optim.NORMWISE) - OURS - set(OPTAX) <= {"scale_by_factored_rms"}  # lookup has it not
    assert len(OPTAX) > 50


def test_no_file_of_ours_is_taken_layer_by_layer_twice():
    assert not set(optim.NORMWISE) & OURS, "our parts do it themselves; drop the name"


AXES = {
    "embed": ("vocab", "embed"),
    "layers": {
        "attention": {
            "q": ("layers", "embed", "heads", "head_dim"),
            "out": ("layers", "heads", "head_dim", "embed"),
        },
        "mlp": {"up": ("layers", "embed", "mlp")},
        "norm": {"scale": ("layers", "norm")},
    },
}
SIZES = dict(vocab=16, embed=8, layers=2, heads=2, head_dim=4, mlp=16, norm=8)


def shapes_of(sizes):
    is_names = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(lambda names: tuple(sizes[n] for n in names), AXES, is_leaf=is_names)


def mesh():
    return sharding.make_mesh(dict(data=1, fsdp=4, tensor=2))


@functools.cache
def on_one_device_and_on_eight():
    with jax.enable_x64(True):
        params, *gradients = (normal(shapes_of(SIZES), seed) for seed in range(4))
        # SOAP without sides whose first statistics have no full rank.
        more = {"soap": {"max_dim": 8}, "trust_ratio": {"rules": ()}}
        txs = {name: part(name, **more.get(name, {})) for name in DIRECTIONS}
        expected = compiled(functools.partial(run, txs), params, gradients)
        where, _ = sharding.param_shardings(mesh(), AXES, params)
        abstract = sharding.with_shardings(params, where)
        states = {}
        for name, tx in txs.items():
            shapes = jax.eval_shape(tx.init, params)
            states[name], _ = sharding.state_shardings(mesh(), shapes, abstract)

        def step(states, params, g, count):
            new = {}
            for name, tx in txs.items():
                tx = optax.with_extra_args_support(tx)
                new[name] = tx.update(g, states[name], params, **extra(count))
            return {n: u for n, (u, _) in new.items()}, {n: s for n, (_, s) in new.items()}

        out = ({name: where for name in txs}, states)
        options = {"xla_backend_optimization_level": 0}
        update = jax.jit(step, out_shardings=out, compiler_options=options)
        state = compiled(lambda p: {n: tx.init(p) for n, tx in txs.items()}, params)
        params, state = jax.device_put(params, where), jax.device_put(state, states)
        found = []
        with jax.set_mesh(mesh()):
            for count, g in enumerate(gradients):
                updates, state = update(state, params, jax.device_put(g, where), float(count))
                found.append(updates)
        return expected, jax.tree.map(lambda *u: np.stack(u), *found), state, params


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_sharded_update_equals_that_of_one_device(name):
    expected, found, state, params = on_one_device_and_on_eight()
    for path, u in tree.flatten(found[name]).items():
        wanted = tree.flatten(expected[name])[path]
        np.testing.assert_allclose(u, wanted, rtol=1e-6, atol=1e-9, err_msg=path)
    for path, leaf in tree.flatten(state[name]).items():
        for owner, p in tree.flatten(params).items():
            if path.endswith(f"/{owner}") and leaf.shape == p.shape:
                assert leaf.sharding.shard_shape(leaf.shape) == p.sharding.shard_shape(p.shape)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_no_large_statistic_is_replicated(name):
    """At the size of a real model."""
    sizes = dict(vocab=4096, embed=512, layers=2, heads=8, head_dim=64, mlp=2048, norm=512)
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    abstract = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    params = jax.tree.map(abstract, shapes_of(sizes), is_leaf=is_shape)
    where, _ = sharding.param_shardings(mesh(), AXES, params)
    state = jax.eval_shape(lookup.find("optim", name)().init, params)
    placed, notes = sharding.state_shardings(mesh(), state, sharding.with_shardings(params, where))
    assert not notes
    for path, leaf in tree.flatten(sharding.with_shardings(state, placed)).items():
        if leaf.size > sharding.SMALL:
            shards = leaf.size // np.prod(leaf.sharding.shard_shape(leaf.shape))
            # A square statistic has the rows of one axis: as many shards as that one.
            assert shards == 8 or (re.search("/(statistics|bases)/", path) and shards > 1), path


@functools.cache
def together_and_alone():
    with jax.enable_x64(True):
        shapes = {"layers": {"w": (2, 4, 4)}, "head": (4, 4)}
        params, *gradients = (normal(shapes, seed) for seed in range(4))
        settings = {}
        for name in DIRECTIONS:
            arguments = inspect.signature(lookup.find("optim", name)).parameters.values()
            numbers = {a.name: a.default for a in arguments if isinstance(a.default, float)}
            changed = {n: v * 0.9 + 0.05 for n, v in numbers.items()}
            settings[name] = [numbers, changed]

        def both():
            together, alone = {}, {}
            for name, (first, second) in settings.items():
                one = lambda numbers, n=name: run({n: part(n, **numbers)}, params, gradients)[n]  # noqa: E731
                numbers = jax.tree.map(lambda *v: jnp.array(v), first, second)
                together[name] = jax.vmap(one)(numbers)
                alone[name] = jax.tree.map(lambda *u: jnp.stack(u), one(first), one(second))
            return together, alone

        return compiled(both)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_numbers_of_every_direction_may_be_tracers(name):
    together, alone = (tree.flatten(updates[name]) for updates in together_and_alone())
    for path, u in alone.items():
        assert np.abs(u[0] - u[1]).max() > 1e-4
        np.testing.assert_allclose(together[path], u, rtol=1e-7, atol=1e-12, err_msg=path)
