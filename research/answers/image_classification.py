"""Names what is in an image file."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research.data import images
from research.data.augment import compose


def make(
    run: Any, tokenizer: Any, prompts: list[str], max_tokens: int | None, numbers: dict
) -> Callable:
    """Gives "label" and "probabilities", the likeliest first, to the path of an image file, which
    the model sees as the images that it was evaluated with."""
    data = run.config.data.to_dict()
    pipeline = compose(data["eval_pipeline"], data, data["size"])
    size, channels = data["size"], data["channels"]
    # All of them, before the first answer is given: a path may be wrong.
    rows = [images.load(prompt, size, channels, pipeline) for prompt in prompts]
    apply = jax.jit(lambda v, image: jax.nn.softmax(run.model.apply(v, image)[0]))

    def answer(variables: dict, info: dict, chosen: range, keys: jax.Array) -> list[dict]:
        chances = np.asarray(apply(variables, np.stack([rows[i] for i in chosen])))
        results = []
        for row in chances:
            order = np.argsort(-row, kind="stable")
            named = {info["classes"][i]: float(row[i]) for i in order}
            results.append({"label": next(iter(named)), "probabilities": named})
        return results

    return answer
