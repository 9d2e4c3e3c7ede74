"""Vision Transformer (arXiv:2010.11929) that reads its classes from a token.

The published files of google/vit-base-patch16-224 and its kin are of this kind; those that end in
in21k are a `ViTModel`: they have no classes, and a new run draws its own.
"""

import re
from typing import Any

from research.interop import Family, Shape, Tensor
from research.interop.bert import ACTIVATIONS, dense, norm

HEADS = ("ViTForImageClassification", "ViTModel")
# Names of the newest transformers, which writes the old ones too.
SPELLINGS = (
    (r"^(vit\.)?layers\.(\d+)\.", r"\1encoder.layer.\2."),
    (r"attention\.q_proj\.", "attention.attention.query."),
    (r"attention\.k_proj\.", "attention.attention.key."),
    (r"attention\.v_proj\.", "attention.attention.value."),
    (r"attention\.o_proj\.", "attention.output.dense."),
    (r"mlp\.fc1\.", "intermediate.dense."),
    (r"mlp\.fc2\.", "output.dense."),
)


def make() -> Family:
    """Returns the family."""
    return Family(
        architecture=HEADS[0],
        prefix="vit.",
        model=dict(name="vit", pool="token"),
        fields=(
            ("num_channels", "channels", 3),
            ("image_size", "size", 224),
            ("patch_size", "patch", 16),
            ("num_hidden_layers", "num_layers", 12),
            ("num_attention_heads", "num_heads", 12),
            ("hidden_size", "width", 768),
            ("intermediate_size", "mlp_width", 3_072),
            ("layer_norm_eps", "norm_epsilon", 1e-12),
            ("num_labels", "labels", 2),
        ),
        choices={"hidden_act": ("mlp", ACTIVATIONS)},
        fixed={"architecture": HEADS, "qkv_bias": (True,)},
        # Rates of dropout are numbers of a training; the rest is read by nothing here.
        harmless=(
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "encoder_stride",
            "pooler_output_size",
            "pooler_act",
        ),
        least=dict(channels=1, size=1, patch=1, width=1, mlp_width=1),
        tensors=tensors,
        settle=settle,
        complete=lambda model, shapes: model,
        pixels=True,
        unused=r"^(vit\.)?pooler\.",
        spelling=spelling,
        read=read,
        write=write,
    )


def spelling(name: str) -> str:
    """Returns the name of a tensor that published files have."""
    for pattern, old in SPELLINGS:
        name = re.sub(pattern, old, name)
    return name


def read(config: dict) -> dict:
    """Returns the config with the head by its own key, and the number of labels, of which files
    have the names; none of a model without a head."""
    if isinstance(architectures := config.get("architectures"), list) and architectures:
        config["architecture"] = architectures[0]
    if isinstance(names := config.get("id2label"), dict):
        config.setdefault("num_labels", len(names))
    if config.get("architecture") == "ViTModel":
        config["num_labels"] = 0
    size, patch = config.get("image_size", 224), config.get("patch_size", 16)
    if patch < 1 or size % patch:
        raise ArithmeticError(f"patch_size={patch} does not divide image_size={size}")
    return config


def write(config: dict) -> dict:
    """Returns the config with `architectures`, and names for the labels, whose number is that of
    the names."""
    labels = config.pop("num_labels")
    config["architectures"] = [config.pop("architecture")]
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
    config["label2id"] = {f"LABEL_{i}": i for i in range(labels)}
    return config


def settle(model: dict[str, Any], shapes: dict[str, Shape]) -> dict[str, Any]:
    """Returns config.model with the sizes that it leaves to the model, or to the data."""
    return model | dict(
        mlp_width=shapes.get("layers/0/mlp/up", (0,))[-1],
        labels=shapes.get("classifier_bias", (0,))[0],
        channels=shapes.get("patches", (0,) * 4)[2],
    )


def tensors(model: dict[str, Any]) -> list[Tensor]:
    """Returns all tensors of a config.model; without labels, without a classifier."""
    d, f, heads, patch = (model[x] for x in ("width", "mlp_width", "num_heads", "patch"))
    dim, channels = d // heads, model["channels"]
    tokens, at = (model["size"] // patch) ** 2 + 1, "vit.embeddings"
    pixels, kernel = f"{at}.patch_embeddings.projection", (patch, patch, channels, d)
    table = [
        Tensor(f"{at}.cls_token", (1, 1, d), {"token": (d,)}),
        Tensor(f"{at}.position_embeddings", (1, tokens, d), {"positions": (tokens, d)}),
        Tensor(f"{pixels}.weight", (d, channels, patch, patch), {"patches": kernel}, True),
        Tensor(f"{pixels}.bias", (d,), {"patches_bias": (d,)}),
    ]
    for i in range(model["num_layers"]):
        theirs, ours = f"vit.encoder.layer.{i}", f"layers/{i}"
        for x, name in (("q", "query"), ("k", "key"), ("v", "value")):
            name, path = f"{theirs}.attention.attention.{name}", f"{ours}/attention/{x}"
            table += dense(name, d, d, path, (d, heads, dim), (heads, dim))
        name, path = f"{theirs}.attention.output.dense", f"{ours}/attention/out"
        table += dense(name, d, d, path, (heads, dim, d))
        table += dense(f"{theirs}.intermediate.dense", f, d, f"{ours}/mlp/up")
        table += dense(f"{theirs}.output.dense", d, f, f"{ours}/mlp/down")
        table += norm(f"{theirs}.layernorm_before", f"{ours}/norm1", d)
        table += norm(f"{theirs}.layernorm_after", f"{ours}/norm2", d)
    table += norm("vit.layernorm", "norm", d)
    return table + (
        dense("classifier", model["labels"], d, "classifier") if model["labels"] else []
    )
