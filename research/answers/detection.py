"""Finds the objects of an image file, and draws what it found."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from research.arguments import InputError
from research.data.augment import NO_BOXES, letterbox
from research.data.images import read
from research.data.media import package
from research.decode import boxes as decode_boxes

SHOWN = 0.25  # the lowest score of a box that is given
# Of the classes in turn: colours that are told apart (Okabe and Ito 2008, without black).
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178),
           (213, 94, 0), (204, 121, 167))  # fmt: skip


def make(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
    """Gives, to the path of an image file, its "boxes", the best first: "class", "score", and "box"
    as x1 y1 x2 y2 in pixels of the file; and the "picture" with them drawn, a PNG in the workdir's
    pictures/."""
    data, task = run.config.data, run.config.task
    for prompt in prompts:
        if not Path(prompt).expanduser().is_file():
            raise InputError(f"the prompt {prompt[:80]!r} is no file; give the path of an image")
    options = dict(head=task.head, count=task.detections, min_score=SHOWN, max_iou=task.max_iou)
    boxed = letterbox.make(data.size)

    @jax.jit
    def find(variables: dict, image: jax.Array) -> jax.Array:
        return decode_boxes.decode(run.model, variables, {"image": image}, **options)[0]

    def answer(variables: dict, info: dict, chosen: range, keys: jax.Array) -> list[dict]:
        results = []
        for number in chosen:
            pixels = read(prompts[number], 3)
            image, _ = boxed(pixels, NO_BOXES, np.random.default_rng(0))
            found = np.asarray(find(variables, image[None]))
            found = found[found[:, 5] >= 0]
            corners = letterbox.back(found[:, :4], *pixels.shape[:2], data.size)
            labels = found[:, 5].astype(int)
            boxes = [
                {"class": info["classes"][label], "score": float(score), "box": box.tolist()}
                for label, score, box in zip(labels, found[:, 4], corners, strict=True)
            ]
            path = epath.Path(info["workdir"]) / "pictures"
            path.mkdir(parents=True, exist_ok=True)
            path = path / f"{number:04d}-{Path(prompts[number]).stem}.png"
            names = [f"{one['class']} {one['score']:.2f}" for one in boxes]
            picture = package("PIL.Image", "vision").fromarray(draw(pixels, corners, names, labels))
            with path.open("wb") as file:
                picture.save(file, "PNG")
            results.append({"boxes": boxes, "picture": str(path)})
        return results

    return answer


def draw(
    pixels: np.ndarray, boxes: np.ndarray, names: Sequence[str], classes: Iterable[int]
) -> np.ndarray:
    """Returns uint8 (h, w, 3) `pixels` with a frame around each of the boxes (n, 4), x1 y1 x2 y2,
    in the colour of its class, and its name on a ground of that colour in its upper left corner.
    The first, the best, lie on top."""
    image = package("PIL.Image", "vision").fromarray(pixels)
    pen = package("PIL.ImageDraw", "vision").Draw(image)
    thick = max(1, round(min(pixels.shape[:2]) / 200))
    for box, name, label in reversed(list(zip(boxes, names, classes, strict=True))):
        colour = COLOURS[int(label) % len(COLOURS)]
        x1, y1, x2, y2 = (round(float(side)) for side in box)
        last = (max(x2 - 1, x1), max(y2 - 1, y1))  # x2 and y2 are behind the last pixels
        pen.rectangle(((x1, y1), last), outline=colour, width=thick)
        around = pen.textbbox((x1 + thick, y1 + thick), name)
        pen.rectangle(around, fill=colour)
        pen.text((x1 + thick, y1 + thick), name, fill=(0, 0, 0))
    return np.array(image)
