"""A whole split through the evaluation step; sums add, so the padded last batch counts exactly.
Where answers are texts it is decoded too, and judged as a corpus."""

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import build, pictures, workdir
from research import config as config_lib
from research.arguments import InputError
from research.checkpoint import Checkpoints
from research.data import tokenizer as tokenizer_lib
from research.data.source import Source
from research.decode import beam, until
from research.models.functional import Model
from research.sharding import constrain
from research.step import TrainState


def evaluate_split(
    run: build.Run,
    eval_step: Callable,
    variables: dict,
    source: Source,
    beat: Callable[[], None] = lambda: None,
    folder: str | None = None,
) -> dict[str, float]:
    """Returns the numbers of a whole split: each metric's sum over its weight, the task's report,
    loss/NAME of each part of a mix, and with config.eval.beams those of the decoded texts.
    `eval_step` is jitted; float64 sums on the host do not depend on the batch size. `beat` is
    called for each batch: a watchdog's. The task's pictures go to `folder`/pictures."""
    judge = build.judge(run, source)
    totals: dict[str, tuple[Any, Any]] = {}
    parts = itertools.chain.from_iterable([name] * n for name, n in source.parts.items())

    def add(sums: dict, part: str | None) -> None:
        sums = jax.device_get(sums)
        if part is not None:
            sums = sums | {f"loss/{part}": sums["loss"]}
        for name, (total, weight) in sums.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = before[0] + np.asarray(total, float), before[1] + float(weight)

    sums, part = {}, None
    for batch in build.batches(run, source, one_pass=True):
        beat()
        # One batch ahead, no more: the device is never idle and never has a queue to choke on.
        previous, sums = (sums, part), eval_step(variables, batch)
        add(*previous)
        part = next(parts, None)
    add(sums, part)
    if not totals or totals["loss"][1] == 0:
        raise InputError("the evaluation split is empty; check config.eval.split and the data")
    # Arrays, whose names begin with "_", are sums for the report alone.
    means = {n: float(x / weight) for n, (x, weight) in totals.items() if not n.startswith("_")}
    info = source.info | {"gold": source.gold}
    numbers = means | run.task.report(totals, info)
    if folder is not None:
        pictures.of_evaluation(folder, run.task, totals, info)
    return numbers | judge(decode_split(run, variables, source, beat)) if judge else numbers


def decode_split(
    run: build.Run, variables: dict, source: Source, beat: Callable[[], None] = lambda: None
) -> list[str]:
    """Returns what the model makes of each input of a split, in their order: texts, found by a beam
    search as config.eval has it, as long as the data's targets may be."""
    rules, texts = run.config.eval, [""] * len(source.gold)
    size, codec = source.spec["targets"].shape[1], source.tokenizer
    model = run.model._replace(axes=None)
    decode = _decoder(model, size, rules.beams, codec.start, codec.end)  # can be hashed
    for step, batch in enumerate(build.batches(run, source, one_pass=True)):
        beat()
        tokens = np.asarray(decode(variables, batch, rules.length_penalty))
        # Buckets have an order of their own; what pads a batch stands last and is no row.
        for index, row in zip(source.rows(step, True), tokens, strict=False):
            texts[index] = codec.decode(until(row, codec.end))
    return texts


@functools.lru_cache(maxsize=2)  # a run's evaluations share one
def _decoder(model: Model, size: int, beams: int, start: int, end: int) -> Callable:
    @jax.jit
    def decode(variables: dict, batch: dict, length_penalty: jax.Array) -> jax.Array:
        inputs = {name: batch[name] for name in ("inputs", "input_segments")}
        rows = len(batch["inputs"])
        inputs["tokens"] = jnp.full((rows, 1), start, jnp.int32)
        inputs["lengths"] = jnp.ones(rows, jnp.int32)
        inputs["limits"] = size * batch["input_segments"][:, 0]  # rows of padding stop at once
        options = dict(max_tokens=size, beams=beams, length_penalty=length_penalty, end=end)
        tokens, _ = beam.decode(model, variables, inputs, **options)
        return constrain(tokens, None, None)  # each host has all of them

    return decode


