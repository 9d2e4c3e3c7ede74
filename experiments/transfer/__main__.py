"""Do weights pretrained on one corpus help on another, and do adapters do as well as all weights?

    python -m experiments.transfer --path=DATA [--seeds=5] [--only=scratch,full,lora] [--labels=500]

A small BERT learns to fill masked words of MR and SUBJ without labels; then 500 labelled sentences
of SST-2 train it from scratch, from those weights in full, or from them by LoRA: the same number of
steps, batches and sentences for each seed. DATA holds sst2/ and text_classification/. Pretraining
lies in --workdir and is done once. Writes results/runs.jsonl as it goes (a second call goes on),
results/table.md and results/summary.json.
"""

import argparse
import fcntl
import json
import statistics
import tempfile
from pathlib import Path

import jax
import ml_collections

from experiments.sentences.tables import words
from experiments.short_runs import interval, shown
from experiments.transfer.texts import few, unlabelled
from experiments.whole_runs import Runs, keep_compilations, trained, write_results
from research import build, config
from research.evaluate import evaluate

RESULTS = Path(__file__).parent / "results"
COMMAND = "python -m experiments.transfer --path=DATA"
MODEL = [
    "config.model.num_layers=2", "config.model.num_heads=4", "config.model.width=128",
    "config.model.unroll=2", "config.data.context=48", "config.log.tensorboard=False",
    "config.log.every=100",
]  # fmt: skip
MASKED = [
    "config.steps=1500", "config.batch=64", "config.model.dropout=0.1", "config.eval.every=500",
    "config.data.reader=jsonl", "config.data.packing=none", "config.optim.lr.warmup=100",
    "config.checkpoint.every=500", "config.data.vocab_size=None",
]  # fmt: skip
LABELLED = [
    "config.steps=200", "config.batch=32", "config.model.dropout=0.3", "config.eval.every=25",
    "config.optim.lr.warmup=20",
]  # fmt: skip
# The usual learning rates of each kind; all keep the checkpoint of the best validation accuracy.
KINDS = {
    "scratch": ["config.optim.lr.peak=1e-3"],
    "full": ["config.optim.lr.peak=5e-4"],
    "lora": [
        "config.optim.lr.peak=2e-3", "config.lora.rank=8",
        "config.lora.targets=('attention/([qkv]|out)$',)",
        "config.lora.train=('^pooler','^classifier')",
    ],
}  # fmt: skip


def main() -> None:
    """Runs what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="a folder with sst2/, text_classification/")
    parser.add_argument("--workdir", default="runs/transfer", help="of the pretraining")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=500)
    parser.add_argument("--only", default=",".join(KINDS))
    arguments, overrides = parser.parse_known_args()
    runs = Runs(RESULTS / "runs.jsonl", names=("kind", "labels", "seed"))
    keep_compilations()
    pretrain(arguments.path, arguments.workdir)
    with tempfile.TemporaryDirectory() as place:
        for seed in range(arguments.seeds):
            for kind in arguments.only.split(","):
                names = dict(kind=kind, labels=arguments.labels, seed=seed)
                if runs.find(**names) is None:
                    folder = f"{place}/{kind}-{seed}"
                    few(arguments.path, seed, arguments.labels, tables := f"{folder}-tables")
                    given = [f"config.data.path={tables}", f"config.seed={seed}", *overrides]
                    settings = configured(kind, arguments.workdir, given)
                    line = names | sizes(settings) | trained(settings, folder, "accuracy")
                    found = evaluate(folder, step="best", split="test")
                    runs.add(line | dict(test=found["accuracy"], given=KINDS[kind] + LABELLED))
    if runs.read():
        write_table([line for line in runs.read() if line["labels"] == arguments.labels])


def pretrain(path: str, workdir: str) -> None:
    """Makes WORKDIR/masked, the run of masked words, once, whichever process comes first."""
    Path(workdir).mkdir(parents=True, exist_ok=True)
    kept = RESULTS / "pretraining.json"
    with open(f"{workdir}/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not Path(f"{workdir}/counts.json").exists():
            texts, counts = unlabelled(path, f"{workdir}/texts")
            words(texts, 2, f"{workdir}/words")
            Path(f"{workdir}/counts.json").write_text(json.dumps(counts))
        if Path(f"{workdir}/loss.json").exists():
            return
        given = [f"config.data.path={workdir}/texts", *MODEL, *MASKED,
                 f"config.data.tokenizer_path={workdir}/words/tokenizer.json"]  # fmt: skip
        settings = config.load("configs/nlp/bert.py:small", given)
        line = trained(settings, f"{workdir}/masked", None)
        line |= dict(counts=json.loads(Path(f"{workdir}/counts.json").read_text()), given=MASKED)
        kept.write_text(json.dumps(line, indent=2) + "\n")
        Path(f"{workdir}/loss.json").write_text(json.dumps(line))


def configured(kind: str, workdir: str, given: list[str]) -> ml_collections.FrozenConfigDict:
    """Returns the config of a run with labels; all kinds have the tokenizer of the pretraining."""
    given = [f"config.data.tokenizer_path={workdir}/masked/tokenizer.json", *MODEL, *LABELLED,
             *KINDS[kind], *given]  # fmt: skip
    if kind != "scratch":
        given += [f"config.init_from={workdir}/masked"]
    return config.load("configs/nlp/sentiment.py:bert", given)


def sizes(settings: ml_collections.FrozenConfigDict) -> dict[str, int]:
    """Returns how many parameters learn, and the bytes of the optimizer's state."""
    state = build.build(settings).abstract
    trained_, kept = jax.tree.leaves(state.params), jax.tree.leaves(state.opt_state)
    count = sum(leaf.size for leaf in trained_)
    return dict(parameters=count, optimizer=sum(x.size * x.dtype.itemsize for x in kept))


def write_table(lines: list[dict]) -> None:
    """Writes table.md and summary.json."""
    table, summary = [], {"command": COMMAND, "accuracy": {}, "differences": {}}
    kinds = [kind for kind in KINDS if any(line["kind"] == kind for line in lines)]
    tests = {
        kind: {x["seed"]: 100 * x["test"] for x in lines if x["kind"] == kind} for kind in kinds
    }
    for kind in kinds:
        one = summary["accuracy"][kind] = interval(list(tests[kind].values()))
        first = next(line for line in lines if line["kind"] == kind)
        held = statistics.mean(100 * line["validation"] for line in lines if line["kind"] == kind)
        minutes = statistics.mean(line["core_minutes"] for line in lines if line["kind"] == kind)
        table.append(
            f"| {kind} | {shown(one)} | {len(tests[kind])} | {held:.1f} | "
            f"{first['parameters']:,} | {first['optimizer']:,} | {minutes:.1f} |"
        )
    table += ["", "| paired difference in accuracy, same sentences and seeds | 95 % t interval |"]
    table += ["|---|---|"]
    for first, second in (("full", "scratch"), ("lora", "scratch"), ("lora", "full")):
        if first in tests and second in tests:
            both = sorted(tests[first].keys() & tests[second].keys())
            gaps = [tests[first][seed] - tests[second][seed] for seed in both]
            one = summary["differences"][f"{first} - {second}"] = interval(gaps)
            table.append(f"| {first} less {second} | {shown(one)} |")
    head = (
        "| kind | test accuracy, 95 % t interval | seeds | validation, at its best | parameters "
        "that learn | bytes of optimizer state | core-minutes a run |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    write_results(RESULTS, head, table, summary)


if __name__ == "__main__":
    main()
