"""Checkpoints: equal bits under donation and on another mesh, what is kept, what is refused."""

import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research import manifest
from research.arguments import InputError
from research.checkpoint import Checkpoints

NAN = float("nan")


class State(NamedTuple):
    step: Any
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any


def make_mesh(**axes):
    return Mesh(np.array(jax.devices()).reshape(tuple(axes.values())), tuple(axes))


def make_state(mesh, spec, width=16):
    """A state as training has it: NamedTuples, bfloat16, a bool, empty and None parts."""

    def init(key):
        layers = {"q": jax.random.normal(key, (3, width, width)), "scale": jnp.ones((3, width))}
        params = {"layers": layers, "head": jax.random.normal(key, (width, width), jnp.bfloat16)}
        mask = {"layers": {"q": True, "scale": False}, "head": True}
        tx = optax.chain(optax.clip(1.0), optax.masked(optax.adam(1e-3), mask))
        model_state = {"seen": jnp.array([True, False])}
        return State(jnp.int32(0), params, model_state, tx.init(params), None)

    abstract = jax.eval_shape(init, jax.random.key(0))
    shardings = jax.tree.map(
        lambda x: NamedSharding(mesh, spec if len(x.shape) >= 2 else P()), abstract
    )
    return jax.jit(init, out_shardings=shardings)(jax.random.key(0))


