"""How well does a sentence classifier learn from scratch? A CNN and a small BERT, three corpora.

    python -m experiments.sentences --path=DATA --tune      # results/tuning.jsonl, validation only
    python -m experiments.sentences --path=DATA [--seeds=5] [--only=sst2/cnn,trec/bert]

DATA holds sst2/{train,dev,test}.tsv and text_classification/{rt-polarity,TREC.train,TREC.test}.all.
Each run keeps the checkpoint of its best validation accuracy, and that one is tested, once. Writes
results/runs.jsonl as it goes (a second call goes on), results/table.md and results/summary.json.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import ml_collections

from experiments.sentences.settings import PUBLISHED, TRIALS, best
from experiments.sentences.tables import CORPORA, make, rows, words
from experiments.short_runs import interval
from experiments.whole_runs import Runs, keep_compilations, trained, write_results
from research import config
from research.evaluate import evaluate

RESULTS = Path(__file__).parent / "results"
ARCHITECTURES = ("cnn", "bert")
NAMES = ("data", "model", "seed")
RUNS, TUNING = (
    Runs(RESULTS / "runs.jsonl", NAMES),
    Runs(RESULTS / "tuning.jsonl", (*NAMES, "given")),
)
COMMAND = "python -m experiments.sentences --path=DATA"


def main() -> None:
    """Runs what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="a folder with sst2/, text_classification/")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="e.g. sst2/cnn,mr/bert")
    parser.add_argument("--tune", action="store_true", help="the trials of settings.py instead")
    arguments = parser.parse_args()
    everything = [f"{data}/{model}" for model in ARCHITECTURES for data in CORPORA]
    only = arguments.only.split(",") if arguments.only else everything
    if unknown := set(only) - set(everything):
        parser.error(f"--only={','.join(unknown)}; there are {', '.join(everything)}")
    keep_compilations()
    with tempfile.TemporaryDirectory() as place:
        for what in only:
            if arguments.tune:
                tune(arguments.path, what, place)
            else:
                run(arguments.path, what, range(arguments.seeds), place)
    if RUNS.read() and not arguments.tune:
        write_table()


def tune(path: str, what: str, place: str) -> None:
    """Tries what is left of the trials, on validation alone."""
    data, model = what.split("/")
    for number, given in enumerate(TRIALS.get(what, ())):
        names = dict(data=data, model=model, seed=100, given=given)
        if TUNING.find(**names) is None:
            folder = f"{place}/{data}-{model}-trial{number}"
            settings = configured(path, data, model, 100, given, folder)
            TUNING.add(names | trained(settings, folder, "accuracy"))


def run(path: str, what: str, seeds: range, place: str) -> None:
    """Trains and tests what is left of the seeds."""
    data, model = what.split("/")
    for seed in seeds:
        names = dict(data=data, model=model, seed=seed)
        if RUNS.find(**names) is None:
            given, folder = best(what, TUNING.read()), f"{place}/{data}-{model}-{seed}"
            settings = configured(path, data, model, seed, given, folder)
            line = names | trained(settings, folder, "accuracy")
            found = evaluate(folder, step="best", split="test")
            RUNS.add(line | dict(test=found["accuracy"], f1=found["f1"], given=given))


def configured(
    path: str, data: str, model: str, seed: int, given: list[str], folder: str
) -> ml_collections.FrozenConfigDict:
    """Returns the config of a run, whose tables and words lie beside its workdir."""
    make(data, path, seed, tables := f"{folder}-tables")
    given = [f"config.data.path={tables}", f"config.seed={seed}", "config.log.tensorboard=False",
             "config.log.every=100", *given]  # fmt: skip
    for text in [text for text in given if text.startswith("words=")]:
        given.remove(text)
        texts = [sentence for sentence, _ in rows(f"{tables}/train.tsv")]
        made = words(texts, int(text.removeprefix("words=")), f"{folder}-words")
        given.append(f"config.data.tokenizer_path={made}")
    return config.load(f"configs/nlp/sentiment.py:{model}", given)


def write_table() -> None:
    """Writes table.md and summary.json."""
    table, found = [], {}
    for data, model in ((d, m) for d in CORPORA for m in ARCHITECTURES):
        lines = [x for x in RUNS.read() if (x["data"], x["model"]) == (data, model)]
        if not lines:
            continue
        accuracies = [100 * line["test"] for line in lines]
        found[f"{data}/{model}"] = one = interval(accuracies) | dict(tests=accuracies)
        low, high = (f"{x:.1f}" for x in one.get("t95", (one["mean"],) * 2))
        held = statistics.mean(100 * line["validation"] for line in lines)
        minutes = statistics.mean(line["core_minutes"] for line in lines)
        kim = "{} to {}".format(*PUBLISHED[data]) if model == "cnn" else ""
        table.append(f"| {data} | {model} | {one['mean']:.1f} | {low} to {high} | {len(lines)} | "
                    f"{held:.1f} | {kim} | {minutes:.1f} |")  # fmt: skip
    head = (
        "| corpus | model | test accuracy | 95 % t interval | seeds | validation, at its best | "
        "CNN-rand, published | core-minutes a run |\n|---|---|---|---|---|---|---|---|\n"
    )
    summary = {"command": COMMAND, "accuracy": found, "published": PUBLISHED}
    write_results(RESULTS, head, table, summary)


if __name__ == "__main__":
    main()
