"""BERT: the bidirectional encoder (arXiv:1810.04805), with one of five heads.

    model = make(vocab_size=30_522, context=512)                      # masked language modelling
    model = make(vocab_size=30_522, context=512, head="classify", labels=2)

Post-norm, as published. Dropout on embeddings and residual branches; none on attention weights.
Layers are scanned. Shape suffixes: as in layers.py, v vocabulary (padded to a multiple of 128),
p positions to predict, c classes.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.arguments import Count, InputError, Positive, Precision, Rate
from research.kernels.matmul import compute_dtype
from research.models.functional import Model, functional
from research.models.layers import (
    MLP,
    Attention,
    MLPKind,
    Norm,
    Number,
    activate,
    constant,
    dropout,
    histories,
    look_up,
    padded_size,
    param,
    project,
    vocab_logits,
)
from research.models.stack import Remat, run, stack
from research.sharding import constrain

Array = jax.Array
NUMBERS = ("dropout", "norm_epsilon")  # may be tracers
STD = 0.02


def make(
    vocab_size: Count | None = None,
    context: Count | None = None,
    num_layers: Count = 12,
    num_heads: Count = 12,
    width: Count = 768,
    mlp_width: Count | None = None,
    mlp: MLPKind = "gelu_erf",
    num_types: Count = 2,
    norm_epsilon: Positive = 1e-12,
    dropout: Rate = 0.1,
    head: Literal["mlm", "pretrain", "classify", "tag", "span"] = "mlm",
    labels: Count | None = None,
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto",
    remat: Remat = "none",
    scan: bool = True,
    unroll: Count = 1,
    *,
    precision: Precision = "fp32",
) -> Model:
    """Returns the model. vocab_size, context and labels None: what the data says; mlp_width None:
    4 x width. `head`: masked tokens; the same and whether a second sentence follows (pretrain); a
    class of the text; a class of each token (tag); start and end of an answer (span).

    Raises InputError when the heads do not divide the width, or the labels are missing.
    """
    arguments = dict(locals())
    if vocab_size is None or context is None:
        raise InputError("bert needs vocab_size and context, or data that decides them")
    if width % num_heads:
        raise InputError(f"width={width} does not divide into num_heads={num_heads} heads")
    if head in ("classify", "tag") and labels is None:
        raise InputError(f"head={head!r} needs labels, or data that decides them")
    arguments |= {name: Number(arguments[name]) for name in NUMBERS}
    arguments |= dict(mlp_width=mlp_width or 4 * width)
    return functional(lambda rngs: BERT(**arguments, rngs=rngs))


class Block(nnx.Module):
    """Attention and feed-forward, each added to its input and then normed."""

    def __init__(self, arguments: dict[str, Any], rngs: nnx.Rngs) -> None:
        a = arguments
        shared = dict(bias=True, std=STD, out_std=STD, precision=a["precision"], rngs=rngs)
        heads = a["num_heads"]
        self.rate = a["dropout"]
        self.attention = Attention(
            a["width"], heads, heads, backend=a["attention"], causal=False, **shared
        )
        self.norm1 = Norm(a["width"], "layernorm", True, a["norm_epsilon"].value)
        self.mlp = MLP(a["width"], a["mlp_width"], kind=a["mlp"], **shared)
        self.norm2 = Norm(a["width"], "layernorm", True, a["norm_epsilon"].value)

    def __call__(
        self, x_btd: Array, key: Array | None, cache: None, *, segments_bt: Array, train: bool
    ) -> tuple[Array, None]:
        keys = (None, None) if key is None else jax.random.split(key)
        y, _ = self.attention(x_btd, segments_bt=segments_bt, train=train)
        x_btd = self.norm1(x_btd + dropout(y, self.rate.value, keys[0]))
        y = self.mlp(x_btd, train=train)
        x_btd = self.norm2(x_btd + dropout(y, self.rate.value, keys[1]))
        return constrain(x_btd, "batch", "sequence", None), cache


class Dense(nnx.Module):
    """A product with a bias."""

    def __init__(
        self, shape: tuple[int, int], axes: tuple[str, str], precision: str, rngs: nnx.Rngs
    ) -> None:
        self.precision = precision
        self.kernel = param(rngs, shape, axes, STD)
        self.kernel_bias = constant(shape[1:], ("norm",), 0.0)
        histories(self, "kernel")

    def __call__(self, x: Array, *, train: bool) -> Array:
        return project(self, "kernel", "...d,dk->...k", x, train)


class BERT(nnx.Module):
    """Methods: __call__ (what the head says); for losses encode and predict."""

    def __init__(self, *, rngs: nnx.Rngs, **arguments: Any) -> None:
        self.arguments = nnx.static(arguments)
        a, width = arguments, arguments["width"]
        padded = padded_size(a["vocab_size"])
        self.dtype = compute_dtype(a["precision"])
        self.embed = param(rngs, (padded, width), ("vocab", "embed"), STD)
        self.positions = param(rngs, (a["context"], width), ("positions", "embed"), STD)
        self.types = param(rngs, (a["num_types"], width), ("types", "embed"), STD)
        self.norm = Norm(width, "layernorm", True, a["norm_epsilon"].value)
        self.layers = stack(
            lambda rngs, index: Block(arguments, rngs), a["num_layers"], a["scan"], rngs
        )
        square, classes = ("embed", "hidden"), ("embed", "classes")
        dense = lambda size, axes: Dense((width, size), axes, a["precision"], rngs)  # noqa: E731
        if a["head"] in ("mlm", "pretrain"):
            self.transform = dense(width, square)
            self.transform_norm = Norm(width, "layernorm", True, a["norm_epsilon"].value)
            self.vocab_bias = constant((padded,), ("vocab",), 0.0)
        if a["head"] in ("pretrain", "classify"):
            self.pooler = dense(width, square)
        if a["head"] != "mlm":
            count = {"pretrain": 2, "span": 2}.get(a["head"], a["labels"])
            self.classifier = dense(count, classes)

    def __call__(
        self,
        tokens_bt: Array,
        segments_bt: Array | None = None,
        positions_bt: Array | None = None,
        types_bt: Array | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> Any:
        """Returns float32 logits: of the vocabulary (b, t, v), those of its padding -inf; with head
        pretrain these and (b, 2), where 0 says that the second sentence follows; of the classes of
        a text (b, c) or a token (b, t, c); of start and end (b, t, 2)."""
        inputs = (tokens_bt, segments_bt, positions_bt, types_bt)
        hidden_btd = self.encode(*inputs, key=key, train=train)
        head = self.arguments["head"]
        if head in ("mlm", "pretrain"):
            states, matrix = self.predict(hidden_btd, train=train)
            logits = vocab_logits(states, matrix, self.arguments["vocab_size"])
            return (
                (logits, self.classify(hidden_btd, train=train)) if head == "pretrain" else logits
            )
        if head == "classify":
            return self.classify(hidden_btd, key=key, train=train)
        rate = self.arguments["dropout"].value if head == "tag" else 0.0
        last = None if key is None or not train else jax.random.fold_in(key, 1)
        return self._wide(self.classifier(dropout(hidden_btd, rate, last), train=train))

    def encode(
        self,
        tokens_bt: Array,
        segments_bt: Array | None = None,
        positions_bt: Array | None = None,
        types_bt: Array | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Returns the last hidden states (b, t, d). Segment 0 is padding; tokens see their own
        segment only, so that packed texts stay apart. `types_bt` tell sentence A (0) from B (1)."""
        a = self.arguments
        key = key if train else None
        if positions_bt is None and tokens_bt.shape[1] > a["context"]:
            length = tokens_bt.shape[1]
            raise InputError(f"{length} tokens do not fit the context of {a['context']}; cut them")
        if positions_bt is None:
            positions_bt = jnp.broadcast_to(jnp.arange(tokens_bt.shape[1]), tokens_bt.shape)
        types_bt = jnp.zeros_like(tokens_bt) if types_bt is None else types_bt
        x = look_up(self.embed, tokens_bt, self.dtype)
        for table, index in ((self.positions, positions_bt), (self.types, types_bt)):
            x = x + constrain(table[...].astype(self.dtype), None, None)[index]
        keys = None if key is None else jax.random.split(key, a["num_layers"] + 1)
        x = dropout(self.norm(x), a["dropout"].value, None if keys is None else keys[-1])
        x = constrain(x, "batch", "sequence", None)
        call, how = dict(segments_bt=segments_bt, train=train), ("scan", "unroll", "remat")
        keys = None if keys is None else keys[:-1]
        return run(self.layers, x, keys, None, call, **{name: a[name] for name in how})[0]

    def predict(
        self, hidden_bpd: Array, *, key: Array | None = None, train: bool = False
    ) -> tuple[Array, Array]:
        """Returns states (b, p, d + 1) and the head (d + 1, v), for losses that never hold all
        logits: the last of each, ones and the vocabulary's bias, make the sum one product."""
        x = activate(self.arguments["mlp"], self.transform(hidden_bpd, train=train))
        x = self.transform_norm(x)
        ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
        head = jnp.concatenate([self.embed[...].T, self.vocab_bias[...][None]])
        return jnp.concatenate([x, ones], -1), head

    def classify(
        self, hidden_btd: Array, *, key: Array | None = None, train: bool = False
    ) -> Array:
        """Returns float32 logits (b, c) of the text, from its first token."""
        pooled = jnp.tanh(self.pooler(hidden_btd[:, 0], train=train))
        last = None if key is None or not train else jax.random.fold_in(key, 1)
        pooled = dropout(pooled, self.arguments["dropout"].value, last)
        return self._wide(self.classifier(pooled, train=train))

    def _wide(self, logits: Array) -> Array:
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
