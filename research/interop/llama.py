"""Llama (arXiv:2302.13971): `LlamaForCausalLM`.

Its Linear weights are (out, in), ours (in, out); its rotary positions turn the halves of a head,
as ours do.
"""

from typing import Any

from research.interop import GPT, Family, Shape, Tensor, padded


def make() -> Family:
    """Returns the family."""
    return Family(
        architecture="LlamaForCausalLM",
        prefix="model.",
        model=GPT
        | dict(experts=None, norm="rmsnorm", positions="rotary", mlp="swiglu", bias=False),
        fields=(
            ("vocab_size", "vocab_size", 32_000),
            ("max_position_embeddings", "context", 2_048),
            ("num_hidden_layers", "num_layers", 32),
            ("num_attention_heads", "num_heads", 32),
            ("num_key_value_heads", "num_kv_heads", 32),
            ("hidden_size", "width", 4_096),
            ("intermediate_size", "mlp_width", 11_008),
            ("rms_norm_eps", "norm_epsilon", 1e-6),
            ("rope_theta", "rope_theta", 10_000.0),
            ("tie_word_embeddings", "tie_embeddings", False),
        ),
        fixed={
            "hidden_act": ("silu", "swish"),
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "rope_scaling": (None,),
            "head_dim": (None,),  # width / heads: `read`
        },
        harmless=("pretraining_tp", "is_llama_config"),  # the first: how a product is split up
        tensors=tensors,
        complete=complete,
        ignored=r"rotary_emb\.inv_freq$",
        repeated={"lm_head.weight": "model.embed_tokens.weight"},
        read=read,
        write=write,
    )


def read(config: dict, theta: float = 10_000.0) -> dict:
    """Returns the config with one spelling of the rotary positions (transformers 5 has
    rope_parameters), and without the sizes that follow from others."""
    heads = config.get("num_attention_heads", 32)
    for rope in (config.get("rope_scaling"), config.pop("rope_parameters", None)):
        if not isinstance(rope, dict):
            continue
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or rope.keys() - {"rope_type", "type", "rope_theta"}:
            config["rope_scaling"] = rope  # to be refused
            break
        config["rope_scaling"] = None
        config["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", theta))
    if config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = heads
    if config.get("head_dim") == config.get("hidden_size", 4_096) / heads:
        del config["head_dim"]
    return config


def write(config: dict) -> dict:
    """Returns the config in both spellings."""
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    return config | {"rope_parameters": rope}


def complete(model: dict[str, Any], shapes: dict[str, Shape]) -> dict[str, Any]:
    """Returns config.model with the sizes that it leaves to the model."""
    kv_heads = shapes["layers/0/attention/k"][-2]
    return model | {"mlp_width": shapes["layers/0/mlp/up"][-1], "num_kv_heads": kv_heads}


def tensors(model: dict[str, Any]) -> list[Tensor]:
    """Returns all tensors of a config.model."""
    d, f, table = model["width"], model["mlp_width"], around(model)
    for i in range(model["num_layers"]):
        theirs, ours = f"model.layers.{i}.mlp", f"layers/{i}/mlp"
        for x, size in (("up", (d, f)), ("gate", (d, f)), ("down", (f, d))):
            table.append(linear(f"{theirs}.{x}_proj", *size[::-1], f"{ours}/{x}", size))
    return table


def around(model: dict[str, Any]) -> list[Tensor]:
    """Returns all tensors but those of the feed-forward layers, which others have too."""
    d, heads, kv_heads = (model[x] for x in ("width", "num_heads", "num_kv_heads"))
    dim, vocab = d // heads, model["vocab_size"]
    table = [
        Tensor("model.embed_tokens.weight", (vocab, d), {"embed": (padded(vocab), d)}),
        Tensor("model.norm.weight", (d,), {"norm/scale": (d,)}),
    ]
    if not model["tie_embeddings"]:
        table.append(linear("lm_head", vocab, d, "head", (d, padded(vocab))))
    for i in range(model["num_layers"]):
        theirs, ours = f"model.layers.{i}", f"layers/{i}"
        for x, n in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            name, path = f"{theirs}.self_attn.{x}_proj", f"{ours}/attention/{x}"
            table.append(linear(name, n * dim, d, path, (d, n, dim)))
        name = f"{theirs}.self_attn.o_proj"
        table.append(linear(name, d, d, f"{ours}/attention/out", (heads, dim, d)))
        for x, name in (("norm1", "input_layernorm"), ("norm2", "post_attention_layernorm")):
            table.append(Tensor(f"{theirs}.{name}.weight", (d,), {f"{ours}/{x}/scale": (d,)}))
    return table


def linear(theirs: str, out: int, width: int, ours: str, shape: Shape) -> Tensor:
    """Returns the tensor of a Linear without bias."""
    return Tensor(f"{theirs}.weight", (out, width), {ours: shape}, transpose=True)
