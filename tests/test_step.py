"""The step: equal on one and eight devices, exact under accumulation, and safe from a NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research import sharding
from research.arguments import InputError
from research.gradients import accumulate, plain
from research.models import gpt
from research.optim import adam, clip, decay, lr
from research.step import init_state, make_train_step
from research.tasks import causal_lm

MESHES = [
    dict(data=8),
    dict(fsdp=8),
    dict(data=2, tensor=4),
    dict(data=4, fsdp=2),
    dict(fsdp=2, tensor=4),
    dict(data=2, fsdp=2, tensor=2),
]
ONCE = (dict(data=8), dict(data=2, fsdp=2, tensor=2))  # in every run of the tests


def make(micro_batches=1, ema=None, **shape):
    model = gpt.make(
        vocab_size=65, context=16, **(dict(num_layers=2, num_heads=4, width=32) | shape)
    )
    task = causal_lm.make(vocab_size=65, chunk=8)
    tx = optax.named_chain(
        ("clip", clip.make(1.0)),
        ("adam", adam.make()),
        ("decay", decay.make(0.1, ((r"bias$", 0.0),))),
        ("lr", lr.make(1e-2, warmup=2, steps=100)),
    )
    grad_fn = plain.make(lambda v, batch, key: task.loss(model, v, batch, key, True))
    if micro_batches > 1:
        grad_fn = accumulate.make(grad_fn, micro_batches)
    step = make_train_step(grad_fn, tx, seed=0, ema=ema)
    return (
        model,
        tx,
        step,
        lambda: init_state(model.init(jax.random.key(0)), tx, None if ema is None else "ema"),
    )


def make_batches(count, rows=16):
    rng = np.random.default_rng(0)
    for _ in range(count):
        tokens = rng.integers(0, 65, (rows, 17)).astype(np.int32)
        # Very unequal weights: a mean of means would show.
        weight = (rng.random((rows, 16)) < np.linspace(0.05, 1, rows)[:, None]).astype(np.float32)
        yield {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weight": weight}


def run(mesh_sizes, steps=5, **options):
    devices = jax.devices() if mesh_sizes else jax.devices()[:1]
    mesh = sharding.make_mesh(mesh_sizes, devices)
    model, _, step, init = make(**options)
    shapes = jax.eval_shape(init)
    placed, _ = sharding.param_shardings(mesh, model.axes, shapes.params)
    params = sharding.with_shardings(shapes.params, placed)
    where, notes = sharding.state_shardings(mesh, shapes, params)
    assert not notes
    rows = sharding.batch_sharding(mesh, 16)
    with jax.set_mesh(mesh):
        state = jax.jit(init, out_shardings=where)()
        step = jax.jit(
            step, in_shardings=(where, rows), out_shardings=(where, None), donate_argnums=0
        )
        losses = []
        for batch in make_batches(steps):
            state, metrics = step(state, jax.device_put(batch, rows))
            losses.append(float(metrics["loss"]))
    return losses, state, step


@pytest.fixture(scope="module")
def alone():
    return run({})


@pytest.mark.core
@pytest.mark.parametrize(
    "sizes",
    [x if x in ONCE else pytest.param(x, marks=pytest.mark.slow) for x in MESHES],
    ids=str,
)
def test_loss_is_equal_on_one_and_eight_devices(sizes, alone, capfd):
    losses, state, step = run(sizes)
    np.testing.assert_allclose(losses, alone[0], atol=1e-5, rtol=0)
    assert step._cache_size() == 1
    # A gather from a table sharded two ways makes the compiler copy it whole, and it says so.
    assert "rematerialization" not in capfd.readouterr().err
    if "tensor" in sizes and "fsdp" in sizes:
        held = state.opt_state["adam"].mu["layers"]["mlp"]["up"].sharding.spec
        assert tuple(held) == (None, "fsdp", "tensor")


@pytest.mark.slow
def test_grouped_queries_and_rotary_are_equal_on_eight_devices_too():
    llama = dict(
        norm="rmsnorm", positions="rotary", mlp="swiglu", bias=False, num_kv_heads=2,
        tie_embeddings=False, mlp_width=64,
    )  # fmt: skip
    one, _, _ = run({}, steps=3, **llama)
    many, _, _ = run(dict(data=2, fsdp=2, tensor=2), steps=3, **llama)
    np.testing.assert_allclose(many, one, atol=1e-5, rtol=0)


@pytest.mark.core
def test_accumulated_gradient_equals_the_large_batch():
    batch = next(make_batches(1))
    _, _, _, init = make()
    state = init()
    gradients = []
    for parts in (1, 4):
        model, _, _, _ = make()
        task = causal_lm.make(vocab_size=65)
        grad_fn = plain.make(lambda v, b, k: task.loss(model, v, b, k, True))  # noqa: B023
        grad_fn = accumulate.make(grad_fn, parts) if parts > 1 else grad_fn
        gradients.append(jax.jit(grad_fn)(state, batch, jax.random.key(0)))
    one, four = gradients
    np.testing.assert_allclose(one.loss, four.loss, rtol=1e-5)
    assert one.weight == four.weight
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(one.grads))
    for a, b in zip(jax.tree.leaves(one.grads), jax.tree.leaves(four.grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)


@pytest.mark.core
def test_one_update_is_plain_descent_on_the_mean_loss_of_a_token():
    """Neither Adam nor clipping here: both hide a gradient of the wrong size."""
    model, _, _, _ = make(num_layers=1)
    task = causal_lm.make(vocab_size=65)
    variables, batch = model.init(jax.random.key(0)), next(make_batches(1))
    batch["weight"] *= np.linspace(0.5, 2, 16, dtype=np.float32)

    def mean_loss(params):
        logits, _ = model.apply({**variables, "params": params}, batch["tokens"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return (losses * batch["weight"]).sum() / batch["weight"].sum()

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(variables["params"])
    grad_fn = plain.make(lambda v, b, key: task.loss(model, v, b, key, True))
    tx = optax.sgd(0.5)
    step = make_train_step(accumulate.make(grad_fn, 4), tx, seed=0)
    state, metrics = jax.jit(step)(init_state(variables, tx, None), batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["weight"], batch["weight"].sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(grads), rtol=1e-5)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    assert largest > 1e-2
    moved = jax.tree.map(lambda a, b: (a - b) / 0.5, variables["params"], state.params)
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * largest)


def test_accumulated_loss_is_equal_on_one_and_eight_devices():
    losses, _, _ = run(dict(data=4, fsdp=2), micro_batches=2)
    plain_losses, _, _ = run({})
    np.testing.assert_allclose(losses, plain_losses, atol=1e-5, rtol=0)


def test_a_batch_that_does_not_divide_into_micro_batches_is_refused():
    _, _, step, init = make(micro_batches=3)
    with pytest.raises(InputError, match="batch of 16 does not divide"):
        jax.eval_shape(step, jax.eval_shape(init), next(make_batches(1)))


@pytest.mark.core
def test_a_bad_batch_costs_one_update_and_nothing_else():
    _, _, step, init = make(ema=0.9)
    step = jax.jit(step)
    good, other = make_batches(2)
    state, _ = step(init(), good)
    bad = {**other, "weight": other["weight"] * np.float32("nan")}
    after, metrics = step(state, bad)
    assert metrics["refused"] == 1 and after.step == state.step + 1
    before, kept = (jax.tree.leaves(s._replace(step=0, guard=0)) for s in (state, after))
    for a, b in zip(before, kept, strict=True):
        np.testing.assert_array_equal(a, b)
    empty, metrics = step(state, {**other, "weight": other["weight"] * 0})
    assert metrics["refused"] == 1
    _, metrics = step(after, other)
    assert metrics["refused"] == 0 and np.isfinite(metrics["loss"])


def test_ema_averages_the_weights_after_each_update():
    _, _, step, init = make(ema=0.9)
    step = jax.jit(step)
    state = init()
    expected = state.params["embed"]
    for batch in make_batches(3):
        state, _ = step(state, batch)
        expected = 0.9 * expected + 0.1 * state.params["embed"]
    np.testing.assert_allclose(state.ema["params"]["embed"], expected, atol=1e-6)


def test_dropout_depends_on_seed_and_step_alone():
    _, _, step, init = make(dropout=0.5)
    batch = next(make_batches(1))
    a, _ = jax.jit(step)(init(), batch)
    b, _ = jax.jit(step)(init(), batch)
    np.testing.assert_array_equal(a.params["embed"], b.params["embed"])
    later, _ = jax.jit(step)(init()._replace(step=jnp.int32(1)), batch)
    assert not np.array_equal(a.params["embed"], later.params["embed"])


def test_an_axis_that_does_not_divide_names_parameter_shape_and_axis():
    mesh = sharding.make_mesh(dict(tensor=8))
    model = gpt.make(vocab_size=65, context=16, num_layers=1, num_heads=6, width=384)
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
    with pytest.raises(InputError, match=r"layers/attention.*\(1, .*'heads'|'kv_heads'.*tensor"):
        sharding.param_shardings(mesh, model.axes, shapes)
    _, notes = sharding.param_shardings(mesh, model.axes, shapes, ("heads", "kv_heads"))
    assert notes and all("does not divide by 8" in note for note in notes)


def test_a_mesh_or_batch_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(InputError, match="does not fit 8 devices"):
        sharding.make_mesh(dict(tensor=3))
    with pytest.raises(InputError, match="batch of 4 does not divide"):
        sharding.batch_sharding(sharding.make_mesh(dict(data=8)), 4)


def test_factored_statistics_keep_the_axes_that_survive():
    mesh = sharding.make_mesh(dict(fsdp=2, tensor=4))
    model, _, _, _ = make()
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
    placed, _ = sharding.param_shardings(mesh, model.axes, shapes)
    params = sharding.with_shardings(shapes, placed)
    rows = {"v_row": {"layers": {"mlp": {"up": jax.ShapeDtypeStruct((2, 32), jnp.float32)}}}}
    where, _ = sharding.state_shardings(mesh, rows, params)
    assert tuple(where["v_row"]["layers"]["mlp"]["up"].spec) == (None, "fsdp")
