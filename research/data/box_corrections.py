"""Pictures with boxes put right: lines that clean_images.py wrote and a person filled in.

    data = dict(name="detection", reader="voc", path="bccd", corrections="queue.jsonl")

    {"picture": "a.jpg", "box": [9, 9, 9, 20], "label": "cell", "digest": "9c1f...",
     "correction": [7, 9, 12, 20]}

A correction of a box is other corners, another class, or false: the box is left out. Of a picture,
whose line has no box and the label "", it is false. corrections.py says what holds of every line.
"""

import itertools
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from research.arguments import InputError
from research.data.corrections import Key, digest, found_in, named_picture, read
from research.data.image_readers import Some
from research.data.scene_readers import Scenes


def box_key(split: str, scenes: Scenes, index: int, number: int) -> Key:
    """Returns what a correction knows box `number` of picture `index` by."""
    *box, label = scenes.boxes[index][number].tolist()
    shown = named_picture(split, scenes.names[index]).values()
    return digest([*shown, json.dumps(box)]), scenes.classes[int(label)]


def corrected(
    scenes: Scenes, split: str, splits: dict[str, Callable[[], Scenes]], file: str
) -> tuple[Scenes, list]:
    """Returns a split with its corrections, and all corrections of the file in a fixed order.
    Raises InputError naming the line of one that has no picture or box any more, or is none."""

    def accept(correction: Any) -> Any:
        if correction is False or (isinstance(correction, str) and correction in scenes.classes):
            return correction
        if isinstance(correction, list) and len(correction) == 4:
            with suppress(OverflowError):  # a number of hundreds of digits
                box = np.array(
                    [x if type(x) in (int, float) else np.nan for x in correction], float
                )
                if np.isfinite(box).all() and (box[:2] < box[2:]).all():
                    return tuple(box.tolist())
        raise ValueError(
            f"{correction!r:.80} is no correction; expected [x1, y1, x2, y2] with x1 < x2 and y1 < "
            f"y2, false, or of {', '.join(scenes.classes)}"
        )

    def keys(name: str, held: Scenes) -> list[list[Key]]:
        """Of each picture its own, and those of its boxes."""
        return [
            [(digest(named_picture(name, held.names[index]).values()), "")]
            + [box_key(name, held, index, number) for number in range(len(boxes))]
            for index, boxes in enumerate(held.boxes)
        ]

    wanted = read(file, accept)
    own = keys(split, scenes)
    others = (keys(name, open_()) for name, open_ in splits.items() if name != split)
    flat = (list(itertools.chain(*some)) for some in itertools.chain([own], others))
    found_in(wanted, flat)
    rows: dict[str, list] = {name: [] for name in ("names", "sizes", "boxes", "crowds", "areas")}
    chosen, changed = [], 0
    for index, (first, *found) in enumerate(own):
        told = {n: wanted[key][0] for n, key in enumerate(found) if key in wanted}
        changed += len(told) + (first in wanted)
        if first in wanted:
            if wanted[first][0] is not False:
                raise InputError(f"{wanted[first][1]} is of a picture: expected false")
            continue
        boxes, areas = scenes.boxes[index].copy(), scenes.areas[index].copy()
        for number, correction in told.items():
            if isinstance(correction, str):
                boxes[number, 4] = scenes.classes.index(correction)
            elif correction:
                boxes[number, :4] = correction
                areas[number] = (boxes[number, 2:4] - boxes[number, :2]).prod()
        kept = [number for number in range(len(boxes)) if told.get(number) is not False]
        parts = (scenes.names[index], scenes.sizes[index], boxes[kept], scenes.crowds[index][kept])
        for name, part in zip(rows, (*parts, areas[kept]), strict=True):
            rows[name].append(part)
        chosen.append(index)
    print(f"{file}: {changed} boxes and pictures of split {split} corrected", file=sys.stderr)
    order = sorted((key, correction) for key, (correction, _) in wanted.items())
    return scenes._replace(**rows, read=Some(scenes.read, np.array(chosen, int))), order
