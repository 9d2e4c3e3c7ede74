"""What does cleaning find, what does it take wrongly, and how fast is it?

    python -m experiments.cleaning

Near duplicates against all pairs by brute force; personal data against sentences made from the
definitions; MB/s of CPU time, which a busy machine disturbs less than the clock.
"""

import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from experiments.cleaning import duplicates, persons
from research.data.clean import STEPS, clean
from research.data.readers import stdlib
from research.lookup import find
from research.workdir import environment

STOPS = "the be to of and that have with is a in it for was on are as this".split()
REPEATS = 3


def prose(seed: int, megabytes: int) -> list[str]:
    """Returns documents that pass the filters: Zipf-distributed made-up words with the stop words
    of English between them, in lines and paragraphs, an address or number in every fifth."""
    draw = random.Random(seed)
    letters = "eeettaaooinnsshrdlucm"
    lexicon = ["".join(draw.choices(letters, k=draw.randint(2, 10))) for _ in range(50_000)]
    weights = np.cumsum(1 / np.arange(10, 50_010)).tolist()
    texts, size = [], 0
    while size < megabytes * 1e6:
        words = draw.choices(lexicon, cum_weights=weights, k=draw.randint(100, 900))
        words[::2] = draw.choices(STOPS, k=len(words[::2]))
        for place in range(14, len(words), 15):
            words[place] += draw.choice([".", ",\n", ".\n\n", " é"])
        if draw.random() < 0.2:
            words[3] = draw.choice(list(persons.POSITIVE.values()))(draw)
        texts.append(" ".join(words))
        size += len(texts[-1].encode())
    return texts


def source() -> list[str]:
    """Returns the standard library's source in documents of 3,000 characters."""
    records = stdlib.make(None, "train", "text")
    texts = [records.read(index) for index in range(records.count)]
    return [text[at : at + 3000] for text in texts for at in range(0, len(text), 3000)]


def speed(name: str, texts: list[str], **arguments: str) -> float:
    """Returns MB per second of CPU time of a step over documents, the median of REPEATS."""
    step = find("data.cleaning", name)(**arguments)
    call = step.clean or step.sign
    call("é " + texts[0])  # tables are made at the first call
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        found = [call(text) for text in texts]
        if step.decide is not None:
            step.decide(np.array(found), texts.__getitem__)
        times.append(time.process_time() - start)
    return sum(len(text.encode()) for text in texts) / 1e6 / statistics.median(times)


def cpu_seconds() -> float:
    """Returns the CPU time of this process and of those it started that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def whole(texts: list[str]) -> dict[str, float]:
    """Returns the speed of a pass of all default steps, from reading to report.json."""
    size = sum(len(text.encode()) for text in texts) / 1e6
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "raw")
        raw.mkdir()
        lines = [json.dumps(dict(text=text)) for text in texts]
        (raw / "train.jsonl").write_text("\n".join(lines))
        for processes in (1, 2):
            start, cpu = time.perf_counter(), cpu_seconds()
            out = str(Path(folder, f"out{processes}"))
            given = dict(reader="jsonl", splits=("train",), shard=500, processes=processes)
            report = clean(out, str(raw), **given)
            wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
            result[f"wall_mb_per_s_{processes}_processes"] = size / wall
            result[f"mb_per_s_per_core_{processes}_processes"] = size / cpu
        result |= dict(mb=size, documents=len(texts), documents_out=report["documents_out"])
        result |= dict(cores=os.cpu_count(), load_average=os.getloadavg()[0])
    return result


def main() -> None:
    """Measures, prints and writes results/results.json."""
    near = [duplicates.measure(pairs=2000, seed=seed) for seed in range(3)]
    masks = [persons.measure(each=1000, seed=seed) for seed in range(3)]
    texts, code = prose(0, 12), source()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "evaluation.jsonl")
        file.write_text("\n".join(json.dumps(dict(text=text)) for text in prose(1, 1)))
        names = Path(folder, "names.txt")
        names.write_text("\n".join(persons.names(random.Random(0))[0]))
        extra = dict(contamination=dict(path=str(file), reader="jsonl"))
        speeds = {
            name: {
                what: speed(name, some, **extra.get(name, {}))
                for what, some in (("prose", texts), ("source", code))
            }
            for name in (*STEPS, "contamination")
        }
        speeds["personal with a list of names"] = {
            "prose": speed("personal", texts, names=str(names))
        }
    result = dict(
        near_duplicates=near,
        personal_data=masks,
        mb_per_s_per_core=speeds,
        whole_pass=whole(texts),
        aims=dict(recall_of_pairs=0.95, precision_of_removed=0.95),
    )
    found = environment()
    result |= {key: found[key] for key in ("python", "platform", "packages")}
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    (Path(__file__).parent / "results" / "results.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
