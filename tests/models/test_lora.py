"""Low-rank adapters: equal at the start, equal when merged, and cheap where they promise to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import build, config, tree
from research.arguments import InputError
from research.models import bert, gpt, t5
from research.models.lora import lora, merged

GPT = dict(vocab_size=65, context=16, num_layers=3, num_heads=4, width=32)
T5 = dict(vocab_size=65, num_layers=2, num_heads=4, head_dim=8, width=32, mlp_width=48)
SWITCH = T5 | dict(num_layers=2, experts=4, capacity=1.0)
HOW = dict(rank=4, alpha=8.0, train=())
EVERY = (r"attention/(q|k|v|out)$", r"mlp/(up|down)$")
CASES = {
    "gpt": (gpt, GPT, EVERY),
    "unrolled": (gpt, GPT | dict(scan=False), EVERY),
    "bert": (bert, GPT, EVERY),
    "t5": (t5, T5, (*EVERY, r"cross/")),
    "switch": (t5, SWITCH, (*EVERY, r"experts/\d+/(up|down)$")),
}


def setup(name):
    module, arguments, targets = CASES[name]
    base = module.make(**arguments)
    model = lora(base, targets=targets, **HOW)
    variables = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 2, 16), 0, 65)
    inputs = tuple(tokens) if module is t5 else (tokens[0],)
    # b away from zero, so that the adapters do something.
    params = tree.map_named(
        lambda path, leaf: leaf + 0.1 if path.endswith("/b") else leaf, variables["params"]
    )
    return base, model, variables, variables | {"params": params}, inputs


@pytest.mark.parametrize(
    "name",
    [x if x == "gpt" else pytest.param(x, marks=pytest.mark.slow) for x in CASES],
)
def test_merged_weights_compute_what_the_adapters_do(name):
    base, model, start, moved, inputs = setup(name)
    call = lambda m, v: jax.jit(lambda v: m.apply(v, *inputs)[0][..., :65])(v)  # noqa: E731
    whole = {"params": merged(moved, 4, 8.0), "model_state": moved["model_state"]}
    np.testing.assert_allclose(call(base, whole), call(model, moved), atol=2e-4)
    plain = {"params": start["frozen"]["params"], "model_state": start["model_state"]}
    np.testing.assert_allclose(call(model, start), call(base, plain), atol=1e-6)
    assert float(jnp.abs(call(model, moved) - call(model, start)).max()) > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_every_adapter_has_a_gradient_and_axes_of_its_weight(name):
    _, model, _, moved, inputs = setup(name)

    def loss(params):
        return (model.apply(moved | {"params": params}, *inputs)[0][..., :65] ** 2).sum()

    grads = tree.flatten(jax.jit(jax.grad(loss))(moved["params"]))
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in grads.values())
    names = jax.tree_util.tree_leaves_with_path(model.axes, is_leaf=lambda x: isinstance(x, tuple))
    names = {tree.path_name(key): value for key, value in names}
    for path, leaf in tree.flatten(moved["params"]).items():
        assert len(names[path]) == leaf.ndim, path


def test_a_table_that_is_looked_up_takes_no_adapters():
    model = lora(t5.make(**T5), targets=(r"distances$",), **HOW)
    tokens = jnp.zeros((1, 4), int)
    with pytest.raises(InputError, match="is not multiplied by itself"):
        model.apply(model.init(jax.random.key(0)), tokens, tokens)


def run_of(*overrides):
    return build.build(config.load("configs/nlp/gpt.py:tiny", list(overrides)), jax.devices()[:1])


def test_the_base_has_no_gradient_no_optimizer_state_and_no_buffer():
    wide = ["config.model.width=128", "config.model.num_layers=4", "config.model.num_heads=4"]
    rank = ["config.lora.rank=2", "config.lora.targets=('attention/[qv]$',)"]
    full, small = run_of(*wide), run_of(*wide, *rank)
    count = lambda t: sum(leaf.size for leaf in jax.tree.leaves(t))  # noqa: E731
    adapters = count(small.abstract.params)
    assert adapters == 4 * 2 * 2 * (128 + 128)
    assert count(small.abstract.frozen) == count(full.abstract.params)
    assert count(small.abstract.opt_state) < 2 * adapters + 10

    def temporary(run):
        step = jax.jit(run.train_step, donate_argnums=0)
        with jax.set_mesh(run.mesh):
            return step.lower(run.abstract, run.source.spec).compile().memory_analysis()

    ours, theirs = temporary(small), temporary(full)
    # What is not there: gradients of the base.
    saved = 4 * (count(full.abstract.params) - adapters)
    assert ours.temp_size_in_bytes < theirs.temp_size_in_bytes - 0.5 * saved


def test_training_moves_the_adapters_and_what_train_names_alone():
    run = run_of("config.lora.rank=2", r"config.lora.train=('^norm/',)")
    state = build.init(run)
    with jax.set_mesh(run.mesh):
        step = build.jit_train_step(run, donate=False)
        new, _ = step(state, next(build.batches(run, run.source)))
    assert set(new.params) == {"lora", "norm"}
    moved = tree.flatten(jax.tree.map(lambda a, b: (a != b).any(), new.params, state.params))
    assert moved["norm/scale"] and moved["lora/layers/attention/q/b"]
    jax.tree.map(np.testing.assert_array_equal, new.frozen, state.frozen)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["config.lora.targets=('nothing',)"], "'nothing' matches no parameter"),
        (["config.lora.targets=('[',)"], "is not a regex"),
        (["config.lora.targets=('norm1/scale',)"], "is no matrix"),
        (["config.lora.targets=('^embed$',)"], "is not multiplied by itself"),
        (["config.lora.targets=('layers/0/',)"], "set config.model.scan=False"),
        (["config.freeze=('norm',)"], "leave out config.freeze"),
    ],
)
def test_what_adapters_cannot_do_is_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        run_of("config.lora.rank=2", *overrides)
