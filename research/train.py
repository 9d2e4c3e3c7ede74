"""The training loop, read from top to bottom.

    state, metrics = train_step(state, batch)        for each batch of the source, and then
    write | evaluate | save | stop                   at their cadences

Metrics of step n are fetched after step n+1 was dispatched, so logging never stalls the device.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

import jax
import ml_collections

from research import build, workdir
from research.arguments import InputError, nearest
from research.checkpoint import Checkpoints
from research.data.source import Source
from research.evaluate import evaluate_split
from research.metrics import Writer, draw_loss
from research.utilisation import Stopwatch


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
    first and last step of a trace in folder/profile. Raises InputError for what the user can mend
    and LockedError when another run writes to `folder`.
    """
    # All that may be refused comes before all that is written.
    run = build.build(config)
    config = run.config
    validation = build.make_source(config, config.eval.split)
    last = min(config.steps, stop_after or config.steps)
    with (
        workdir.locked(folder) as path,
        closing(open_checkpoints(run, folder)) as checkpoints,
        catch_signals() as stopping,
        jax.set_mesh(run.mesh),
        jax.debug_nans(debug_nans),
    ):
        start = checkpoints.latest() or 0
        refuse(run, validation, folder, checkpoints, profile, allow_drift)
        if start >= last:
            say(f"nothing to do: {folder} already has {start} of {config.steps} steps")
            return Result(start, False, {})
        say(build.describe(run))
        say(f"going on after step {start} of {config.steps}" if start else f"training in {folder}")

        state = checkpoints.restore(start, run.abstract) if start else build.init(run)
        # Debugging runs a failed step again, operation by operation: its state must still be there.
        train_step = build.jit_train_step(run, donate=not debug_nans)
        eval_step = jax.jit(run.eval_step)
        with (
            open_writer(run, path, start) as writer,
            closing(build.batches(run, run.source, start)) as batches,
            closing(Stopwatch()) as watch,
        ):
            workdir.write_config(path, config, run.source.tokenizer)
            log = Log(run, writer, watch)
            for step, batch in enumerate(watch.inputs(batches), start + 1):
                if profile and step == profile[0]:
                    jax.profiler.start_trace(str(path / "profile"))
                state, metrics = train_step(state, batch)
                if profile and step == profile[1]:
                    jax.block_until_ready(metrics)
                    jax.profiler.stop_trace()
                watch.dispatched(metrics["loss"])
                log.add(step, metrics)

                ends = step == last or stopping()
                evaluates = step == config.steps or is_due(step, config.eval.every)
                saves = ends or is_due(step, config.checkpoint.every)
                numbers = {}
                if evaluates or saves:
                    watch.settle()
                    log.write()
                if evaluates:
                    with watch.pause("evaluate"):
                        variables = build.weights(state, "raw" if config.ema is None else "ema")
                        numbers = evaluate_split(run, eval_step, variables, validation)
                    writer.write(step, config.eval.split, numbers)
                if saves:
                    with watch.pause("save"):
                        writer.flush()
                        checkpoints.save(step, state, numbers, {"data": run.source.info})
                if ends:
                    break
            say(watch.sentence())
            if log.refused:
                say(f"{log.refused} updates were refused: their loss or gradient was not finite.")
    if jax.process_index() == 0:
        say(draw_loss(path / "metrics.jsonl", path / "loss.png"))
    return Result(step, step < last, numbers)


