"""How much of a batch is padding, with and without buckets?

python -m experiments.buckets --sst2=SST2 --multi30k=MULTI30K     # results/results.json, minutes
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from research.data import pairs, sentences

RESULTS = Path(__file__).parent / "results" / "results.json"
BATCH, EPOCHS = 64, 3
# Of each corpus its source, arguments (those of configs/nlp), and buckets: none, few, and more.
CORPORA = dict(
    sst2=(
        sentences,
        dict(columns=("sentence", "label"), vocab_size=8_192, context=64),
        ((), (32, 64), (16, 32, 64), (8, 16, 24, 32, 48, 64)),
    ),
    multi30k=(
        pairs,
        dict(source="en", target="de", vocab_size=8_192, context=48),
        ((), (24, 48), (16, 24, 48), (12, 16, 20, 24, 32, 48)),
    ),
)


def count(module: Any, path: str, options: dict, buckets: tuple[int, ...]) -> dict:
    """Counts the places of three epochs of training, and those that hold no token."""
    supplied = dict(split="train", seed=0, batch=BATCH)
    made = module.make(path, buckets=buckets, cut=True, **options, **supplied)
    steps = EPOCHS * made.num_rows // BATCH
    places = tokens = 0
    shapes = set()
    for batch in itertools.islice(made.batches(), steps):
        sides = [batch[name] for name in ("segments", "input_segments") if name in batch]
        places += sum(side.size for side in sides)
        tokens += sum(int(side.sum()) for side in sides)
        shapes.add(batch["tokens"].shape)
    return dict(
        buckets=buckets,
        examples=made.num_rows,
        steps=steps,
        shapes=len(shapes),
        places_a_step=round(places / steps),
        tokens_a_step=round(tokens / steps),
        padding=round(1 - tokens / places, 4),
    )


def main() -> None:
    """Writes results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in CORPORA:
        parser.add_argument(f"--{name}", required=True, help=f"the folder of {name}")
    paths = vars(parser.parse_args())
    results = {}
    for name, (module, options, choices) in CORPORA.items():
        found = [count(module, paths[name], options, buckets) for buckets in choices]
        results[name] = dict(context=options["context"], batch=BATCH, found=found)
        for one in found:
            print(name, one)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
