"""From a config to objects: everything a run is made of, usable from a notebook.

run = build(load("configs/nlp/gpt.py:tiny"))
state = init(run)
with jax.set_mesh(run.mesh):
    state, metrics = jax.jit(run.train_step)(state, put(run, next(run.source.batches())))
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import optax

from research import flops, lookup, sharding, tree
from research.arguments import InputError
from research.data.source import Source, prefetch
from research.gradients import plain
from research.models.functional import Model
from research.step import TrainState, init_state, make_eval_step, make_train_step
from research.tasks import Task


class Run(NamedTuple):
    """A run as values: pure functions, abstract state, and where everything lies."""

    config: ml_collections.FrozenConfigDict  # with what the data decided
    mesh: jax.sharding.Mesh
    source: Source | None  # of the training split
    model: Model
    task: Task
    tx: optax.GradientTransformation
    train_step: Callable  # (state, batch) -> state, metrics
    eval_step: Callable  # (variables, batch) -> {name: (sum, weight)}
    abstract: TrainState  # shapes, types and shardings
    notes: list[str]  # what was replicated against the rules, and why


def build(
    config: ml_collections.FrozenConfigDict,
    devices: list[jax.Device] | None = None,
    with_data: bool = True,
) -> Run:
    """Builds a run; `with_data=False` needs the config of a workdir, where all is decided.

    Raises InputError for whatever does not fit: mesh, batch, parameters, data.
    """
    mesh = sharding.make_mesh(dict(config.mesh), devices)
    source = None
    if with_data:
        for batch in (config.batch, config.eval.batch or config.batch):
            sharding.batch_sharding(mesh, batch)  # refused before anything is read
        source = make_source(config, "train")
        config = decide(config, source.info)
    model = lookup.find("models", config.model.name)(
        **arguments(config.model), precision=config.precision
    )
    task = lookup.find("tasks", config.task.name)(**arguments(config.task))
    tx = optax.named_chain(
        *(
            (name, lookup.find("optim", name, optax)(**arguments(config.optim[name])))
            for name in config.optim.chain
        )
    )

    def loss(variables: dict, batch: dict, key: jax.Array) -> tuple:
        return task.loss(model, variables, batch, key, True)

    grad_fn = plain.make(loss)
    for name in config.gradients.chain:
        grad_fn = lookup.find("gradients", name)(grad_fn, **arguments(config.gradients[name]))

    shapes = jax.eval_shape(
        lambda: init_state(model.init(jax.random.key(0)), tx, config.ema, config.guard.window)
    )
    placed, notes = sharding.param_shardings(
        mesh, model.axes, shapes.params, tuple(config.mesh.replicate)
    )
    params = sharding.with_shardings(shapes.params, placed)
    shardings, more = sharding.state_shardings(mesh, shapes, params)
    run = Run(
        config=config,
        mesh=mesh,
        source=source,
        model=model,
        task=task,
        tx=tx,
        train_step=make_train_step(
            grad_fn,
            tx,
            seed=config.seed,
            ema=config.ema,
            spike=config.guard.spike,
            refuse_spikes=config.guard.refuse_spikes,
        ),
        eval_step=make_eval_step(model, task),
        abstract=sharding.with_shardings(shapes, shardings),
        notes=notes + more,
    )
    if (
        source is not None
    ):  # what only tracing finds out is refused here, before anything is written
        with jax.set_mesh(mesh):
            jax.eval_shape(run.train_step, run.abstract, source.spec)
    return run


def arguments(section: ml_collections.FrozenConfigDict) -> dict[str, Any]:
    """Returns a section as keyword arguments: without its name."""
    return {key: value for key, value in section.to_dict().items() if key != "name"}


def make_source(config: ml_collections.FrozenConfigDict, split: str) -> Source:
    """Opens a split of the config's data, with the batch size that belongs to it."""
    batch = config.batch if split == "train" else config.eval.batch or config.batch
    make = lookup.find("data", config.data.name)
    return make(**arguments(config.data), split=split, seed=config.seed, batch=batch)