def abstract_of(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def to_bytes(state):
    return {
        jax.tree_util.keystr(path): np.array(leaf, copy=True).tobytes()
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


@pytest.fixture
def state():
    return make_state(make_mesh(data=8), P(None, "data"))


def small(value=1.0):
    return {"params": {"w": jnp.full((4,), value)}}


@pytest.mark.core
def test_saved_bits_survive_donation_right_after_the_save(tmp_path):
    state = make_state(make_mesh(data=8), P(None, "data"), width=256)
    change = jax.jit(
        lambda s: jax.tree.map(lambda x: ~x if x.dtype == bool else x * 3 + 1, s), donate_argnums=0
    )
    checkpoints, truth = Checkpoints(tmp_path, keep=4), {}
    for step in range(4):
        truth[step] = to_bytes(state)
        checkpoints.save(step, state)
        for _ in range(3):  # several generations, so that a freed buffer is reused
            state = change(state)
    checkpoints.close()
    assert checkpoints.steps() == [0, 1, 2, 3]
    reader = Checkpoints(tmp_path)
    for step, expected in truth.items():
        restored = reader.restore(step, abstract_of(state))
        assert to_bytes(restored) == expected
        assert jax.tree.structure(restored) == jax.tree.structure(state)
    reader.close()


@pytest.mark.core
@pytest.mark.fault("another mesh")
def test_restore_onto_another_mesh_is_equal_to_the_bit(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, state)
    checkpoints.wait()
    other = make_state(make_mesh(fsdp=4, tensor=2), P(None, ("tensor", "fsdp")))
    abstract = abstract_of(other)
    restored = checkpoints.restore(7, abstract)
    checkpoints.close()
    assert to_bytes(restored) == to_bytes(state)
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding == wanted.sharding


def test_newest_every_and_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4, best=("eval/loss", "min"))
    for step, loss in enumerate([3.0, 2.5, 1.0, 2.0, 2.2, 2.4, 2.6, 2.8], start=1):
        checkpoints.save(step, small(step), {"eval/loss": loss})
    checkpoints.close()
    assert checkpoints.steps() == [3, 4, 7, 8]
    assert (checkpoints.best(), checkpoints.latest()) == (3, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4", "7", "8"]


@pytest.mark.parametrize(
    "values", [(0.5, 0.9, NAN, 0.7, 0.6), (NAN, 0.9, 0.5, NAN, 0.6), (0.9, 0.5, 0.7, None, 0.6)]
)
@pytest.mark.fault("NaN metric with keep-best")
def test_a_nan_or_missing_metric_never_costs_the_best_step(tmp_path, values):
    checkpoints = Checkpoints(tmp_path, keep=1, best=("acc", "max"))
    for step, value in enumerate(values, start=1):
        checkpoints.save(step, small(), {} if value is None else {"acc": np.float32(value)})
    checkpoints.close()
    best = 1 + values.index(0.9)
    assert checkpoints.best() == best
    assert checkpoints.steps() == [best, 5]
    reopened = Checkpoints(tmp_path, keep=1, best=("acc", "max"))
    assert reopened.best() == best
    reopened.close()


def test_all_metrics_nan_means_no_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, best=("loss", "min"))
    checkpoints.save(1, small(), {"loss": NAN})
    checkpoints.close()
    assert checkpoints.best() is None and checkpoints.steps() == [1]


def test_notes_return_metrics_and_extra(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, small(), {"eval/loss": 2.0}, {"data": "abc", "versions": {"jax": "x"}})
    checkpoints.wait()
    notes = checkpoints.notes(5)
    assert notes["metrics"] == {"eval/loss": 2.0} and notes["step"] == 5
    assert notes["extra"] == {"data": "abc", "versions": {"jax": "x"}}
    with pytest.raises(InputError, match="no checkpoint of step 6 .*there: 5"):
        checkpoints.notes(6)
    checkpoints.close()


@pytest.mark.core
def test_partial_restore_reads_the_named_fields_only(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.close()
    # Damage the optimizer's stored description: were it looked at, the restore would fail.
    content = manifest.read(tmp_path / "1")
    leaves = {p: d for p, d in content["leaves"].items() if not p.startswith("opt_state")}
    manifest.write(tmp_path / "1", content | {"leaves": leaves})
    reader = Checkpoints(tmp_path)
    restored = reader.restore(1, abstract_of(state), only=("params", "model_state"))
    assert to_bytes(restored.params) == to_bytes(state.params)
    assert to_bytes(restored.model_state) == to_bytes(state.model_state)
    assert jax.tree.leaves(restored.opt_state) == [] and restored.step is None
    with pytest.raises(InputError, match="opt_state"):
        reader.restore(1, abstract_of(state))
    reader.close()


@pytest.mark.core
@pytest.mark.fault("tree drift")
def test_every_mismatch_is_refused_by_path(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.wait()
    abstract = abstract_of(state)

    def refusal(params):
        with pytest.raises(InputError) as error:
            checkpoints.restore(1, abstract._replace(params=params))
        assert "\n" not in str(error.value)
        return str(error.value)

    head, layers = abstract.params["head"], abstract.params["layers"]
    shape = jax.ShapeDtypeStruct((16, 24), head.dtype, sharding=head.sharding)
    dtype = jax.ShapeDtypeStruct(head.shape, jnp.float32, sharding=head.sharding)
    assert "params/head is stored as bfloat16[16,16], wanted bfloat16[16,24]" in refusal(
        {"head": shape, "layers": layers}
    )
    assert "params/head is stored as bfloat16[16,16], wanted float32[16,16]" in refusal(
        {"head": dtype, "layers": layers}
    )
    assert "params/lora is stored as nothing, wanted bfloat16[16,16]" in refusal(
        abstract.params | {"lora": head}
    )
    assert "params/head is stored as bfloat16[16,16], wanted nothing" in refusal({"layers": layers})
    many = refusal({f"w{i}": head for i in range(9)})
    assert all(f"params/w{i} is stored as nothing" in many for i in range(9))
    checkpoints.close()


def test_a_failed_save_is_reported_and_cleaned_and_the_next_one_works(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, small(1))
    checkpoints.wait()
    from orbax.checkpoint._src.path import atomicity

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", fail)
    checkpoints.save(2, small(2))
    with pytest.raises(OSError, match="2 was not saved: No space left"):
        checkpoints.wait()
    monkeypatch.undo()
    assert checkpoints.steps() == [1]
    checkpoints.save(3, small(3))
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


def test_foreign_entries_are_not_checkpoints_and_stay(tmp_path):
    (tmp_path / "9").mkdir()
    (tmp_path / "readme").write_text("mine")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    checkpoints.save(1, small())
    checkpoints.save(2, small())
    checkpoints.close()
    assert checkpoints.steps() == [2]
    assert {path.name for path in tmp_path.iterdir()} == {"2", "9", "readme"}


def test_reading_leaves_an_unfinished_save_of_another_run_alone(tmp_path):
    writer = Checkpoints(tmp_path)
    writer.save(1, small(3.0))
    writer.close()
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    reader = Checkpoints(tmp_path)
    restored = reader.restore(1, {"params": {"w": abstract_of(small())["params"]["w"]}})
    reader.close()
    assert restored["params"]["w"].tolist() == [3.0] * 4
    assert (tmp_path / "2.orbax-checkpoint-tmp").exists()


def test_without_renames_old_steps_and_torn_ones_go_too(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints._is_remote = True  # as in an object store, where steps are written in place
    (tmp_path / "7/state").mkdir(parents=True)  # killed before its commit
    (tmp_path / "7/_CHECKPOINT_METADATA").write_text("{}")
    assert checkpoints.latest() is None
    checkpoints.save(8, small())
    checkpoints.save(9, small())
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["9"]


@pytest.mark.fault("kill in a deletion")
def test_a_kill_in_the_middle_of_a_deletion_leaves_no_torn_step(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, small())
    checkpoints.wait()

    def killed(path, *_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(checkpoints.folder), "rmtree", killed)
    checkpoints.save(2, small())
    with pytest.raises(KeyboardInterrupt):
        checkpoints.wait()
    monkeypatch.undo()
    assert checkpoints.steps() == [2]
    assert {path.name for path in tmp_path.iterdir()} == {"1.deleted", "2"}
    checkpoints.save(3, small())
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_step_is_written_once_and_a_relative_folder_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints("run/checkpoints")
    checkpoints.save(1, small(1.0))
    checkpoints.save(1, small(2.0))
    restored = checkpoints.restore(1, abstract_of(small()))
    assert restored["params"]["w"].tolist() == [1.0] * 4
    assert (tmp_path / "run/checkpoints/1").stat().st_mode & 0o777 == 0o750
    checkpoints.close()


KILLED = """
import os, sys, jax, jax.numpy as jnp
from research.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
step = checkpoints.latest() or 0
while True:
    step += 1
    checkpoints.save(step, {"w": jnp.full((300_000,), step, jnp.float32)})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_saves_leave_only_whole_steps_and_nothing_else(tmp_path):
    folder, latest = tmp_path / "checkpoints", 0
    leaf = jax.ShapeDtypeStruct(
        (300_000,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    for kill in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        time.sleep(0.05 + 0.13 * kill)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        reader = Checkpoints(folder)
        assert (reader.latest() or 0) >= latest
        latest = reader.latest() or 0
        for step in reader.steps():
            assert np.all(np.asarray(reader.restore(step, {"w": leaf})["w"]) == step)
        reader.close()
    (folder / "3.orbax-checkpoint-tmp").mkdir(exist_ok=True)
    (folder / "2.deleted").mkdir(exist_ok=True)
    resumed = Checkpoints(folder, keep=2)
    resumed.save(latest + 1, {"w": jnp.zeros(300_000)})
    resumed.close()
    assert {path.name for path in folder.iterdir()} == {str(step) for step in resumed.steps()}
    assert len(resumed.steps()) == 2


PROCESS = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from research.checkpoint import Checkpoints
rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank, initialization_timeout=60)
auto = (jax.sharding.AxisType.Auto,) * 2
mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=auto)
along, across = NamedSharding(mesh, P("data", "model")), NamedSharding(mesh, P(None, "data"))
make = jax.jit(lambda x: jnp.arange(64.0).reshape(8, 8) + x, out_shardings=along)
double = jax.jit(lambda w: w * 2, donate_argnums=0)
checkpoints = Checkpoints(folder, keep=2, best=("loss", "min"))
for step in range(1, 6):
    w = make(step)
    checkpoints.save(step, {"params": {"w": w}}, {"loss": (step - 2) ** 2})
    double(w)
checkpoints.wait()
assert checkpoints.steps() == [2, 4, 5], checkpoints.steps()
wanted = {"params": {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=across)}}
for step in checkpoints.steps():
    w = checkpoints.restore(step, wanted)["params"]["w"]
    assert w.sharding == across
    truth = np.arange(64.0, dtype=np.float32).reshape(8, 8) + step
    for shard in w.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), truth[shard.index])
checkpoints.close()
print("whole")
"""


@pytest.mark.slow
def test_two_processes_save_prune_and_restore_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), port, str(tmp_path / "checkpoints")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:  # one that failed leaves the other waiting
            process.kill()
    assert [output.split()[-1] for output in outputs] == ["whole", "whole"]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "4", "5"}
