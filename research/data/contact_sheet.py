"""Examples as one picture, for people to look at what a model is given.

of(source, seed=0).save("inputs.png")
"""

from typing import Any

import numpy as np

from research.data.media import package
from research.data.source import RecordError, Source

SIDE, COLUMNS, LINE = 160, 8, 12  # pixels of a tile, tiles in a row, pixels for its class
COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def of(source: Source, seed: int, most: int = 64) -> Any:
    """Returns what `draw` makes of the first `most` examples that a training run of `seed` sees."""
    found = []
    for index in source.rows(0)[:most]:
        try:
            found.append(source.row(index, 0, np.random.default_rng((seed, 0, index + 1))))
        except RecordError:
            continue  # the run itself says so
    return draw({name: np.stack([one[name] for one in found]) for name in source.spec},
                source.info["classes"])  # fmt: skip


def draw(batch: dict[str, np.ndarray], classes: list[str]) -> Any:
    """Returns the images of a batch as one of Pillow's, those of weight 0 left out: each with its
    class below it, or its boxes and their classes drawn.

    `batch` holds image uint8 (b, h, w, c), labels (b,), or boxes (b, m, 4) and labels (b, m) with
    -1 for none. Raises InputError without Pillow.
    """
    pillow = package("PIL.Image", "vision")
    rows = [row for row in range(len(batch["image"])) if batch["weight"][row] > 0]
    high = -(-max(len(rows), 1) // COLUMNS) * (SIDE + LINE)
    sheet = pillow.new("RGB", (min(max(len(rows), 1), COLUMNS) * SIDE, high), "white")
    for place, row in enumerate(rows):
        corner = (place % COLUMNS * SIDE, place // COLUMNS * (SIDE + LINE))
        boxes = batch["boxes"][row] if "boxes" in batch else None
        tile = _tile(np.asarray(batch["image"][row]), boxes, batch["labels"][row], classes)
        sheet.paste(tile, corner)
    return sheet


def _tile(
    pixels: np.ndarray, boxes: np.ndarray | None, labels: np.ndarray, classes: list[str]
) -> object:
    """Returns an image of SIDE x (SIDE + LINE): small pixels stay squares."""
    pillow, drawing = package("PIL.Image", "vision"), package("PIL.ImageDraw", "vision")
    shown = pillow.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    scale = (SIDE - 2) / max(shown.size)
    sides = [max(round(side * scale), 1) for side in shown.size]
    kind = pillow.Resampling.NEAREST if scale > 1 else pillow.Resampling.BILINEAR
    tile = pillow.new("RGB", (SIDE, SIDE + LINE), "white")
    tile.paste(shown.resize(sides, kind), (0, 0))
    pen = drawing.Draw(tile)
    if boxes is None:
        pen.text((1, SIDE), _plain(classes[int(labels)]), fill="black")
        return tile
    for (x1, y1, x2, y2), label in zip(boxes * scale, labels.tolist(), strict=True):
        if label >= 0:
            color = COLORS[label % len(COLORS)]
            pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=color)
            pen.text((x1 + 2, y1), _plain(classes[label]), fill=color)
    return tile


def _plain(name: str) -> str:
    return name[:24].encode("latin1", "replace").decode("latin1")  # what Pillow's own font holds
