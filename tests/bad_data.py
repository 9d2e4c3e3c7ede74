"""Text whose batches of chosen steps are bad: a data module of a user's own, for the tests."""

import time

from research.arguments import Size
from research.data import text


def make(
    path: str,
    bad: tuple = (),
    slow: tuple = (),
    context: Size = 32,
    workers: Size = 0,
    *,
    split: str,
    seed: int,
    batch: int,
) -> text.Source:
    """Returns text.make's source; the loss of the steps in `bad` is NaN, the batches of the steps
    in `slow` take ten minutes. Raises what text.make raises."""
    source = text.make(
        reader="files", path=path, tokenizer="bytes", context=context, workers=workers,
        split=split, seed=seed, batch=batch,
    )  # fmt: skip

    def batches(start_step=0, *arguments, **options):
        made = source.batches(start_step, *arguments, **options)
        for step, one in enumerate(made, start_step + 1):
            if step in bad and split == "train":
                one["weight"] = one["weight"] * float("nan")
            if step in slow and split == "train":
                time.sleep(600)
            yield one

    return source._replace(batches=batches)
