"""From a config to objects: everything a run is made of, usable from a notebook.

run = build(load("configs/nlp/gpt.py:tiny"))
state = init(run)
with jax.set_mesh(run.mesh):
    state, metrics = jax.jit(run.train_step)(state, put(run, next(run.source.batches())))
"""

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import optax

from research import flops, hosts, lookup, optim, sharding, tree
from research.arguments import InputError
from research.data.source import Source, prefetch
from research.gradients import plain
from research.models.functional import Model, freeze, narrow
from research.models.lora import lora
from research.step import TrainState, init_state, make_eval_step, make_train_step
from research.tasks import Task

# Numbers that only the state of step 0 is made of.
AT_START = ("optim.adagrad.accumulator", "gradients.loss_scale.initial")


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
    if config.precision == "bf16_params":
        model = narrow(model)
    if config.freeze:
        model = freeze(model, config.freeze)
    if config.lora.rank is not None:
        model = lora(model, **config.lora.to_dict())
    task = lookup.find("tasks", config.task.name)(**arguments(config.task))
    tx, train_step = make_step(config, model, task)
    shapes = jax.eval_shape(lambda: new_state(config, model, tx, jax.random.key(0)))
    params = tree.merge(shapes.params, shapes.frozen.get("params", {}))
    check_rules(config, shapes.params, params)
    placed, notes = sharding.param_shardings(mesh, model.axes, params, tuple(config.mesh.replicate))
    params = sharding.with_shardings(params, placed)
    shardings, more = sharding.state_shardings(mesh, shapes, params)
    run = Run(
        config=config,
        mesh=mesh,
        source=source,
        model=model,
        task=task,
        tx=tx,
        train_step=train_step,
        eval_step=make_eval_step(model, task),
        abstract=sharding.with_shardings(shapes, shardings),
        notes=notes + more,
    )
    if (
        source is not None
    ):  # what only tracing finds out is refused here, before anything is written
        with jax.set_mesh(mesh):
            for spec in (source.spec, *source.narrower):
                jax.eval_shape(run.train_step, run.abstract, spec)
    return run


