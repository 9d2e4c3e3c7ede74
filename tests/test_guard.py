"""Which updates count: one bad batch costs one update, and nothing blinds the detector."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research import guard as guard_lib
from research.checksum import checksums
from research.gradients import Gradients
from research.step import init_state, make_train_step

NAN, INF = float("nan"), float("inf")


def run(losses, window=16, **options):
    """Returns the metrics of each judgement, and the last guard."""
    judge = jax.jit(lambda guard, loss: guard_lib.judge(guard, loss, jnp.isfinite(loss), **options))
    guard, found = guard_lib.init(window), []
    for loss in losses:
        _, guard, metrics = judge(guard, jnp.float32(loss))
        found.append({name: float(x) for name, x in metrics.items()})
    return found, guard


def noise(count, level=3.0, seed=0):
    return list(level + 0.1 * np.random.default_rng(seed).standard_normal(count))


def test_the_deviation_is_scipy_s_median_absolute_deviation():
    """A second source; an odd window, where there is one median."""
    stats = pytest.importorskip("scipy.stats")
    losses = noise(40)
    found, _ = run([*losses, 3.5], window=15)
    last = np.float32(losses[-15:])
    spread = stats.median_abs_deviation(last, scale="normal")
    np.testing.assert_allclose(
        found[-1]["loss_deviation"], (3.5 - np.median(last)) / spread, rtol=1e-3
    )


@pytest.mark.fault("loss spike")
def test_a_loss_ten_times_as_large_is_a_spike_and_the_next_one_is_none(record_property):
    found, _ = run([*noise(40), 30.0, *noise(5)], spike=10.0)
    assert [i for i, judged in enumerate(found) if judged["spike"]] == [40]
    record_property("observed", f"reported, {found[40]['loss_deviation']:.0f} deviations")
    assert not any(judged["refused"] for judged in found)
    found, _ = run([*noise(40), 30.0, *noise(5)], spike=10.0, refuse_spikes=True)
    assert [i for i, judged in enumerate(found) if judged["refused"]] == [40]


def test_nan_and_spikes_do_not_blind_the_detector():
    """A running mean and deviation would be NaN for a whole window, or as wide as the spikes."""
    losses = [*noise(40), NAN, INF, 30.0, 30.0, NAN, *noise(3), 30.0]
    found, guard = run(losses, spike=10.0)
    assert [i for i, judged in enumerate(found) if judged["spike"]] == [42, 43, 48]
    assert [i for i, judged in enumerate(found) if judged["refused"]] == [40, 41, 44]
    assert np.isfinite(guard.losses).all()
    assert all(np.isfinite(list(judged.values())).all() for judged in found)


def test_a_new_level_is_accepted_after_half_a_window():
    found, _ = run([*noise(40), *noise(40, level=9.0)], window=16, spike=10.0, refuse_spikes=True)
    refused = [i for i, judged in enumerate(found) if judged["refused"]]
    assert refused == list(range(40, 40 + len(refused))) and 7 <= len(refused) <= 9


def test_nothing_is_a_spike_before_half_of_the_window_is_known_or_while_nothing_varies():
    found, _ = run([1.0, 50.0, 2.0, 80.0], window=16, spike=10.0)
    assert not any(judged["spike"] for judged in found)
    found, _ = run([2.0] * 30 + [2.0001] * 5, window=16, spike=10.0)
    assert not any(judged["spike"] for judged in found)


def test_refusals_in_a_row_are_counted_until_an_update_counts():
    found, _ = run([1.0, NAN, NAN, 1.0, NAN])
    assert [judged["refused_in_a_row"] for judged in found] == [0, 1, 2, 0, 1]


def make_step(tx, **options):
    """A step whose loss, gradient and batch statistics come from the batch itself."""

    def grad_fn(state, batch, key):
        state_after = {"mean": batch["x"], "scale": state.model_state["scale"]}
        scale = jnp.where(jnp.isfinite(batch["x"]), 2.0, 0.5) * state.grad_state.get("scale", 1.0)
        grads = {"w": batch["x"] * jnp.ones(3)}
        return Gradients(grads, batch["loss"], 1.0, state_after, {}, {"scale": scale})

    variables = {
        "params": {"w": jnp.ones(3)},
        "model_state": {"mean": jnp.float32(0), "scale": jnp.float32(1)},
    }
    state = init_state(variables, tx, "ema")._replace(grad_state={"scale": jnp.float32(1)})
    return jax.jit(make_train_step(grad_fn, tx, seed=0, ema=0.9, **options)), state


@pytest.mark.core
@pytest.mark.fault("NaN batch")
@pytest.mark.parametrize(
    "bad", [dict(x=NAN, loss=1.0), dict(x=1.0, loss=INF), dict(x=1e30, loss=1)]
)
def test_a_bad_batch_keeps_everything_but_step_and_loss_scale(bad, record_property):
    step, state = make_step(optax.adam(0.1))
    good = {"x": jnp.float32(1), "loss": jnp.float32(1)}
    state, _ = step(state, good)
    after, metrics = step(state, {name: jnp.float32(x) for name, x in bad.items()})
    assert metrics["refused"] == 1 and metrics["refused_in_a_row"] == 1
    for field in ("params", "model_state", "opt_state", "ema"):
        kept, old = (jax.tree.leaves(getattr(s, field)) for s in (after, state))
        for a, b in zip(kept, old, strict=True):
            np.testing.assert_array_equal(a, b)
    assert after.step == state.step + 1
    falls = not np.isfinite(bad["x"])
    assert after.grad_state["scale"] == (0.5 if falls else 2) * state.grad_state["scale"]
    again, metrics = step(after, good)
    assert metrics["refused"] == 0 and again.params["w"][0] != state.params["w"][0]
    record_property("observed", "1 update refused, the rest of the state equal to the bit")


def test_a_nan_that_the_optimizer_makes_is_refused_from_the_next_step_on():
    step, state = make_step(optax.adam(0.1, eps=0.0))
    broken, metrics = step(state, {"x": jnp.float32(0), "loss": jnp.float32(1)})  # 0 / 0
    assert metrics["refused"] == 0 and np.isnan(broken.params["w"]).all()
    assert "params/w" in checksums(broken).nonfinite  # so it is never saved
    _, metrics = step(broken, {"x": jnp.float32(NAN), "loss": jnp.float32(NAN)})
    assert metrics["refused_in_a_row"] == 1


@pytest.mark.fault("NaN in warm-up")
def test_a_nan_in_the_very_first_step_is_refused(record_property):
    step, state = make_step(optax.sgd(0.1))
    after, metrics = step(state, {"x": jnp.float32(NAN), "loss": jnp.float32(NAN)})
    assert metrics["refused"] == 1
    np.testing.assert_array_equal(after.params["w"], state.params["w"])
    record_property("observed", "1 update refused, parameters untouched")
