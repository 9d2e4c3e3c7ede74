"""Metrics on their way from the device to the writer, fetched when the next step is under way.

log = Log(run, writer, watch)
log.add(step, metrics)      # after each dispatch; log.streak then belongs to the step before
"""

import jax
import numpy as np

from research import build, hosts
from research.metrics import Writer
from research.utilisation import Stopwatch

SLOW = 0.1  # of a step: so much more input and Python than on the median host is worth a word
ROWS = 8  # examples of a bad batch that are named


class Log:
    """Writes a line for step 1, for every `log.every`-th, and for each refused or spiking update.

    Which ones depends on the step alone, so a resumed run writes the same lines.
    """

    def __init__(self, run: build.Run, writer: Writer, watch: Stopwatch) -> None:
        self.run, self.writer, self.watch = run, writer, watch
        self.pending: list[tuple[int, dict]] = []
        self.refused = 0  # updates so far
        self.streak = self.rolled_back = 0  # what the guard had counted at the last known step
        self.extra: dict[str, float] = {}  # more numbers for each line, all under "time/"
        self.work, self.peak = build.work_and_peak(run)

    def add(self, step: int, metrics: dict) -> None:
        """Takes the metrics of a step just dispatched, and waits for the step before it: the device
        has one step to do, and never a queue to choke on."""
        if self.pending:
            step_before, metrics_before = self.pending[-1]
            self._judge(metrics_before)
            if self._is_due(step_before) or self.streak or float(metrics_before["spike"]):
                self.write()
        self.pending.append((step, metrics))

    def write(self) -> None:
        """Fetches all that is pending and writes the lines that are due."""
        for step, metrics in self.pending:
            judged = {name: float(metrics[name]) for name in ("refused", "spike")}
            self.refused += int(judged["refused"])
            self._judge(metrics)
            if self._is_due(step) or any(judged.values()):
                numbers = jax.device_get(metrics) | self.watch.summary()
                self._name_slow_hosts(step, numbers)
                self.writer.write(step, "train", numbers | self._speed(numbers) | self.extra)
                self._name_batch(step, numbers)
        self.pending = []

    def drop(self) -> None:
        """Forgets what was dispatched after the last written step: it is undone."""
        self.pending, self.streak, self.rolled_back = [], 0, 0

    def _judge(self, metrics: dict) -> None:
        self.streak, self.rolled_back = (
            int(metrics[name]) for name in ("refused_in_a_row", "rolled_back")
        )

    def _is_due(self, step: int) -> bool:
        return step == 1 or step % self.run.config.log.every == 0

    def _name_batch(self, step: int, numbers: dict) -> None:
        if not numbers["refused"] and not numbers["spike"]:
            return
        what = "update refused" if numbers["refused"] else "spike"
        rows = self.run.source.rows(step - 1)
        more = f" and {len(rows) - ROWS} more" if len(rows) > ROWS else ""
        hosts.say(
            f"step {step}: {what}, loss {numbers['loss']:.4g} ({numbers['loss_deviation']:.1f} "
            f"deviations above the median), gradient norm {numbers['grad_norm']:.4g}; "
            f"its batch is rows {', '.join(map(str, rows[:ROWS]))}{more} of the training split"
        )

    def _name_slow_hosts(self, step: int, numbers: dict) -> None:
        """All hosts wait for the slowest: it is the one that waits least for the others."""
        if hosts.count() == 1:
            return
        # Every host must ask, also one that has timed no step yet.
        busy = hosts.gather(numbers.get("time/input", 0.0) + numbers.get("time/host", 0.0))
        excess = busy - np.median(busy)
        for index in np.flatnonzero(excess > SLOW * numbers.get("time/step", np.inf)):
            hosts.say(
                f"step {step}: host {index} is slow: {busy[index]:.3f} s a step for input and "
                f"Python, the median host {np.median(busy):.3f} s"
            )

    def _speed(self, numbers: dict) -> dict[str, float]:
        seconds = numbers.get("time/step")
        if not seconds or not np.isfinite(numbers["weight"]):
            return {}
        # Where rows have a weight each, the loss may still be divided by something else, as that of
        # detection is by the number of objects. Else it is divided by tokens: of masked_lm those
        # that were masked.
        spec = self.run.source.spec
        if "weight" in spec and spec["weight"].ndim == 1:
            speed = {"time/examples_per_s": spec["weight"].shape[0] / seconds}
        else:
            speed = {"time/tokens_per_s": float(numbers["weight"]) / seconds}
        if self.peak:
            for name, flops in self.work.items():
                speed[f"time/mfu_{name}"] = flops / seconds / self.peak
        return speed