def make_step(
    config: ml_collections.FrozenConfigDict,
    model: Model,
    task: Task,
    numbers: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[optax.GradientTransformation, Callable]:
    """Returns the optimizer and train_step. `numbers` (of optim, gradients, and `seed`, an integer)
    replace those of the config and may be tracers, so that one compiled step serves a whole grid,
    or a population under jax.vmap:

        step = jax.jit(lambda peak, *args: make_step(..., {"optim.lr.peak": peak})[1](*args))
    """

    for key in numbers.keys() - {"seed"}:
        section, _, rest = key.partition(".")
        name, _, argument = rest.partition(".")
        known = section in ("optim", "gradients") and name in config[section].chain
        # Part of the state from step 0 on, where the step does not look for it again.
        if not known or argument not in config[section][name] or key in AT_START:
            raise InputError(f"{key} is no number of this run's step; it would change nothing")

    def options(section: str, name: str) -> dict[str, Any]:
        path = f"{section}.{name}."
        given = {key.removeprefix(path): x for key, x in numbers.items() if key.startswith(path)}
        return arguments(config[section][name]) | given

    parts = [(name, make_part(name, options("optim", name))) for name in config.optim.chain]
    tx = optim.chain(parts, config.optim.state_dtype)

    def loss(variables: dict, batch: dict, key: jax.Array) -> tuple:
        return task.loss(model, variables, batch, key, True)

    grad_fn = plain.make(loss)
    for name in config.gradients.chain:
        grad_fn = lookup.find("gradients", name)(grad_fn, **options("gradients", name))
    swa = None if config.swa.start is None else (config.swa.start, config.swa.every)
    rules = {"spike": config.guard.spike, "refuse_spikes": config.guard.refuse_spikes}
    seed = numbers.get("seed", config.seed)
    return tx, make_train_step(grad_fn, tx, seed=seed, ema=config.ema, swa=swa, **rules)


def make_part(name: str, options: dict[str, Any]) -> optax.GradientTransformation:
    """Returns a part of an optimizer: ours, or optax's, applied to each layer where it looks at
    norms or matrices."""
    make = lookup.find("optim", name, optax)
    return optim.layerwise(make(**options)) if name in optim.NORMWISE else make(**options)


def new_state(
    config: ml_collections.FrozenConfigDict,
    model: Model,
    tx: optax.GradientTransformation,
    key: jax.Array,
) -> TrainState:
    """Returns the state of step 0."""
    grad_state = {}
    for name in config.gradients.chain:
        init = lookup.find("gradients", name, function="init")
        if init is not None:
            grad_state[name] = init(**arguments(config.gradients[name]))
    average = "swa" if config.swa.start is not None else None
    average = "ema" if config.ema is not None else average
    return init_state(model.init(key), tx, average, config.guard.window, grad_state)


def check_rules(config: ml_collections.FrozenConfigDict, trained: dict, params: dict) -> None:
    """Says which rule of the optimizer matches no parameter, and raises InputError for one that
    would change frozen parameters only."""
    paths = lambda tree_: [  # noqa: E731
        name
        for path, leaf in tree.flatten(tree_).items()
        for name in tree.unrolled_paths(path, leaf)
    ]
    trained, params = paths(trained), paths(params)
    for name in config.optim.chain:
        for pattern, value in config.optim[name].get("rules") or ():
            if any(re.search(pattern, path) for path in trained):
                continue
            what = f"config.optim.{name}.rules: {pattern!r} matches"
            if not any(re.search(pattern, path) for path in params):
                hosts.warn(f"{what} no parameter")
            elif value:
                raise InputError(f"{what} frozen parameters only (config.freeze); drop one of them")


def arguments(section: ml_collections.FrozenConfigDict) -> dict[str, Any]:
    """Returns a section as keyword arguments: without its name."""
    return {key: value for key, value in section.to_dict().items() if key != "name"}


def make_source(config: ml_collections.FrozenConfigDict, split: str) -> Source:
    """Opens a split of the config's data, with the batch size that belongs to it."""
    batch = config.batch if split == "train" else config.eval.batch or config.batch
    make = lookup.find("data", config.data.name)
    return make(**arguments(config.data), split=split, seed=config.seed, batch=batch)


def judge(run: Run, source: Source) -> Callable | None:
    """Returns what judges the decoded texts of a split, None where config.eval.beams asks for none.
    Raises InputError where it cannot be: the task's answers are no texts, the data has none."""
    if run.config.eval.beams is None:
        return None
    if run.task.judge is None or source.gold is None:
        what = f"task {run.config.task.name} over data {run.config.data.name}"
        raise InputError(
            f"config.eval.beams={run.config.eval.beams}: {what} has no texts to judge by; leave it "
            "out (seq2seq over pairs has)"
        )
    return run.task.judge(source.gold)


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


def init(run: Run, variables: dict | None = None) -> TrainState:
    """Returns the state of step 0, made in place on the mesh, the same on any mesh; with
    `variables`, which it takes over, instead of those that the model begins with."""

    def make(seed: jax.Array, variables: dict | None) -> TrainState:
        given = run.model._replace(init=lambda key: variables)
        model = run.model if variables is None else given
        return new_state(run.config, model, run.tx, jax.random.key(seed))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.abstract)
    with jax.set_mesh(run.mesh):
        jitted = jax.jit(make, out_shardings=shardings, donate_argnums=1)
        return jitted(np.uint32(run.config.seed), variables)


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


def kept(config: ml_collections.FrozenConfigDict) -> str:
    """Returns the kind of weights that a run is judged by: "ema" where it keeps an average."""
    return "raw" if config.ema is None and config.swa.start is None else "ema"


def weights(state: TrainState, kind: str) -> dict:
    """Returns `variables` for the model: "raw" or "ema" weights."""
    chosen = {"params": state.params, "model_state": state.model_state}
    return (state.ema if kind == "ema" else chosen) | {"frozen": state.frozen}


def learning_rates(run: Run) -> np.ndarray | None:
    """Returns the learning rate of each update (steps,), None without our `lr` in the chain."""
    if "lr" not in run.config.optim.chain:
        return None
    tx = make_part("lr", arguments(run.config.optim.lr))

    def rate(count: jax.Array) -> jax.Array:
        state = tx.init({})._replace(count=count)
        return tx.update({}, state)[1].learning_rate

    return np.asarray(jax.vmap(rate)(np.arange(run.config.steps)))


def work_and_peak(run: Run) -> tuple[dict[str, float], float | None]:
    """Returns the model FLOPs of a training step in both attention conventions, "full" and
    "causal" (which counts half of the attention products), and the peak FLOP/s of all devices,
    ({}, None) where the peak is unknown, or batches are of several widths."""
    peak = flops.peak(run.mesh.devices.flat[0])
    if peak is None or run.source.narrower:
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
    frozen = sum(leaf.size for leaf in jax.tree.leaves(run.abstract.frozen))
    if frozen:
        rows.append(("frozen", "", f"{frozen:,}", ""))
    width = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{path:{width[0]}}  {shape:{width[1]}}  {count:>{width[2]}}  {spec}"
        for path, shape, count, spec in rows
    ]
    held = sharding.bytes_per_device(run.abstract) / 2**20
    lines.append(f"mesh: {sharding.describe(run.mesh)}; state: {held:,.1f} MiB a device")
    return "\n".join(lines + [f"replicated: {note}" for note in run.notes])