def evaluate(
    folder: str,
    step: str = "latest",
    weights: str | None = None,
    split: str | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, float]:
    """Evaluates a checkpoint of a workdir; `step` is "latest", "best" or a number, `weights` "raw"
    or "ema" (None: ema when the run kept one), `overrides` change the stored config (another mesh,
    another text). Texts are decoded and judged where task and data have such, greedily unless
    config.eval.beams says otherwise (None: not at all). Raises InputError for what is not there."""
    run, source = reopen(folder, split, overrides)
    asked = any(text.startswith("config.eval.beams=") for text in overrides)
    if run.task.judge and source.gold is not None and run.config.eval.beams is None and not asked:
        run = run._replace(config=config_lib.override(run.config, ["config.eval.beams=1"]))
    with jax.set_mesh(run.mesh):
        variables, number, info = restore_weights(folder, run, step, weights)
        refuse_other_numbers(info, source)
        result = evaluate_split(run, jax.jit(run.eval_step), variables, source)
    return {"step": number} | result


def reopen(
    folder: str, split: str | None, overrides: Sequence[str] = ()
) -> tuple[build.Run, Source]:
    """Returns a workdir's run and a split of its data (None: the one it is evaluated on), with the
    tokenizer of the run. Raises InputError for data that the model was not made for."""
    config = config_lib.override(workdir.existing_config(folder), overrides)
    tokenizer = workdir.epath.Path(folder) / "tokenizer.json"
    # Another text would give another tokenizer: the run's own is used.
    if config.data.get("tokenizer_path", "") is None and tokenizer.exists():
        config = config_lib.override(config, [f"config.data.tokenizer_path={tokenizer}"])
    run = build.build(config, with_data=False)
    source = build.make_source(config, split or config.eval.split)
    build.decide(config, source.info)  # refuses data that is more than the model was made for
    return run, source


def refuse_other_numbers(info: dict, source: Source) -> None:
    """Raises InputError where the numbers of a run, whose data said `info`, would mean something
    else in `source`."""
    for kind in ("items", "classes"):
        if info.get(kind) != source.info.get(kind):
            raise InputError(
                f"the split has other {kind} than the run was trained with, whose numbers would "
                "mean others; take data of the same"
            )


def restore_weights(
    folder: str, run: build.Run, step: str, weights: str | None
) -> tuple[dict, int, dict]:
    """Returns `variables` of a checkpoint without reading its optimizer state, its step, and
    source.info of its data."""
    weights = weights or build.kept(run.config)
    if weights == "ema" and build.kept(run.config) == "raw":
        raise InputError("--weights=ema, but this run kept no average (config.ema, config.swa)")
    fields: Iterable[str] = ("ema",) if weights == "ema" else ("params", "model_state")
    rules = run.config.checkpoint
    best = (rules.best, rules.best_mode) if rules.best else None
    with Checkpoints(f"{folder}/checkpoints", best=best, verify=rules.verify) as checkpoints:
        finders = {"latest": checkpoints.newest, "best": checkpoints.best}
        number = finders[step]() if step in finders else step
        if number is None or not str(number).isdecimal():
            raise InputError(
                f"--step={step}: {folder} has no such checkpoint; there are {checkpoints.steps()}"
                + ("" if best else " and config.checkpoint.best names no metric to judge by")
            )
        number = int(number)
        extra = checkpoints.notes(number)["extra"]
        _refuse_another_model(folder, extra)
        state: TrainState = checkpoints.restore(number, run.abstract, only=(*fields, "frozen"))
    return build.weights(state, weights), number, extra["data"]


def _refuse_another_model(folder: str, stored: dict) -> None:
    """Equal shapes do not make an equal model: what config.json says must be what was trained."""
    config = workdir.existing_config(folder)
    drift = config_lib.drift(config_lib.from_json(json.dumps(stored["config"])), config)
    parts = ("model.", "task.", "ema", "swa", "freeze", "lora", "data.tokenizer")
    drift = {key: change for key, change in drift.items() if key.startswith(parts)}
    if drift:
        diff = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in drift.items())
        raise InputError(
            f"the checkpoint was not trained with {folder}/config.json ({diff}); restore that file"
        )
    path = workdir.epath.Path(folder) / "tokenizer.json"
    trained_with = stored["data"].get("tokenizer_fingerprint")
    if trained_with and tokenizer_lib.load(path).fingerprint != trained_with:
        raise InputError(f"{path} is not the tokenizer that the checkpoint was trained with")
