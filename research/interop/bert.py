"""BERT (arXiv:1810.04805) with the head that `architectures` names.

Files often hold more than one head. What ours have a place for (the pooler, the transform of masked
tokens) can be taken by a model of another head; the rest is said to be unused. `BertModel` has no
head: `head` is None. Old files call the parameters of norms gamma and beta.
"""

import re
from typing import Any

from research.interop import Family, Shape, Tensor, padded

HEADS = {
    "BertForMaskedLM": "mlm",
    "BertForPreTraining": "pretrain",
    "BertForSequenceClassification": "classify",
    "BertForTokenClassification": "tag",
    "BertForQuestionAnswering": "span",
    "BertModel": None,
}
ACTIVATIONS = {
    "gelu": "gelu_erf",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
}
CLASSIFIER = {
    "pretrain": "cls.seq_relationship",
    "classify": "classifier",
    "tag": "classifier",
    "span": "qa_outputs",
}


def make() -> Family:
    """Returns the family."""
    return Family(
        architecture="BERT",
        prefix="bert.",
        model=dict(name="bert"),
        fields=(
            ("vocab_size", "vocab_size", 30_522),
            ("max_position_embeddings", "context", 512),
            ("num_hidden_layers", "num_layers", 12),
            ("num_attention_heads", "num_heads", 12),
            ("hidden_size", "width", 768),
            ("intermediate_size", "mlp_width", 3_072),
            ("type_vocab_size", "num_types", 2),
            ("layer_norm_eps", "norm_epsilon", 1e-12),
            ("num_labels", "labels", 2),
        ),
        choices={
            "architecture": ("head", HEADS),
            "hidden_act": ("mlp", ACTIVATIONS),
        },
        fixed={
            "position_embedding_type": ("absolute",),
            "is_decoder": (False,),
            "add_cross_attention": (False,),
            "tie_word_embeddings": (True,),
        },
        # Rates of dropout are numbers of a training; those of the pooler are read by nothing.
        harmless=(
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "classifier_dropout",
            "finetuning_task",
            "directionality",
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
            "pooler_type",
        ),
        tensors=tensors,
        complete=complete,
        optional=optional,
        unused=r"^(cls|classifier|qa_outputs)\.|^(bert\.)?pooler\.",
        spelling=spelling,
        ignored=r"embeddings\.position_ids$",
        repeated={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        read=read,
        write=write,
    )


def read(config: dict) -> dict:
    """Returns the config with the head by its own key, and the number of labels, of which files
    often have the names alone."""
    architectures, names = config.get("architectures"), config.get("id2label")
    if architectures:
        config["architecture"] = architectures[0]
    if isinstance(names, dict):
        config.setdefault("num_labels", len(names))
    return config


def write(config: dict) -> dict:
    """Returns the config with `architectures`, and names for the labels of a model that has some;
    their number is that of the names."""
    head, labels = config.pop("architecture"), config.pop("num_labels")
    config["architectures"] = [head]
    if HEADS[head] in ("classify", "tag"):
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(labels)}
    return config


def complete(model: dict[str, Any], shapes: dict[str, Shape]) -> dict[str, Any]:
    """Returns config.model with the sizes that it leaves to the model."""
    labels = shapes.get("classifier/kernel", (0, 2))[-1]
    return model | {"mlp_width": shapes["layers/0/mlp/up"][-1], "labels": labels}


def spelling(name: str) -> str:
    """Returns today's name of a tensor."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def tensors(model: dict[str, Any]) -> list[Tensor]:
    """Returns all tensors of a config.model."""
    d, f, heads, vocab = (model[x] for x in ("width", "mlp_width", "num_heads", "vocab_size"))
    dim, context, types, head = d // heads, model["context"], model["num_types"], model["head"]
    at = "bert.embeddings"
    table = [
        Tensor(f"{at}.word_embeddings.weight", (vocab, d), {"embed": (padded(vocab), d)}),
        Tensor(f"{at}.position_embeddings.weight", (context, d), {"positions": (context, d)}),
        Tensor(f"{at}.token_type_embeddings.weight", (types, d), {"types": (types, d)}),
        *norm(f"{at}.LayerNorm", "norm", d),
    ]
    for i in range(model["num_layers"]):
        theirs, ours = f"bert.encoder.layer.{i}", f"layers/{i}"
        for x, name in (("q", "query"), ("k", "key"), ("v", "value")):
            name, path = f"{theirs}.attention.self.{name}", f"{ours}/attention/{x}"
            table += dense(name, d, d, path, (d, heads, dim), (heads, dim))
        name, path = f"{theirs}.attention.output", f"{ours}/attention/out"
        table += dense(f"{name}.dense", d, d, path, (heads, dim, d))
        table += norm(f"{name}.LayerNorm", f"{ours}/norm1", d)
        table += dense(f"{theirs}.intermediate.dense", f, d, f"{ours}/mlp/up")
        table += dense(f"{theirs}.output.dense", d, f, f"{ours}/mlp/down")
        table += norm(f"{theirs}.output.LayerNorm", f"{ours}/norm2", d)
    if head in ("mlm", "pretrain"):
        table += _predictions(model)
    if head in ("pretrain", "classify"):
        table += _pooler(model)
    if head in CLASSIFIER:
        count = model["labels"] if head in ("classify", "tag") else 2
        table += dense(CLASSIFIER[head], count, d, "classifier/kernel")
    return table


def optional(model: dict[str, Any]) -> list[Tensor]:
    """Returns the tensors of other heads that mean the same in each of them."""
    found = [] if model["head"] in ("mlm", "pretrain") else _predictions(model)
    return found + ([] if model["head"] in ("pretrain", "classify") else _pooler(model))


def _predictions(model: dict[str, Any]) -> list[Tensor]:
    d, vocab, at = model["width"], model["vocab_size"], "cls.predictions"
    return [
        *dense(f"{at}.transform.dense", d, d, "transform/kernel"),
        *norm(f"{at}.transform.LayerNorm", "transform_norm", d),
        Tensor(f"{at}.bias", (vocab,), {"vocab_bias": (padded(vocab),)}),
    ]


def _pooler(model: dict[str, Any]) -> list[Tensor]:
    return dense("bert.pooler.dense", model["width"], model["width"], "pooler/kernel")


def dense(
    theirs: str,
    out: int,
    width: int,
    ours: str,
    shape: Shape | None = None,
    bias: Shape | None = None,
) -> list[Tensor]:
    """Returns the tensors of a Linear, whose parameter is `ours` and whose bias `ours`_bias."""
    return [
        Tensor(f"{theirs}.weight", (out, width), {ours: shape or (width, out)}, transpose=True),
        Tensor(f"{theirs}.bias", (out,), {f"{ours}_bias": bias or (out,)}),
    ]


def norm(theirs: str, ours: str, width: int) -> list[Tensor]:
    """Returns the tensors of a LayerNorm."""
    return [
        Tensor(f"{theirs}.weight", (width,), {f"{ours}/scale": (width,)}),
        Tensor(f"{theirs}.bias", (width,), {f"{ours}/bias": (width,)}),
    ]
