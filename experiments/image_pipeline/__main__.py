"""How many images a second does the host make, decoding and changing apart, by worker processes?

    python -m experiments.image_pipeline --config=configs/vision/resnet50_imagenet.py \\
        --config.data.reader=folder --config.data.path=IMAGES [--workers=0,1,2] [--name=crops]

IMAGES is a folder of JPEGs below folders of classes, or what another config takes. Rounds of all
worker counts alternate, so that what else the machine does meets them alike. Adds to
results/results.json, by --name.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from experiments.short_runs import versions
from research import build
from research import config as config_lib
from research.data.augment import NO_BOXES, compose
from research.data.image_readers import choose
from research.data.images import pixels_of
from research.lookup import find

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measures one config."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--workers", default="0,1,2")
    parser.add_argument("--images", type=int, default=256, help="a measurement, at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="images")
    arguments, overrides = parser.parse_known_args()
    counts = [int(count) for count in arguments.workers.split(",")]
    config = config_lib.load(arguments.config, overrides)
    found = dict(size=config.data.size, pipeline=list(config.data.pipeline), batch=config.batch)
    found |= parts(config, arguments.images)
    makers = {count: Maker(config, count, arguments.images) for count in counts}
    rates = {count: [] for count in counts}
    for _ in range(arguments.rounds):
        for count, make in makers.items():
            rates[count].append(make())
    for make in makers.values():
        make.batches.close()
    found["images_per_s"] = {count: statistics.median(found) for count, found in rates.items()}
    first = rates[counts[0]]
    found[f"times_{counts[0]}_workers"] = {
        count: [round(one / other, 3) for one, other in zip(some, first, strict=True)]
        for count, some in rates.items()
    }
    found["cores"] = len(os.sched_getaffinity(0))
    print(json.dumps(found, indent=2))
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "results.json"
    held = json.loads(file.read_text()) if file.exists() else {}
    held |= {arguments.name: found} | versions()
    file.write_text(json.dumps(held, indent=2) + "\n")


class Maker:
    """Makes batches of training, and tells how many images a second. Workers have started."""

    def __init__(self, config: ml_collections.FrozenConfigDict, workers: int, images: int) -> None:
        given = config.to_dict()
        given["data"]["workers"] = workers
        self.source = build.make_source(ml_collections.FrozenConfigDict(given), "train")
        self.batches, self.batch = self.source.batches(), config.batch
        self.turns = -(-images // config.batch)
        for _ in range(2):
            next(self.batches)

    def __call__(self) -> float:
        began = time.perf_counter()
        for _ in range(self.turns):
            next(self.batches)
        return round(self.turns * self.batch / (time.perf_counter() - began), 1)


def parts(config: ml_collections.FrozenConfigDict, images: int) -> dict[str, Any]:
    """Returns milliseconds an image of one core to read and decode, and to change."""
    data = config.data
    if data.name == "images":
        readers = find("data.image_readers", data.reader)(data.path, data.image, data.label)
        held = choose(readers, "train", data.held_out, data.path)
        boxes: Callable = lambda index: NO_BOXES  # noqa: E731
    else:
        held = find("data.scene_readers", data.reader)(data.path)["train"]()
        boxes = lambda index: held.boxes[index]  # noqa: E731
    rows = [index % len(held.names) for index in range(images)]
    channels = data.get("channels", 3)
    decoded, seconds = [], []
    for index in rows:
        began = time.process_time()
        decoded.append(pixels_of(held.read(index), str(held.names[index]), channels))
        seconds.append(time.process_time() - began)
    sections = {name: data[name] for name in data.pipeline if name in data}
    change, random, changing = compose(data.pipeline, sections, data.size), np.random, []
    for index, pixels in zip(rows, decoded, strict=True):
        began = time.process_time()
        change(pixels, boxes(index), random.default_rng(index))
        changing.append(time.process_time() - began)
    sides = statistics.mean(pixels.shape[0] * pixels.shape[1] for pixels in decoded)
    numbers = dict(
        decode_ms=1e3 * statistics.mean(seconds), change_ms=1e3 * statistics.mean(changing)
    )
    return {name: round(x, 3) for name, x in numbers.items()} | dict(
        megapixels=round(sides / 1e6, 3)
    )


if __name__ == "__main__":
    main()