def refuse(
    run: build.Run,
    validation: Source,
    folder: str,
    checkpoints: Checkpoints,
    profile: tuple[int, int] | None,
    allow_drift: tuple[str, ...],
) -> None:
    """Raises InputError for what cannot work, or would continue another run than `folder` holds."""
    config, start = run.config, checkpoints.latest() or 0
    if profile and not start < profile[0] <= profile[1] <= config.steps:
        raise InputError(
            f"--profile={profile[0]}:{profile[1]} is not within steps {start + 1} to {config.steps}"
        )
    if config.checkpoint.best:
        sums = jax.eval_shape(run.eval_step, build.weights(run.abstract, "raw"), run.source.spec)
        names = {*sums, *run.task.report(dict.fromkeys(sums, (1.0, 1.0)), validation.info)}
        if config.checkpoint.best not in names:
            raise InputError(
                f"config.checkpoint.best={config.checkpoint.best!r} is not measured"
                + nearest(config.checkpoint.best, names)
            )
    allowed = {key.removeprefix("config.") for key in allow_drift}
    if start:
        stored = checkpoints.notes(start)["extra"]["data"]["fingerprint"]
        if stored != run.source.info["fingerprint"] and "data" not in allowed:
            raise InputError(
                f"the data is not what {folder} was trained on (fingerprint {stored[:8]} then, "
                f"{run.source.info['fingerprint'][:8]} now); restore it, or --allow-drift=data"
            )
        workdir.refuse_drift(workdir.existing_config(folder), config, allowed)


class Log:
    """Metrics on their way from the device to the writer, fetched when the next step is under way.

    A line is written for step 1, for every `log.every`-th, and for each refused update; which ones
    depends on the step alone, so a resumed run writes the same lines.
    """

    def __init__(self, run: build.Run, writer: Writer, watch: Stopwatch) -> None:
        self.run, self.writer, self.watch = run, writer, watch
        self.every = run.config.log.every
        self.pending: list[tuple[int, dict]] = []
        self.refused = 0
        self.work, self.peak = build.work_and_peak(run)

    def add(self, step: int, metrics: dict) -> None:
        """Takes the metrics of a step just dispatched, and waits for the step before it: the device
        has one step to do, and never a queue to choke on."""
        if self.pending:
            step_before, metrics_before = self.pending[-1]
            jax.block_until_ready(metrics_before)
            if self._is_due(step_before):
                self.write()
        self.pending.append((step, metrics))

    def write(self) -> None:
        """Fetches all that is pending and writes the lines that are due."""
        refused = jax.device_get([metrics["refused"] for _, metrics in self.pending])
        for (step, metrics), is_refused in zip(self.pending, refused, strict=True):
            self.refused += int(is_refused)
            if self._is_due(step) or is_refused:
                numbers = jax.device_get(metrics) | self.watch.summary()
                self.writer.write(step, "train", numbers | self._speed(numbers))
        self.pending = []

    def _is_due(self, step: int) -> bool:
        return step == 1 or is_due(step, self.every)

    def _speed(self, numbers: dict) -> dict[str, float]:
        seconds = numbers.get("time/step")
        if not seconds:
            return {}
        unit = "tokens" if "tokens" in self.run.source.spec else "examples"
        speed = {f"time/{unit}_per_s": float(numbers["weight"]) / seconds}
        if self.peak:
            for name, flops in self.work.items():
                speed[f"time/mfu_{name}"] = flops / seconds / self.peak
        return speed


def is_due(step: int, every: int | None) -> bool:
    """Tells whether a cadence falls on `step`; None never does."""
    return every is not None and step % every == 0


def say(text: str | None) -> None:
    """Prints on the first process."""
    if text and jax.process_index() == 0:
        print(text, flush=True)


def open_checkpoints(run: build.Run, folder: str) -> Checkpoints:
    """Opens the run's checkpoints with the config's rules of what to keep."""
    c = run.config.checkpoint
    best = (c.best, c.best_mode) if c.best else None
    return Checkpoints(f"{folder}/checkpoints", c.keep, c.keep_every, best)


def open_writer(run: build.Run, path: object, start: int) -> Writer:
    """Opens the writers that the config asks for, on the first process."""
    log = run.config.log
    return Writer(
        path,
        run.config.steps,
        start,
        tensorboard=log.tensorboard,
        wandb=log.wandb,
        config=run.config.to_dict(),
        active=jax.process_index() == 0,
    )


@contextmanager
def catch_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGTERM or SIGINT came; a second one ends at once."""
    received = []

    def note(number: int, _: object) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)
        say(f"{signal.Signals(number).name}: saving after this step (again: stop at once)")

    if threading.current_thread() is not threading.main_thread():  # a notebook's worker, say
        yield lambda: False
        return
    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
