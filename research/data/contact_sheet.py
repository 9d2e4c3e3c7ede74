"""A batch as one picture, for people to look at what a model is given.

draw(next(source.batches()), source.info["classes"], "inputs.png")
"""

from pathlib import Path

import numpy as np

from research.data.media import package

SIDE, COLUMNS, LINE = 160, 8, 12  # pixels of a tile, tiles in a row, pixels for its class
COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def draw(batch: dict[str, np.ndarray], classes: list[str], png: str | Path, most: int = 64) -> None:
    """Writes up to `most` images of a batch into a PNG file, those of weight 0 left out: each with
    its class below it, or its boxes and their classes drawn.

    `batch` holds image uint8 (b, h, w, c), labels (b,), or boxes (b, m, 4) and labels (b, m) with
    -1 for none. Raises InputError without Pillow, OSError where the file cannot be written.
    """
    pillow = package("PIL.Image", "vision")
    rows = [row for row in range(len(batch["image"])) if batch["weight"][row] > 0][:most]
    high = -(-max(len(rows), 1) // COLUMNS) * (SIDE + LINE)
    sheet = pillow.new("RGB", (min(max(len(rows), 1), COLUMNS) * SIDE, high), "white")
    for place, row in enumerate(rows):
        corner = (place % COLUMNS * SIDE, place // COLUMNS * (SIDE + LINE))
        boxes = batch["boxes"][row] if "boxes" in batch else None
        tile = _tile(np.asarray(batch["image"][row]), boxes, batch["labels"][row], classes)
        sheet.paste(tile, corner)
    with open(png, "wb") as file:
        sheet.save(file, "PNG")


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
