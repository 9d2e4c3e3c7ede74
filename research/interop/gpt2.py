"""GPT-2 (Radford et al. 2019): `GPT2LMHeadModel`.

Its Conv1D weights are (in, out), as ours; the queries, keys and values are one matrix.
"""

from typing import Any

from research.interop import GPT, Family, Shape, Tensor, padded


def make() -> Family:
    """Returns the family."""
    return Family(
        architecture="GPT2LMHeadModel",
        prefix="transformer.",
        model=GPT
        | dict(experts=None, norm="layernorm", positions="learned", mlp="gelu", bias=True),
        fields=(
            ("vocab_size", "vocab_size", 50_257),
            ("n_positions", "context", 1_024),
            ("n_layer", "num_layers", 12),
            ("n_head", "num_heads", 12),
            ("n_embd", "width", 768),
            ("n_inner", "mlp_width", 3_072),
            ("layer_norm_epsilon", "norm_epsilon", 1e-5),
            ("tie_word_embeddings", "tie_embeddings", True),
        ),
        fixed={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "reorder_and_upcast_attn": (False,),
            "add_cross_attention": (False,),
        },
        # Rates of dropout are numbers of a training; the summary is a head of another model.
        harmless=(
            "resid_pdrop",
            "embd_pdrop",
            "attn_pdrop",
            "n_ctx",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        ),  # fmt: skip
        tensors=tensors,
        complete=complete,
        ignored=r"(^|\.)h\.\d+\.attn\.(bias|masked_bias)$",  # the causal mask
        repeated={"lm_head.weight": "transformer.wte.weight"},
        read=read,
    )


def read(config: dict) -> dict:
    """Returns the config with what it leaves to the other keys: null is four times the width."""
    return config | {"n_inner": config.get("n_inner") or 4 * config.get("n_embd", 768)}


def complete(model: dict[str, Any], shapes: dict[str, Shape]) -> dict[str, Any]:
    """Returns config.model with the size that it leaves to the model."""
    return model | {"mlp_width": shapes["layers/0/mlp/up"][-1]}


def tensors(model: dict[str, Any]) -> list[Tensor]:
    """Returns all tensors of a config.model."""
    d, f, heads = model["width"], model["mlp_width"], model["num_heads"]
    dim, vocab, context = d // heads, model["vocab_size"], model["context"]
    table = [
        Tensor("transformer.wte.weight", (vocab, d), {"embed": (padded(vocab), d)}),
        Tensor("transformer.wpe.weight", (context, d), {"positions": (context, d)}),
        *_norm("transformer.ln_f", "norm", d),
    ]
    if not model["tie_embeddings"]:
        table.append(Tensor("lm_head.weight", (vocab, d), {"head": (d, padded(vocab))}, True))
    for i in range(model["num_layers"]):
        theirs, ours = f"transformer.h.{i}", f"layers/{i}"
        qkv = {f"{ours}/attention/{x}": (d, heads, dim) for x in "qkv"}
        biases = {f"{ours}/attention/{x}_bias": (heads, dim) for x in "qkv"}
        table += [
            *_norm(f"{theirs}.ln_1", f"{ours}/norm1", d),
            Tensor(f"{theirs}.attn.c_attn.weight", (d, 3 * d), qkv),
            Tensor(f"{theirs}.attn.c_attn.bias", (3 * d,), biases),
            Tensor(
                f"{theirs}.attn.c_proj.weight", (d, d), {f"{ours}/attention/out": (heads, dim, d)}
            ),
            Tensor(f"{theirs}.attn.c_proj.bias", (d,), {f"{ours}/attention/out_bias": (d,)}),
            *_norm(f"{theirs}.ln_2", f"{ours}/norm2", d),
            Tensor(f"{theirs}.mlp.c_fc.weight", (d, f), {f"{ours}/mlp/up": (d, f)}),
            Tensor(f"{theirs}.mlp.c_fc.bias", (f,), {f"{ours}/mlp/up_bias": (f,)}),
            Tensor(f"{theirs}.mlp.c_proj.weight", (f, d), {f"{ours}/mlp/down": (f, d)}),
            Tensor(f"{theirs}.mlp.c_proj.bias", (d,), {f"{ours}/mlp/down_bias": (d,)}),
        ]
    return table


def _norm(theirs: str, ours: str, width: int) -> list[Tensor]:
    return [
        Tensor(f"{theirs}.weight", (width,), {f"{ours}/scale": (width,)}),
        Tensor(f"{theirs}.bias", (width,), {f"{ours}/bias": (width,)}),
    ]
