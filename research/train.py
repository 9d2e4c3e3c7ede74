"""The training loop, read from top to bottom.

    state, metrics = train_step(state, batch)        for each batch of the source, and then
    write | evaluate | save | stop                   at their cadences

Metrics of step n are fetched after step n+1 was dispatched, so logging never stalls the device.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

import jax
import ml_collections

from research import build, hosts, pictures, workdir
from research import config as config_lib
from research.arguments import RunError
from research.checkpoint import Checkpoints
from research.checksum import checksums
from research.evaluate import evaluate_split, refuse_other_numbers
from research.init_from import fresh_state
from research.lock import locked
from research.log import Log
from research.metrics import Writer
from research.resume import is_lost, notes, refuse, restore, roll_back
from research.saver import Saver
from research.signals import catch_signals
from research.utilisation import Stopwatch
from research.watchdog import Watchdog


class Result(NamedTuple):
    """What a call of `train` came to."""

    step: int
    preempted: bool  # a signal came, all is saved, go on later
    metrics: dict[str, float]  # of an evaluation at this step


def train(
    config: ml_collections.FrozenConfigDict,
    folder: str,
    *,
    stop_after: int | None = None,
    profile: tuple[int, int] | None = None,
    debug_nans: bool = False,
    allow_drift: tuple[str, ...] = (),
) -> Result:
    """Trains in `folder`, or goes on there where a run of the same config stopped.

    Saves and returns after step `stop_after`, or when a SIGTERM or SIGINT came. `profile` names the
    first and last step of a trace in folder/profile. Raises InputError for what the user can mend,
    LockedError when another run writes to `folder`, and another RunError when storage, hardware or
    numbers allow no more (its `code` is the exit code).
    """
    # All that may be refused comes before all that is written.
    run = build.build(config)
    config = run.config
    validation = build.make_source(config, config.eval.split)
    refuse_other_numbers(run.source.info, validation)
    last = min(config.steps, stop_after or config.steps)
    with (
        Watchdog(config.guard.hang_after, folder) as watchdog,
        locked(folder) as lock,
        open_checkpoints(run, folder) as checkpoints,
        catch_signals() as stopping,
        jax.set_mesh(run.mesh),
        jax.debug_nans(debug_nans),
        explain_memory(config),
    ):
        start = checkpoints.newest(set_aside=True) or 0
        refuse(run, validation, folder, checkpoints, start, profile, allow_drift)
        if start >= last:
            pictures.at_end(folder)  # the run may have been killed before it could
            hosts.say(f"nothing to do: {folder} already has {start} of {config.steps} steps")
            return Result(start, False, {})
        hosts.say(build.describe(run))
        start, state = restore(run, checkpoints, start)
        state = fresh_state(run, folder) if state is None else state
        done = f"going on after step {start} of {config.steps}"
        hosts.say(done if start else f"training in {folder}")

        # Debugging runs a failed step again, operation by operation: its state must still be there.
        train_step = build.jit_train_step(run, donate=not debug_nans)
        eval_step = jax.jit(run.eval_step)
        path = workdir.epath.Path(folder)
        with open_writer(run, path, start) as writer, closing(Stopwatch()) as watch:
            workdir.write_config(path, config, run.source.tokenizer)
            pictures.at_start(folder, run)
            log, saver = Log(run, writer, watch), Saver(checkpoints, config.checkpoint.every)
            streak, again = int(state.guard.streak), int(state.guard.rolled_back)
            ends = tracing = False
            while not ends:
                if is_lost(run, streak):
                    state = roll_back(run, saver, start, streak, again)
                with closing(build.batches(run, run.source, start)) as batches:
                    for step, batch in enumerate(watch.inputs(batches), start + 1):
                        watchdog.beat()
                        if profile and step == profile[0] and not tracing:
                            jax.profiler.start_trace(str(path / "profile"))
                            tracing = True
                        state, metrics = train_step(state, batch)
                        if tracing and step == profile[1]:
                            jax.block_until_ready(metrics)
                            jax.profiler.stop_trace()
                            profile, tracing = None, False  # a rollback may come by here again
                        watch.dispatched(metrics["loss"])
                        log.add(step, metrics)
                        if is_lost(run, log.streak):  # since the step before: this one is undone
                            start, streak, again = step - 1, log.streak, log.rolled_back
                            log.drop()
                            break

                        lock.check()
                        ends = stopping() or step == last
                        evaluates = step == config.steps or is_due(step, config.eval.every)
                        judged = evaluates and config.checkpoint.best  # measured, so also kept
                        saves = saver.wants(step) or ends or judged
                        numbers = {}
                        if evaluates or saves:
                            watch.settle()
                            log.write()
                        if evaluates:
                            with watch.pause("evaluate"):
                                variables = build.weights(state, build.kept(config))
                                numbers = evaluate_split(
                                    *(run, eval_step, variables, validation, watchdog.beat), folder
                                )
                            writer.write(step, config.eval.split, numbers)
                        if is_due(step, config.guard.replicas_every):
                            checksums(state)
                        if saves:
                            with watch.pause("save"):
                                writer.flush()
                                save = saver.finish if ends else saver.save
                                # What a signal or a retry saves must not crowd out the cadence,
                                # to which a rollback goes back.
                                on_time = saver.is_due(step) or config.checkpoint.every is None
                                good = on_time and log.streak == 0
                                save(step, state, numbers, notes(run), good)
                        log.extra = saver.counts()
                        if ends:
                            break
            hosts.say(watch.sentence())
            if log.refused:
                hosts.say(f"{log.refused} updates were refused; metrics.jsonl names the steps")
        pictures.at_end(folder)
    return Result(step, step < last, numbers)


def is_due(step: int, every: int | None) -> bool:
    """Tells whether a cadence falls on `step`; None never does."""
    return every is not None and step % every == 0


@contextmanager
def explain_memory(config: ml_collections.FrozenConfigDict) -> Iterator[None]:
    """Turns an exhausted device into one line that says what to try."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(
            f"out of device memory ({str(error).splitlines()[0]}); try --config.batch="
            f"{max(config.batch // 2, 1)}, or the batch in parts: --config.gradients.chain="
            "accumulate --config.gradients.accumulate.micro_batches=2"
        ) from error


def open_checkpoints(run: build.Run, folder: str) -> Checkpoints:
    """Opens the run's checkpoints with the config's rules of what to keep."""
    c = run.config.checkpoint
    best = (c.best, c.best_mode) if c.best else None
    return Checkpoints(f"{folder}/checkpoints", c.keep, c.keep_every, best, c.sign, c.verify)


def open_writer(run: build.Run, path: object, start: int) -> Writer:
    """Opens the writers that the config asks for, on the first process."""
    log = run.config.log
    return Writer(
        path,
        run.config.steps,
        start,
        tensorboard=log.tensorboard,
        wandb=log.wandb,
        config=config_lib.public(run.config.to_dict()),
        active=jax.process_index() == 0,
    )
