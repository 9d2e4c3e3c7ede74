"""Accumulation: which rows meet in a micro-batch, which key each gets, and where the rows lie."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding
from research.gradients import Gradients, accumulate


class State(NamedTuple):
    """What of a TrainState accumulation looks at."""

    grad_state: dict = {}


ROWS, PARTS = 16, 4
STATE = State()


def draws(state, batch, key):
    """A grad_fn whose "gradient" shows, for each row of the whole batch, one draw of the key that
    its micro-batch got: `rows` holds a one-hot line for each row."""
    drawn = batch["rows"].sum(0) * jax.random.uniform(key)
    return Gradients(drawn, jnp.float32(0), batch["rows"].sum(), {"mean": drawn.sum()}, {}, {})


def drawn_per_row(seed):
    grad_fn = accumulate.make(draws, PARTS)
    return np.asarray(grad_fn(STATE, {"rows": jnp.eye(ROWS)}, jax.random.key(seed)).grads)


@pytest.mark.core
def test_every_micro_batch_gets_a_key_of_its_own():
    first, second = drawn_per_row(0), drawn_per_row(1)
    assert len(np.unique(first)) == PARTS
    assert not np.intersect1d(first, second).size  # and all come from the key of the step


def test_every_row_is_used_once_and_model_state_is_averaged():
    out = accumulate.make(draws, PARTS)(STATE, {"rows": jnp.eye(ROWS)}, jax.random.key(0))
    assert out.weight == ROWS and (np.asarray(out.grads) > 0).all()
    np.testing.assert_allclose(out.model_state["mean"], out.grads.sum() / PARTS, rtol=1e-6)


@pytest.mark.core
def test_micro_batches_take_rows_in_strides():
    drawn = drawn_per_row(0).reshape(-1, PARTS)
    np.testing.assert_array_equal(drawn, np.broadcast_to(drawn[:1], drawn.shape))


def test_no_row_travels_to_another_device():
    """Contiguous micro-batches give the same sums, but the first lies on half of the devices."""
    mesh = sharding.make_mesh(dict(data=4, fsdp=2))
    rows = sharding.batch_sharding(mesh, ROWS)

    def tokens_sum(state, batch, key):
        total = (batch["tokens"].astype(jnp.float32) ** 2).sum()
        return Gradients(total, total, jnp.float32(1), {}, {}, {})

    batch = {"tokens": jax.ShapeDtypeStruct((ROWS, 64), jnp.int32, sharding=rows)}
    with jax.set_mesh(mesh):
        grad_fn = jax.jit(lambda b, k: accumulate.make(tokens_sum, 2)(STATE, b, k))
        program = grad_fn.lower(batch, jax.random.key(0)).compile().as_text()
    found = set(re.findall(r"all-to-all|collective-permute|all-gather|all-reduce", program))
    assert found == {"all-reduce"}  # of the sums, which shows that the names are still these
