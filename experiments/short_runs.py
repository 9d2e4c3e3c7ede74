"""Short runs in memory: one compiled step serves every seed and every number of a grid.

runs = ShortRuns(config)
found = runs.train(seed=1, numbers={"optim.lr.peak": 3e-3})     # losses; nothing is written
"""

import math
import statistics
from typing import Any

import jax
import ml_collections
import numpy as np
from scipy import stats

from research import build, workdir
from research import config as config_lib
from research.evaluate import evaluate_split


class ShortRuns:
    """Runs of one config that differ in seed and in `names`, numbers of optimizer or gradients."""

    def __init__(
        self, config: ml_collections.FrozenConfigDict, names: tuple[str, ...] = ("optim.lr.peak",)
    ) -> None:
        self.run, self.names = build.build(config), names
        self.config = self.run.config
        self.eval_step = jax.jit(self.run.eval_step)
        self.validation = build.make_source(self.config, self.config.eval.split)

        def step(numbers: dict[str, jax.Array], state: Any, batch: dict) -> tuple[Any, dict]:
            parts = (self.config, self.run.model, self.run.task, numbers)
            return build.make_step(*parts)[1](state, batch)

        self.step = jax.jit(step, donate_argnums=1)

    def train(
        self, seed: int, numbers: dict[str, float], every: int = 10, evaluate: bool = True
    ) -> dict[str, Any]:
        """Returns {"curve": [(step, training loss)], "loss": of the whole validation split}; the
        loss is infinite where the updates of the run were refused to its end."""
        values = self.config.to_dict() | {"seed": seed}
        run = self.run._replace(config=ml_collections.FrozenConfigDict(values))
        source = build.make_source(run.config, "train")
        given = {name: np.float32(numbers[name]) for name in self.names}
        curve, metrics = [], {}
        with jax.set_mesh(run.mesh):
            state, given["seed"] = build.init(run), np.uint32(seed)
            batches = build.batches(run, source)
            for step, batch in enumerate(batches, 1):
                state, metrics = self.step(given, state, batch)
                if step % every == 0 or step == 1:
                    curve.append((step, float(metrics["loss"])))
                if step == self.config.steps or int(metrics["refused_in_a_row"]) > 20:
                    break
            batches.close()
            if metrics["refused"]:
                return {"curve": curve, "loss": math.inf}
            if not evaluate:
                return {"curve": curve, "state": state}
            variables = build.weights(state, build.kept(run.config))
            found = evaluate_split(run, self.eval_step, variables, self.validation)
        return {"curve": curve, "loss": found["loss"]}


def load(spec: str, overrides: list[str], **sections: Any) -> ml_collections.FrozenConfigDict:
    """Returns a config with whole sections replaced."""
    values = config_lib.load(spec, overrides).to_dict()
    return config_lib.resolve(values | sections)


def interval(losses: list[float]) -> dict[str, Any]:
    """Returns the mean and its 95 % t interval."""
    mean = statistics.mean(losses)
    if len(losses) < 2:
        return {"mean": mean}
    half = stats.t.ppf(0.975, len(losses) - 1) * statistics.stdev(losses) / len(losses) ** 0.5
    return {"mean": mean, "t95": [mean - half, mean + half]}


def shown(one: dict[str, Any], digits: int = 1) -> str:
    """Returns what `interval` found as text."""
    low, high = one.get("t95", (None, None))
    mean = f"{one['mean']:.{digits}f}"
    return mean if low is None else f"{mean} ({low:.{digits}f} to {high:.{digits}f})"


def versions() -> dict[str, Any]:
    """Returns what a result depends on beside its config."""
    found = workdir.environment()
    return {key: found[key] for key in ("python", "platform", "packages", "devices")}
