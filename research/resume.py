"""What a run may go on from: a checkpoint of the same run, sound, whose numbers are good."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import build, hosts, signing, workdir
from research import config as config_lib
from research.arguments import InputError, RunError, nearest
from research.checkpoint import Checkpoints
from research.data.source import Source
from research.manifest import DamagedError
from research.saver import Saver
from research.step import TrainState


class LostError(RunError):
    """Updates keep being refused, and no checkpoint helps."""


def notes(run: build.Run) -> dict[str, Any]:
    """Returns what a checkpoint says of its run: the config, the data and the topology."""
    environment = workdir.environment()
    topology = {key: environment[key] for key in ("devices", "processes", "packages")}
    mesh = {axis: size for axis, size in run.mesh.shape.items() if size > 1}
    config = json.loads(config_lib.to_json(run.config))
    return {"config": config, "data": run.source.info, "topology": topology | {"mesh": mesh}}


def refuse(
    run: build.Run,
    validation: Source,
    folder: str,
    checkpoints: Checkpoints,
    start: int,
    profile: tuple[int, int] | None,
    allow_drift: tuple[str, ...],
) -> None:
    """Raises InputError for what cannot work, or would continue another run than `folder` holds."""
    config, judge = run.config, build.judge(run, validation)
    if profile and not start < profile[0] <= profile[1] <= config.steps:
        raise InputError(
            f"--profile={profile[0]}:{profile[1]} is not within steps {start + 1} to {config.steps}"
        )
    if config.checkpoint.best:
        sums = jax.eval_shape(run.eval_step, build.weights(run.abstract, "raw"), validation.spec)
        ones = jax.tree.map(lambda leaf: np.ones(leaf.shape), sums)
        info = validation.info | {"gold": validation.gold}
        names = {*sums, *run.task.report(ones, info), *(f"loss/{n}" for n in validation.parts)}
        names |= {*judge(validation.gold)} if judge else set()
        if config.checkpoint.best not in names:
            raise InputError(
                f"config.checkpoint.best={config.checkpoint.best!r} is not measured"
                + nearest(config.checkpoint.best, names)
            )
    signing.check_keys(config.checkpoint.sign, config.checkpoint.verify)
    if not start:
        if (workdir.epath.Path(folder) / "metrics.jsonl").exists():
            hosts.warn(f"{folder} has metrics but no checkpoint: starting afresh, from step 0")
        return
    allowed = {key.removeprefix("config.") for key in allow_drift}
    stored = checkpoints.notes(start)["extra"]
    for key, what in (("tokenizer_fingerprint", "the tokenizer"), ("fingerprint", "the data")):
        then, now = stored["data"].get(key), run.source.info.get(key)
        if then != now and "data" not in allowed:
            raise InputError(
                f"{what} is not what {folder} was trained on (fingerprint {str(then)[:8]} then, "
                f"{str(now)[:8]} now); restore it, or --allow-drift=data"
            )
    # Both: config.json may have been edited, and the checkpoints may have been another run's.
    workdir.refuse_drift(config_lib.from_json(json.dumps(stored["config"])), config, allowed)
    workdir.refuse_drift(workdir.existing_config(folder), config, allowed)
    there, here = stored["topology"], notes(run)["topology"]
    changed = [key for key in here if there.get(key) != here[key]]
    if changed:
        hosts.say(
            f"{', '.join(changed)} changed since step {start}: the values restored are the same to "
            "the bit, those computed from them need not be"
        )


def restore(
    run: build.Run, checkpoints: Checkpoints, step: int | None, **which: int | None
) -> tuple[int, TrainState | None]:
    """Returns step and state of the newest checkpoint up to `step` whose arrays are what was saved,
    of those that `which` admits (arguments of `newest`); 0 and None if there is none. Raises
    DamagedError when none is sound, StoreError when one cannot be read."""
    while step:
        try:
            return step, checkpoints.restore(step, run.abstract)
        except DamagedError as error:
            hosts.warn(f"damaged checkpoint: {error}; it is set aside")
            checkpoints.set_aside(step)
            step = checkpoints.newest(set_aside=True, **which)
    return 0, None


def is_lost(run: build.Run, streak: int) -> bool:
    """Tells whether so many updates in a row were refused that the parameters must be at fault."""
    after = run.config.guard.rollback_after
    return after is not None and streak >= after


def roll_back(run: build.Run, saver: Saver, step: int, streak: int, again: int) -> TrainState:
    """Returns the state of the last good checkpoint, moved on to `step`: the batches in between
    are skipped. Good is one after which an update still counted; of those, one that was saved at
    the cadence, so that a run that was preempted meanwhile goes the same way.

    Raises LostError when there is none, or when no update counted since the last rollback.
    """
    first = step - streak + 1
    what = f"{streak} updates in a row were refused (steps {first} to {step})"
    if again:
        raise LostError(f"{what}, after a rollback too; lower the learning rate, look at the data")
    saver.settle()
    which = {"before": first - 1, "every": run.config.checkpoint.every}
    newest = saver.checkpoints.newest(set_aside=True, **which)
    good, state = restore(run, saver.checkpoints, newest, **which)
    if state is None:
        raise LostError(
            f"{what}, and no checkpoint is older; lower the learning rate, look at the data, or "
            "save more often (config.checkpoint.every)"
        )
    hosts.say(f"{what}: going back to the state of step {good}, and on with step {step + 1}")

    def move(state: TrainState) -> TrainState:
        guard = state.guard._replace(streak=jnp.int32(0), rolled_back=jnp.int32(1))
        return state._replace(step=jnp.int32(step), guard=guard)

    where = jax.tree.map(lambda leaf: leaf.sharding, run.abstract)
    return jax.jit(move, out_shardings=where, donate_argnums=0)(state)