def decide(config: ml_collections.FrozenConfigDict, info: dict) -> ml_collections.FrozenConfigDict:
    """Fills what model and task leave to the data (None), by name, from `info`.

    Raises InputError where the config asks for less than the data holds: a vocabulary, a context.
    """
    values = config.to_dict()
    for section in ("model", "task"):
        for key in values[section].keys() & info.keys():
            if values[section][key] is None:
                values[section][key] = info[key]
            elif values[section][key] < info[key]:
                raise InputError(
                    f"config.{section}.{key}={values[section][key]} is less than the data's "
                    f"{info[key]}; leave it out, or change config.data"
                )
    return ml_collections.FrozenConfigDict(values)


def init(run: Run) -> TrainState:
    """Returns the state of step 0, made in place on the mesh, the same on any mesh."""

    def make(seed: jax.Array) -> TrainState:
        variables = run.model.init(jax.random.key(seed))
        return init_state(variables, run.tx, run.config.ema, run.config.guard.window)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.abstract)
    with jax.set_mesh(run.mesh):
        return jax.jit(make, out_shardings=shardings)(np.uint32(run.config.seed))


def put(run: Run, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this host's part of a batch on the mesh as part of the global one."""
    rows = len(next(iter(batch.values()))) * jax.process_count()
    where = sharding.batch_sharding(run.mesh, rows)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, x), batch)


def batches(
    run: Run, source: Source, start: int = 0, one_pass: bool = False
) -> Iterator[dict[str, jax.Array]]:
    """Yields batches of `source` from step `start` on, on the mesh, read and put ahead of use;
    without end, or each example once (`one_pass`)."""
    shard = (jax.process_index(), jax.process_count())
    return prefetch(source.batches(start, shard, one_pass), lambda batch: put(run, batch))


def jit_train_step(run: Run, donate: bool = True) -> Callable:
    """Returns the compiled form of `run.train_step`, which takes over its state's buffers."""
    where = jax.tree.map(lambda leaf: leaf.sharding, run.abstract)
    return jax.jit(
        run.train_step,
        in_shardings=(where, sharding.batch_sharding(run.mesh, run.config.batch)),
        out_shardings=(where, None),
        donate_argnums=0 if donate else (),
    )


def weights(state: TrainState, kind: str) -> dict:
    """Returns `variables` for the model: "raw" or "ema" weights."""
    chosen = {"params": state.params, "model_state": state.model_state}
    return (state.ema if kind == "ema" else chosen) | {"frozen": state.frozen}


def work_and_peak(run: Run) -> tuple[dict[str, float], float | None]:
    """Returns the model FLOPs of a training step in both attention conventions, "full" and
    "causal" (which counts half of the attention products), and the peak FLOP/s of all devices,
    ({}, None) where the peak is unknown."""
    peak = flops.peak(run.mesh.devices.flat[0])
    if peak is None:
        return {}, None
    forward = flops.count(run.eval_step, weights(run.abstract, "raw"), run.source.spec)
    full, causal = flops.training_flops(forward)
    return {"full": full, "causal": causal}, peak * run.mesh.size


def describe(run: Run) -> str:
    """Returns the parameter table, the mesh, the bytes a device holds, and what is replicated."""
    rows = [
        (
            path,
            "x".join(map(str, leaf.shape)),
            f"{leaf.size:,}",
            str(leaf.sharding.spec).removeprefix("PartitionSpec"),
        )
        for path, leaf in tree.flatten(run.abstract.params).items()
    ]
    total = sum(leaf.size for leaf in jax.tree.leaves(run.abstract.params))
    rows.append(("total", "", f"{total:,}", ""))
    width = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{path:{width[0]}}  {shape:{width[1]}}  {count:>{width[2]}}  {spec}"
        for path, shape, count, spec in rows
    ]
    held = sharding.bytes_per_device(run.abstract) / 2**20
    lines.append(f"mesh: {sharding.describe(run.mesh)}; state: {held:,.1f} MiB a device")
    return "\n".join(lines + [f"replicated: {note}" for note in run.notes])
