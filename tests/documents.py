"""Documents for the tests of cleaning: prose that its filters let pass, and what came out."""

import json
import random
from pathlib import Path

STOPS = "the be to of and that have with".split()


def prose(seed, count=120):
    """Returns English as the filters see it, of words that no other text has."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(3, 8))) for _ in range(count)]
    words[::3] = draw.choices(STOPS, k=len(words[::3]))
    return " ".join(words)


def write(folder, texts, heldout=()):
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in (("train", texts), ("validation", heldout or [prose(999)])):
        lines = (line if isinstance(line, bytes) else encode(line) for line in some)
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(lines))
    return str(folder)


def encode(text):
    return json.dumps({"text": text}).encode()


def outputs(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def kept(folder):
    return [
        json.loads(line)["text"]
        for path in sorted(Path(folder).glob("train-*.jsonl"))
        for line in path.open()
    ]


def gone(folder):
    return [json.loads(line) for line in (Path(folder) / "removed.jsonl").open()]
