"""T5 (arXiv:1910.10683), v1.0 and v1.1: `T5ForConditionalGeneration`.

v1.0 ties its head and scales the states before it, v1.1 does neither. The table of relative
positions lies in the first block of each side.
"""

from collections.abc import Callable
from typing import Any

from research.interop import Family, Shape, Tensor, padded

# What feed_forward_proj decides.
FOLLOWS = {
    "relu": {"dense_act_fn": "relu", "is_gated_act": False},
    "gated-gelu": {"dense_act_fn": "gelu_new", "is_gated_act": True},
}


def make() -> Family:
    """Returns the family."""
    return Family(
        architecture="T5ForConditionalGeneration",
        prefix="",
        model=dict(name="t5", experts=None),
        fields=(
            ("vocab_size", "vocab_size", 32_128),
            ("num_layers", "num_layers", 6),
            ("num_decoder_layers", "decoder_layers", 6),
            ("num_heads", "num_heads", 8),
            ("d_kv", "head_dim", 64),
            ("d_model", "width", 512),
            ("d_ff", "mlp_width", 2_048),
            ("relative_attention_num_buckets", "buckets", 32),
            ("relative_attention_max_distance", "max_distance", 128),
            ("layer_norm_epsilon", "norm_epsilon", 1e-6),
            ("tie_word_embeddings", "tie_embeddings", True),
        ),
        choices={"feed_forward_proj": ("mlp", {"relu": "relu", "gated-gelu": "geglu"})},
        fixed={"is_encoder_decoder": (True,), "is_decoder": (False,)},
        # Numbers of a training and of generation, and sizes that nothing reads.
        harmless=(
            "dropout_rate",
            "classifier_dropout",
            "initializer_factor",
            "decoder_start_token_id",
            "n_positions",
        ),
        tensors=tensors,
        complete=complete,
        # Of a table that the attention to the input never had in use.
        ignored=r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",
        repeated={
            "encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight",
            "lm_head.weight": "shared.weight",
        },
        read=read,
        write=write,
    )


def read(config: dict) -> dict:
    """Returns the config without what follows from others. transformers 5 writes that the head is
    tied whatever it is, and says by the scale of the states which version it is."""
    for key, value in FOLLOWS.get(config.get("feed_forward_proj", "relu"), {}).items():
        if config.get(key) == value:
            del config[key]
    scale = config.get("scale_decoder_outputs")
    if scale is False:
        config["tie_word_embeddings"] = False
    if scale is config.get("tie_word_embeddings", True):
        config.pop("scale_decoder_outputs", None)
    if config.get("num_decoder_layers") is None:
        config["num_decoder_layers"] = config.get("num_layers", 6)
    return config


def write(config: dict) -> dict:
    """Returns the config with the token that a target begins with."""
    return config | {"decoder_start_token_id": 0, "pad_token_id": 0}


def complete(model: dict[str, Any], shapes: dict[str, Shape]) -> dict[str, Any]:
    """Returns config.model with the size that it leaves to the model."""
    return model | {"decoder_layers": model.get("decoder_layers") or model["num_layers"]}


def tensors(model: dict[str, Any]) -> list[Tensor]:
    """Returns all tensors of a config.model."""
    one = lambda theirs, ours, _: feed_forward(model, f"{theirs}.DenseReluDense", f"{ours}/mlp")  # noqa: E731
    return around(model, one)


def around(model: dict[str, Any], last: Callable[[str, str, int], list[Tensor]]) -> list[Tensor]:
    """Returns all tensors but the feed-forwards, which last(theirs, ours, layer) gives."""
    d, vocab = model["width"], model["vocab_size"]
    table = [Tensor("shared.weight", (vocab, d), {"embed": (padded(vocab), d)})]
    if not model["tie_embeddings"]:
        table.append(linear("lm_head", (d, vocab), "head", (d, padded(vocab))))
    for side, layers in (("encoder", "num_layers"), ("decoder", "decoder_layers")):
        shape, attention = (model["buckets"], model["num_heads"]), "block.0.layer.0.SelfAttention"
        name = f"{side}.{attention}.relative_attention_bias.weight"
        table.append(Tensor(name, shape, {f"{side}/distances": shape}))
        table.append(_norm(f"{side}.final_layer_norm", f"{side}/norm", d))
        parts = {"attention": "SelfAttention"}
        parts |= {"cross": "EncDecAttention"} if side == "decoder" else {}
        for layer in range(model[layers]):
            theirs, ours = f"{side}.block.{layer}.layer", f"{side}/layers/{layer}"
            for i, (path, name) in enumerate(parts.items()):
                table.append(_norm(f"{theirs}.{i}.layer_norm", f"{ours}/norm{i + 1}", d))
                table += _attention(model, f"{theirs}.{i}.{name}", f"{ours}/{path}")
            table += last(f"{theirs}.{len(parts)}", ours, layer)
            table.append(_norm(f"{theirs}.{len(parts)}.layer_norm", f"{ours}/norm3", d))
    return table


def feed_forward(model: dict[str, Any], theirs: str, ours: str) -> list[Tensor]:
    """Returns the tensors of a feed-forward, of an expert too."""
    d, f = model["width"], model["mlp_width"]
    gated = {"gate": "wi_0", "up": "wi_1"} if model["mlp"] == "geglu" else {"up": "wi"}
    table = [linear(f"{theirs}.{x}", (d, f), f"{ours}/{name}", (d, f)) for name, x in gated.items()]
    return [*table, linear(f"{theirs}.wo", (f, d), f"{ours}/down", (f, d))]


def _attention(model: dict[str, Any], theirs: str, ours: str) -> list[Tensor]:
    d, heads, dim = model["width"], model["num_heads"], model["head_dim"]
    table = [
        linear(f"{theirs}.{x}", (d, heads * dim), f"{ours}/{x}", (d, heads, dim)) for x in "qkv"
    ]
    return [*table, linear(f"{theirs}.o", (heads * dim, d), f"{ours}/out", (heads, dim, d))]


def linear(theirs: str, sizes: Shape, ours: str, shape: Shape) -> Tensor:
    """Returns the tensor of a Linear from sizes[0] to sizes[1]."""
    return Tensor(f"{theirs}.weight", sizes[::-1], {ours: shape}, transpose=True)


def _norm(theirs: str, ours: str, width: int) -> Tensor:
    return Tensor(f"{theirs}.weight", (width,), {f"{ours}/scale": (width,)})
