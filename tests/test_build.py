"""A run as objects: what is frozen, averaged, ruled, and which numbers may be tracers."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from research import build, config, optim, tree
from research.arguments import InputError

TINY = ["config.data.context=16", "config.steps=12", "config.batch=4"]


def make(*overrides):
    given = [*TINY, *(f"config.{text}" for text in overrides)]
    return build.build(config.load("configs/nlp/gpt.py:tiny", given), jax.devices()[:1])


def steps(run, count=3):
    step, states = build.jit_train_step(run, donate=False), [build.init(run)]
    with jax.set_mesh(run.mesh):
        batches = build.batches(run, run.source)
        for _ in range(count):
            state, metrics = step(states[-1], next(batches))
            states.append(state)
        batches.close()
    return states, metrics


def size(values):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(values))


def test_frozen_parameters_stay_and_carry_no_optimizer_state_and_no_average():
    whole, part = make("ema=0.9"), make("ema=0.9", r"freeze=('embed$', '/attention/')")
    states, metrics = steps(part)
    first, last = states[0], states[-1]
    jax.tree.map(np.testing.assert_array_equal, first.frozen, last.frozen)
    frozen = set(tree.flatten(first.frozen["params"]))
    assert "embed" in frozen and "layers/attention/q" in frozen and "layers/mlp/up" not in frozen
    all_params = tree.flatten(whole.abstract.params)
    assert frozen | set(tree.flatten(first.params)) == set(all_params)
    bytes_frozen = size(first.frozen)
    assert size(build.init(whole).opt_state) - size(first.opt_state) == 2 * bytes_frozen  # m and v
    assert size(build.init(whole).ema) - size(first.ema) == bytes_frozen
    assert metrics["grad_norm"] > 0 and not np.array_equal(
        first.params["layers"]["mlp"]["up"], last.params["layers"]["mlp"]["up"]
    )
    # The same weights, and the same first loss, as a model of which nothing is frozen.
    assert np.isclose(steps(whole, 1)[1]["loss"], steps(part, 1)[1]["loss"], rtol=1e-6)
    assert "frozen" in build.describe(part)


def test_frozen_parameters_are_sharded_as_ever():
    run = build.build(
        config.load(
            "configs/nlp/gpt.py:tiny",
            [*TINY, "config.mesh.fsdp=4", "config.mesh.tensor=2", "config.freeze=embed$"],
        )
    )
    assert tuple(run.abstract.frozen["params"]["embed"].sharding.spec) == ("tensor", "fsdp")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["freeze=nothing"], "'nothing' matches no parameter; there are"),
        (["freeze=layers/0/"], "only layers 0 match; set config.model.scan=False"),
        (["freeze=embed$", "optim.decay.rules=(('embed$', 2.0),)"], "frozen parameters only"),
        (["swa.start=12"], "config.swa.start=12 is not within 12 steps"),
        (["swa.start=3", "ema=0.9"], "keep one average"),
        (["optim.chain=adam,mup,lr"], "must agree on mup"),
        (["model.base_width=16"], "must agree on mup"),
        (["optim.chain=adam,lr,schedule_free"], "must agree on schedule_free"),
        (["gradients.chain=schedule_free"], "must agree on schedule_free"),
        (
            ["optim.chain=schedule_free,adam,lr", "gradients.chain=schedule_free"],
            "adam belongs in front of schedule_free",
        ),
        (["optim.chain=clip,adam,l2,lr"], "l2 belongs in front of adam"),
        (["optim.chain=adam,lr,orthogonal"], "orthogonal belongs in front of lr"),
        (["optim.chain=adam,lr,decay"], "decay belongs in front of lr"),
        (["optim.chain=decay,adam,lr"], "adam belongs in front of decay; in front it is L2"),
        (["optim.chain=lr,adam"], "adam belongs in front of lr"),
        (["optim.chain=adam,lion,lr"], "directions adam and lion; keep one"),
        (["optim.chain=muon,mup,lr", "model.base_width=16"], "mup is for adagrad"),
        (["gradients.chain=loss_scale,accumulate"], "accumulate belongs in front of loss_scale"),
        (["precision=bf16_params", "gradients.chain=sam"], "less than bfloat16 can hold"),
        (
            ["optim.chain=adam,lr,schedule_free", "gradients.chain=schedule_free"],
            "adam has a momentum of its own",
        ),
        (
            ["optim.chain=rmsprop,lr", "optim.rmsprop.centered=True", "optim.state_dtype=fp8"],
            "subtracts two statistics",
        ),
        (["freeze=('.*',)"], "nothing is left to train"),
        (["optim.clip.max_norm=0"], "expected above 0"),
        (["optim.state_dtype=fp4"], "is not an option"),
        (["optim.lr.schedule=cosin"], "did you mean 'cosine'"),
        (["optim.chain=clip,adamm,lr"], "did you mean 'adam'"),
        (["precision=fp9"], "did you mean 'fp8'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(overrides, message):
    with pytest.raises(InputError, match=message):
        make(*overrides)


def test_a_rule_that_matches_nothing_is_named(capsys):
    make("optim.decay.rules=(('bais$', 0.0),)")
    assert "config.optim.decay.rules: 'bais$' matches no parameter" in capsys.readouterr().err


def test_float16_brings_its_loss_scale():
    run = make("precision=fp16", "gradients.chain=accumulate")
    assert run.config.gradients.chain == ("accumulate", "loss_scale")
    _, metrics = steps(run, 2)
    assert metrics["loss_scale"] == 2.0**10 and metrics["refused"] == 0


def test_stochastic_weight_averaging_is_the_mean_of_the_weights_at_its_steps():
    run = make("swa.start=2", "swa.every=2")
    states, _ = steps(run, 7)
    weights = [np.asarray(state.params["embed"], np.float64) for state in states]
    for step, expected in ((1, weights[1]), (2, weights[2]), (3, weights[2]),
                           (4, (weights[2] + weights[4]) / 2),
                           (7, (weights[2] + weights[4] + weights[6]) / 3)):  # fmt: skip
        np.testing.assert_allclose(states[step].ema["params"]["embed"], expected, atol=1e-7)
    assert build.kept(run.config) == "ema"
    # After a rollback that left out steps 4 and 6, the average goes on with what it holds.
    with jax.set_mesh(run.mesh):
        batch = next(build.batches(run, run.source))
        after, _ = build.jit_train_step(run, donate=False)(states[3]._replace(step=7), batch)
    mean = (weights[2] + np.asarray(after.params["embed"], np.float64)) / 2
    np.testing.assert_allclose(after.ema["params"]["embed"], mean, atol=1e-7)


@pytest.mark.slow
def test_a_population_trains_as_its_members_alone():
    """The step under vmap, over numbers of the optimizer: one program, three runs."""
    run = make("optim.chain=clip,adam,decay,lr")
    numbers = {
        "optim.lr.peak": jnp.array([1e-3, 3e-3, 1e-2]),
        "optim.adam.b1": jnp.array([0.9, 0.8, 0.95]),
        "optim.decay.rate": jnp.array([0.0, 0.1, 0.3]),
        "optim.clip.max_norm": jnp.array([1.0, 0.1, 10.0]),
    }

    def step(numbers, state, batch):
        return build.make_step(run.config, run.model, run.task, numbers)[1](state, batch)

    together = jax.jit(jax.vmap(step, (0, 0, None)))
    state = build.init(run)
    states = jax.tree.map(lambda x: jnp.stack([x] * 3), state)
    batches = [next(build.batches(run, run.source, i)) for i in range(3)]
    for batch in batches:
        states, metrics = together(numbers, states, batch)
    for i in range(3):
        values = run.config.to_dict()
        for name, number in numbers.items():
            _, part, key = name.split(".")
            values["optim"][part][key] = float(number[i])
        member = ml_collections.FrozenConfigDict(values)
        alone, one = jax.jit(build.make_step(member, run.model, run.task)[1]), state
        for batch in batches:
            one, single = alone(one, batch)
        np.testing.assert_allclose(metrics["loss"][i], single["loss"], rtol=1e-5)
    assert len(set(np.asarray(metrics["loss"]).tolist())) == 3


@pytest.mark.parametrize("name", ["optim.lion.b1", "model.dropout", "ema", "optim.lr.paek"])
def test_a_number_that_would_change_nothing_is_refused(name):
    run = make()
    with pytest.raises(InputError, match="it would change nothing"):
        build.make_step(run.config, run.model, run.task, {name: 0.5})


def test_optax_parts_that_look_at_norms_are_applied_layer_by_layer():
    stacked = {"layers": {"w": jnp.stack([jnp.ones((2, 2)), 3 * jnp.ones((2, 2))])}}
    tx = build.make_part("scale_by_trust_ratio", {})
    assert "scale_by_trust_ratio" in optim.NORMWISE
    updates, _ = tx.update(stacked, tx.init(stacked), stacked)
    np.testing.assert_allclose(updates["layers"]["w"], stacked["layers"]["w"])  # ratio 1 for each


def test_the_learning_rates_of_a_run_are_those_of_its_updates():
    run = make("optim.lr.warmup=3")
    found = build.learning_rates(run)
    _, metrics = steps(run, 5)
    assert found.shape == (12,) and np.isclose(found[4], metrics["learning_rate"])
    assert found.argmax() == 2
