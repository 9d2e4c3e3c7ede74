"""The boxes that a detector finds in images, ready to be drawn or judged.

found_bk6 = decode(model, variables, {"image": image_bhw3})      # x1 y1 x2 y2 score class
"""

from typing import Any

import jax

from research.kernels.detections import Head, detect


def decode(
    model: Any,
    variables: dict,
    inputs: dict[str, jax.Array],
    head: Head = "one_to_one",
    count: int = 100,
    **limits: float,
) -> jax.Array:
    """Returns (b, count, 6), the best first, padded with zeros and class -1: of one-to-one the
    highest scores, of one-to-many what non-maximum suppression keeps. `limits` are min_score,
    candidates and max_iou of kernels/detections.py. It can be jitted, all but model, variables and
    inputs static.

    inputs: image (b, h, w, 3), 0 to 255.
    """
    outputs, _ = model.apply(variables, inputs["image"])
    return detect(outputs, head, count, **limits)
