"""What `make train` runs: a small GPT learns the standard library, beside an order-5 n-gram model.

python -m experiments.first_run --workdir=runs/first
"""

import argparse
import json
import sys
import time
from pathlib import Path

from research.__main__ import main as anneal

PROMPT = "def read_lines(path):\n"


def main() -> int:
    """Trains (or goes on), then prints the comparison, a sample and where the picture is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/first")
    parser.add_argument("--config", default="configs/nlp/gpt.py")
    arguments, overrides = parser.parse_known_args()
    folder = arguments.workdir
    start = time.monotonic()
    code = anneal(["train", f"--config={arguments.config}", f"--workdir={folder}", *overrides])
    if code:
        return code
    seconds = time.monotonic() - start

    from research import generate, workdir
    from research.data import ngram
    from research.lookup import find

    config = workdir.existing_config(folder)
    result = last_evaluation(Path(folder) / "metrics.jsonl", config.eval.split)
    texts = {}
    for split in ("train", config.eval.split):
        records = find("data.readers", config.data.reader)(
            path=config.data.path, split=split, field=config.data.field
        )
        texts[split] = [records.read(index).encode() for index in range(records.count)]
    baseline = ngram.bits_per_byte(texts["train"], texts[config.eval.split], order=5)
    sample = next(generate.generate(folder, [PROMPT], temperature=0.8, top_p=0.95, seed=1))
    size = sum(map(len, texts[config.eval.split])) / 1e6

    print(f"\nA sample after {config.steps} steps:\n")
    print(PROMPT + sample["text"])
    print(f"\nHeld-out text: {len(texts[config.eval.split])} files, {size:.2f} MB")
    print(f"  GPT             {result['bits_per_byte']:.4f} bits per byte  ({seconds:.0f} s)")
    print(f"  order-5 n-gram  {baseline:.4f} bits per byte")
    better = result["bits_per_byte"] < baseline
    print("The model wins." if better else "The n-gram model wins: train longer.")
    print(f"Loss curve: {folder}/loss.png")
    summary = {
        "bits_per_byte": result["bits_per_byte"],
        "ngram_bits_per_byte": baseline,
        "seconds": round(seconds, 1),
    }
    (Path(folder) / "summary.json").write_text(json.dumps(summary) + "\n")
    return 0 if better or overrides else 1


def last_evaluation(path: Path, split: str) -> dict:
    """Returns the last line of metrics.jsonl for `split`."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["split"] == split][-1]


if __name__ == "__main__":
    sys.exit(main())
