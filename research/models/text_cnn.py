"""Convolutions over words and the largest answer of each: a text classifier (arXiv:1408.5882).

    model = make(vocab_size=10_000, labels=2)                 # CNN-rand: embeddings learned

Shape suffixes: b batch, t time, d width, f filters, c classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from research.arguments import Count, InputError, Precision, Rate
from research.kernels.matmul import compute_dtype, einsum
from research.models.functional import Model, functional
from research.models.layers import Number, constant, look_up, padded_size, param
from research.models.layers import dropout as drop

Array = jax.Array


def make(
    vocab_size: Count | None = None,
    context: Count | None = None,
    labels: Count | None = None,
    width: Count = 300,
    filters: Count = 100,
    windows: tuple[int, ...] = (3, 4, 5),
    dropout: Rate = 0.5,
    *,
    precision: Precision = "fp32",
) -> Model:
    """Returns the model: `filters` of each of the `windows`, in words. vocab_size and labels None:
    what the data says; any `context` serves."""
    arguments = dict(locals())
    if vocab_size is None or labels is None:
        raise InputError("text_cnn needs vocab_size and labels, or data that decides them")
    arguments |= dict(dropout=Number(dropout))
    return functional(lambda rngs: TextCNN(**arguments, rngs=rngs))


class TextCNN(nnx.Module):
    """Method: __call__ (logits of the classes)."""

    def __init__(self, *, rngs: nnx.Rngs, **arguments: Any) -> None:
        self.arguments = nnx.static(arguments)
        a = arguments
        padded = padded_size(a["vocab_size"])
        self.embed = param(rngs, (padded, a["width"]), ("vocab", "embed"), 0.1)
        for size in a["windows"]:
            shape, std = (size, a["width"], a["filters"]), (size * a["width"]) ** -0.5
            setattr(self, f"window{size}", param(rngs, shape, ("types", "embed", "mlp"), std))
            setattr(self, f"window{size}_bias", constant((a["filters"],), ("mlp",), 0.0))
        total = a["filters"] * len(a["windows"])
        self.classifier = param(rngs, (total, a["labels"]), ("mlp", "classes"), 0.01)
        self.classifier_bias = constant((a["labels"],), ("classes",), 0.0)

    def __call__(
        self,
        tokens_bt: Array,
        segments_bt: Array | None = None,
        positions_bt: Array | None = None,
        types_bt: Array | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Returns float32 logits (b, c); padding, segment 0, is a vector of zeros."""
        a = self.arguments
        x_btd = look_up(self.embed, tokens_bt, compute_dtype(a["precision"]))
        if segments_bt is not None:
            x_btd = jnp.where(segments_bt[..., None] > 0, x_btd, 0)
        found = []
        for size in a["windows"]:
            # Each text has its whole padding in view: (b, t + size - 1, size, d).
            x = jnp.pad(x_btd, ((0, 0), (size - 1, size - 1), (0, 0)))
            parts = [x[:, i : x.shape[1] - size + 1 + i] for i in range(size)]
            kernel, bias = getattr(self, f"window{size}"), getattr(self, f"window{size}_bias")
            y = einsum("btsd,sdf->btf", jnp.stack(parts, 2), kernel[...], a["precision"])
            found.append(jax.nn.relu(y + bias[...].astype(y.dtype)).max(1))
        y_bf = drop(jnp.concatenate(found, -1), a["dropout"].value, key if train else None)
        logits_bc = einsum("bf,fc->bc", y_bf, self.classifier[...], a["precision"])
        return logits_bc.astype(jnp.float32) + self.classifier_bias[...]
