"""Mixtral (arXiv:2401.04088): `MixtralForCausalLM`.

Llama, whose feed-forward layers are experts: w1, w3 and w2 of each are our gate, up and down. These
are the names in files; transformers 5 fuses them when it has read them.
"""

from typing import Any

from research.interop import GPT, Family, Shape, Tensor, llama


def make() -> Family:
    """Returns the family."""
    shared = dict(norm="rmsnorm", positions="rotary", mlp="swiglu", bias=False, capacity=None)
    return Family(
        architecture="MixtralForCausalLM",
        prefix="model.",
        model=GPT | shared,
        fields=(
            ("vocab_size", "vocab_size", 32_000),
            ("max_position_embeddings", "context", 131_072),
            ("num_hidden_layers", "num_layers", 32),
            ("num_attention_heads", "num_heads", 32),
            ("num_key_value_heads", "num_kv_heads", 8),
            ("hidden_size", "width", 4_096),
            ("intermediate_size", "mlp_width", 14_336),
            ("num_local_experts", "experts", 8),
            ("num_experts_per_tok", "top_k", 2),
            ("rms_norm_eps", "norm_epsilon", 1e-5),
            ("rope_theta", "rope_theta", 1e6),
            ("tie_word_embeddings", "tie_embeddings", False),
        ),
        # With one expert a token its weight is 1 there, and the router's probability here.
        least={"experts": 1, "top_k": 2},
        fixed={
            "hidden_act": ("silu", "swish"),
            "sliding_window": (None,),
            "attention_bias": (False,),
            "rope_scaling": (None,),
            "head_dim": (None,),  # width / heads: `read`
        },
        # Of the training: the loss that balances the experts, and noise.
        harmless=("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
        tensors=tensors,
        complete=complete,
        ignored=r"rotary_emb\.inv_freq$",
        repeated={"lm_head.weight": "model.embed_tokens.weight"},
        read=read,
        write=llama.write,
    )


def read(config: dict) -> dict:
    """Returns the config in the spelling of `make`."""
    config.setdefault("num_key_value_heads", 8)
    return llama.read(config, theta=1e6)


def complete(model: dict[str, Any], shapes: dict[str, Shape]) -> dict[str, Any]:
    """Returns config.model with the sizes that it leaves to the model."""
    kv_heads = shapes["layers/0/attention/k"][-2]
    width = shapes["layers/0/moe/experts/0/up"][-1]
    return model | {"mlp_width": width, "num_kv_heads": kv_heads}


def tensors(model: dict[str, Any]) -> list[Tensor]:
    """Returns all tensors of a config.model."""
    d, f, count = model["width"], model["mlp_width"], model["experts"]
    table = llama.around(model)
    for i in range(model["num_layers"]):
        theirs, ours = f"model.layers.{i}.block_sparse_moe", f"layers/{i}/moe"
        table.append(llama.linear(f"{theirs}.gate", count, d, f"{ours}/router", (d, count)))
        for e in range(count):
            for x, name, size in (
                ("gate", "w1", (d, f)),
                ("up", "w3", (d, f)),
                ("down", "w2", (f, d)),
            ):
                path = f"{ours}/experts/{e}/{x}"
                table.append(llama.linear(f"{theirs}.experts.{e}.{name}", *size[::-1], path, size))
    return table
