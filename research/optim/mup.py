"""The optimizer's half of the maximal-update parametrisation (muP, arXiv:2203.03466, table 8): the
steps of hidden matrices shrink with the width. The model has the other half (`base_width`).

    model=dict(name="gpt", width=512, base_width=64), chain=("clip", "adam", "mup", "decay", "lr")

The learning rate that is best at `base_width` is then near the best at any width, with the same
number of heads.
"""

import optax

from research import tree
from research.arguments import Count, InputError
from research.optim import is_hidden, layerwise


def make(
    width: Count | None = None, base_width: Count | None = None
) -> optax.GradientTransformation:
    """Multiplies updates of hidden matrices by base_width / width (None: those of the model).

    Embeddings, head, gains and biases keep the learning rate. In front of `decay`, which does not
    depend on the width. Raises InputError when the model has no base width.
    """
    if base_width is None or width is None:
        raise InputError("config.optim.chain has mup; set config.model.base_width, too")

    scale = lambda path, u: u * (base_width / width) if is_hidden(path, u) else u  # noqa: E731
    return layerwise(optax.stateless(lambda updates, _: tree.map_named(scale, updates)))
