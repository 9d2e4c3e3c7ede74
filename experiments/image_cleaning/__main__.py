"""How many wrong labels and near duplicates does image cleaning find, of those that were put there?

    python -m experiments.image_cleaning --path=CIFAR

Labels: one in twenty of scikit-learn's digits gets another label; five runs hold out a fifth each
and review it. Duplicates: 500 of the 10,000 test images of CIFAR-10 (an image folder, or an archive
of one) are changed a little and go into another split; what else counts as a duplicate is drawn
beside what it is like, for a person to judge. Writes results/results.json, and the picture to
runs/image_cleaning.
"""

import argparse
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.short_runs import versions
from experiments.whole_runs import keep_compilations, trained
from research import config
from research.data.augment import NO_BOXES, color_jitter, resized
from research.data.clean_images import SIDE, closest, unit
from research.data.image_readers import digits, folder
from research.data.images import pixels_of
from research.review import review

RESULTS = Path(__file__).parent / "results"
COMMAND = "python -m experiments.image_cleaning --path=CIFAR"
FOLDS, WRONG, SEEDED = 5, 0.05, 500
THRESHOLDS = (0.92, 0.93, 0.94, 0.95, 0.97)


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="CIFAR-10 as images in folders of classes")
    parser.add_argument("--pictures", type=Path, default=Path("runs/image_cleaning"))
    arguments = parser.parse_args()
    keep_compilations()
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    found = dict(command=COMMAND, labels=labels())
    found["duplicates"] = duplicates(arguments.path, arguments.pictures)
    (RESULTS / "results.json").write_text(json.dumps(found | versions(), indent=2) + "\n")
    print(json.dumps(found, indent=2))


def labels() -> dict:
    """Returns recall and precision of the labels that are counted as wrong."""
    random, wrong, lines = np.random.default_rng(0), set(), []
    with tempfile.TemporaryDirectory() as place:
        for split in ("train", "validation"):
            held = digits.read(split)
            for index, label in enumerate(held.labels.tolist()):
                name = f"{split}-{index}.png"
                if random.random() < WRONG:
                    label = (label + int(random.integers(1, 10))) % 10
                    wrong.add(name)
                file = Path(place, "pictures", str(label), name)
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(held.read(index)[..., 0]).save(file)
        for fold in range(FOLDS):
            given = [
                f"config.data.path={place}/pictures", "config.data.reader=folder",
                f"config.data.held_out={1 / FOLDS}", f"config.data.fold={fold}",
                "config.steps=400", "config.batch=64", "config.eval.every=400",
                "config.checkpoint.every=400", "config.log.every=100",
                "config.optim.lr.peak=0.5", "config.model.blocks=(1, 1)",
                "config.model.widths=(32, 64)", "config.data.pipeline=('pad_crop',)",
                "config.data.pad_crop.padding=1", "config.log.tensorboard=False",
            ]  # fmt: skip
            settings = config.load("configs/vision/mnist.py:tiny", given)
            trained(settings, f"{place}/{fold}", "accuracy")
            lines += review(f"{place}/{fold}", split="validation")[0]
    listed = {line["picture"].rpartition("/")[2] for line in lines}
    both = len(listed & wrong)
    numbers = dict(recall=both / len(wrong), precision=both / len(listed))
    return dict(pictures=len(digits.read("train").labels) + len(digits.read("validation").labels),
                wrong=len(wrong), listed=len(listed), **numbers)  # fmt: skip


def duplicates(path: str, pictures: Path) -> dict:
    """Returns, for thresholds, the recall of what was seeded by kind, and what else is found."""
    held = folder.make(path, "image", "label")["test"]()
    originals = [pixels_of(held.read(index), path, 3) for index in range(len(held.names))]
    random = np.random.default_rng(0)
    chosen = random.choice(len(originals), SEEDED, replace=False)
    kinds = sorted(CHANGES)
    copies = [CHANGES[kinds[n % len(kinds)]](originals[i], random) for n, i in enumerate(chosen)]
    began = time.process_time()
    small = np.stack([resized(one, SIDE, SIDE) for one in [*originals, *copies]])
    scores, likes = closest(unit(small))
    seconds, result = time.process_time() - began, {}
    own, before = scores[len(originals) :], likes[len(originals) :]
    for threshold in THRESHOLDS:
        hits = (own >= threshold) & (before == chosen)
        recall = {kind: float(hits[n :: len(kinds)].mean()) for n, kind in enumerate(kinds)}
        others = int((scores[: len(originals)] >= threshold).sum())
        wrong = int(((own >= threshold) & (before != chosen)).sum())
        recall = dict(recall=float(hits.mean()), recall_by_kind=recall)
        result[str(threshold)] = recall | dict(other_original=wrong, among_originals=others)
    pairs = [at for at in np.argsort(-scores[: len(originals)])[:64].tolist()]
    rows = [np.hstack([originals[at], originals[likes[at]]]) for at in pairs]
    sheet = np.vstack([np.hstack(rows[at : at + 8]) for at in range(0, 64, 8)])
    Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2)).save(
        pictures / "pairs.png"
    )
    return dict(pictures=len(small), seeded=SEEDED, cpu_seconds=round(seconds, 1), found=result)


def encoded(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A JPEG of low quality."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=40)
    return np.array(Image.open(file))


def smaller(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Three quarters of the size."""
    return resized(pixels, pixels.shape[0] * 3 // 4, pixels.shape[1] * 3 // 4)


def shifted(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Without a pixel at two sides."""
    return pixels[1:, 1:]


def recoloured(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Brighter or darker, and of other contrast, by up to a fifth."""
    change = color_jitter.make(brightness=0.2, contrast=0.2, saturation=0.0, hue=0.0)
    return change(pixels, NO_BOXES, random)[0]


CHANGES = dict(encoded=encoded, smaller=smaller, shifted=shifted, recoloured=recoloured)


if __name__ == "__main__":
    main()
