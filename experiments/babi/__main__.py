"""Does a small T5 answer questions about stories, learned from 900 of them? bAbI 1, 2, 4 and 15.

    python -m experiments.babi --path=TASKS [--seeds=3] [--only=1,15]

TASKS is the folder of qa1_..._train.txt, or an archive that holds it. One model a task; a tenth of
the training stories choose the checkpoint, and that one answers the test file, once: an answer
counts when it is the right one, letter by letter. Writes results/runs.jsonl as it goes (a second
call goes on), results/table.md and results/summary.json.
"""

import argparse
import tempfile
import time
from pathlib import Path

import ml_collections
import numpy as np

from experiments.babi.tables import prompt, read, write
from experiments.short_runs import interval
from experiments.whole_runs import Runs, keep_compilations, trained, write_results
from research import config
from research.generate import generate

RESULTS = Path(__file__).parent / "results"
# Words of a story and its question; steps. Published: MemN2N, 3 hops, the same 1,000 questions, one
# model a task (github.com/domluna/memn2n).
TASKS = {1: (78, 1_500), 2: (156, 1_500), 4: (30, 800), 15: (60, 1_200)}
PUBLISHED = {1: 1.0, 2: 0.83, 4: 0.98, 15: 1.0}
COMMAND = "python -m experiments.babi --path=TASKS"


def main() -> None:
    """Runs what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--path", required=True, help="bAbI's folder of one language, or an archive"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(map(str, TASKS)), help="tasks, e.g. 1,15")
    arguments, overrides = parser.parse_known_args()
    runs = Runs(RESULTS / "runs.jsonl", names=("task", "seed"))
    keep_compilations()
    with tempfile.TemporaryDirectory() as place:
        for task in map(int, arguments.only.split(",")):
            for seed in range(arguments.seeds):
                if runs.find(task=task, seed=seed) is None:
                    folder = f"{place}/{task}-{seed}"
                    line = one(arguments.path, task, seed, folder, overrides)
                    runs.add(dict(task=task, seed=seed) | line)
    if runs.read():
        write_table(runs)


def one(path: str, task: int, seed: int, folder: str, overrides: list[str]) -> dict:
    """Trains and tests one model."""
    words, steps = TASKS[task]
    stories, test = read(path, task, "train"), read(path, task, "test")
    order = np.random.default_rng((task, seed)).permutation(len(stories)).tolist()
    held = set(order[: len(stories) // 10])
    parts = dict(
        train=[story for i, story in enumerate(stories) if i not in held],
        validation=[story for i, story in enumerate(stories) if i in held],
        test=test,
    )
    tables = f"{folder}-tables"
    counts = {split: write(part, split, words, tables) for split, part in parts.items()}
    settings = configured(tables, words, steps, seed, overrides)
    line = trained(settings, folder, "accuracy") | dict(counts=counts)
    began = time.process_time()
    questions = [question for story in test for question in story]
    prompts = [prompt(sentences, question, words)[0] for sentences, question, _ in questions]
    options = dict(step="best", temperature=0.0, max_tokens=4, batch=100)
    answers = [found["text"].strip() for found in generate(folder, prompts, **options)]
    right = [a == truth for a, (_, _, truth) in zip(answers, questions, strict=True)]
    line["answering_minutes"] = round((time.process_time() - began) / 60, 2)
    return line | dict(test=float(np.mean(right)), steps=settings.steps)


def configured(
    tables: str, words: int, steps: int, seed: int, overrides: list[str]
) -> ml_collections.FrozenConfigDict:
    """Returns the config of a run: 3 layers of 64 read, one answers."""
    given = [
        f"config.data.path={tables}", f"config.data.context={words + 2}", f"config.seed={seed}",
        "config.data.source=source", "config.data.target=target", "config.data.target_context=4",
        "config.data.vocab_size=1024", f"config.steps={steps}", "config.batch=32",
        "config.model.num_layers=3", "config.model.decoder_layers=1", "config.model.width=64",
        "config.model.num_heads=4", "config.model.head_dim=16", "config.model.mlp_width=256",
        "config.model.unroll=3", "config.model.dropout=0.1", "config.task.label_smoothing=0.0",
        "config.optim.lr.peak=2e-3", "config.optim.lr.warmup=100", "config.eval.every=100",
        "config.eval.batch=100", "config.checkpoint.best=accuracy",
        "config.checkpoint.best_mode=max", "config.log.every=100", "config.log.tensorboard=False",
    ]  # fmt: skip
    return config.load("configs/nlp/translation.py:small", [*given, *overrides])


def write_table(runs: Runs) -> None:
    """Writes table.md and summary.json."""
    rows, found = [], {}
    for task in sorted({line["task"] for line in runs.read()}):
        lines = [line for line in runs.read() if line["task"] == task]
        found[task] = interval([line["test"] for line in lines]) | dict(published=PUBLISHED[task])
        low, high = found[task].get("t95", ("", ""))
        numbers = [found[task]["mean"], low, high, np.mean([x["validation"] for x in lines])]
        mean, low, high, held = (f"{x:.3f}" if x != "" else "" for x in numbers)
        minutes = np.mean([line["core_minutes"] for line in lines])
        counts = lines[0]["counts"]
        rows.append(
            f"| {task} | {mean} | {low} to {high} | {len(lines)} | {held} | {PUBLISHED[task]} | "
            f"{lines[0]['steps']:,} | {counts['train']['cut']}, {counts['test']['cut']} | "
            f"{minutes:.1f} |"
        )
    head = (
        "| task | whole answers right on test | 95 % t interval | seeds | tokens right on "
        "validation, at the best | MemN2N | steps | stories cut in train, test | core-minutes a "
        "run |\n|---|---|---|---|---|---|---|---|---|\n"
    )
    summary = {"command": COMMAND, "accuracy": found}
    write_results(RESULTS, head, rows, summary)


if __name__ == "__main__":
    main()
