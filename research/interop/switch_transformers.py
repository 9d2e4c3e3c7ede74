"""Switch (arXiv:2101.03961): `SwitchTransformersForConditionalGeneration`.

T5 v1.0 with experts in every layer, or in every second, each a feed-forward of its own. Theirs take
`expert_capacity` tokens of a text, however long it is: our `room`. A run that was trained with
`capacity`, a share of the text, is exported with --config.model.capacity=None and a room.
"""

from typing import Any

from research.arguments import InputError
from research.interop import Family, Tensor, t5


def make() -> Family:
    """Returns the family."""
    return Family(
        architecture="SwitchTransformersForConditionalGeneration",
        prefix="",
        model=dict(name="t5", top_k=1, capacity=None),
        fields=(
            ("vocab_size", "vocab_size", 32_128),
            ("num_layers", "num_layers", 12),
            ("num_decoder_layers", "decoder_layers", 12),
            ("num_heads", "num_heads", 12),
            ("d_kv", "head_dim", 64),
            ("d_model", "width", 768),
            ("d_ff", "mlp_width", 2_048),
            ("relative_attention_num_buckets", "buckets", 32),
            ("relative_attention_max_distance", "max_distance", 128),
            ("layer_norm_epsilon", "norm_epsilon", 1e-6),
            ("tie_word_embeddings", "tie_embeddings", True),
            ("num_experts", "experts", 8),
            ("expert_capacity", "room", 64),
            ("encoder_sparse_step", "experts_every", 4),  # of both sides: `read`
        ),
        choices={"dense_act_fn": ("mlp", {"relu": "relu", "gelu_new": "gelu", "gelu": "gelu_erf"})},
        least={"experts": 1, "room": 1},
        fixed={
            "is_encoder_decoder": (True,),
            "is_decoder": (False,),
            "add_cross_attention": (False,),
            "router_bias": (False,),
            "router_dtype": ("float32",),
        },
        # Numbers of a training, and what nothing there reads.
        harmless=(
            "dropout_rate",
            "initializer_factor",
            "decoder_start_token_id",
            "n_positions",
            "router_jitter_noise",
            "router_z_loss_coef",
            "router_aux_loss_coef",
            "router_ignore_padding_tokens",
            "router_type",
            "add_router_probs",
        ),
        tensors=tensors,
        complete=t5.complete,
        ignored=t5.make().ignored,
        repeated=t5.make().repeated,
        read=read,
        write=write,
    )


def read(config: dict) -> dict:
    """Returns the config with one step between sparse layers, and without what repeats others.
    Layer i is sparse there when i % step is 1 or step is 1: the first of three, our last of three.
    """
    layers = config.get("num_layers", 12)
    if config.get("num_decoder_layers", 12) is None:
        config["num_decoder_layers"] = layers
    steps = {}
    for side, count in (("encoder", layers), ("decoder", config.get("num_decoder_layers", 12))):
        sparse = config.pop(f"num_sparse_{side}_layers", 3)
        follows = count // sparse if sparse > 0 else 0
        step = config.pop(f"{side}_sparse_step", None)
        steps[f"{side}_sparse_step"] = follows if step is None else step
    first, second = steps.values()
    if first != second or first not in (1, 2):
        given = ", ".join(f"{key}={value}" for key, value in steps.items())
        raise InputError(
            f"config.json: {given} is not supported; our model has experts in every layer of both "
            "sides, or in every second"
        )
    config["encoder_sparse_step"] = first
    same = {"num_selected_experts": 1, "feed_forward_proj": config.get("dense_act_fn", "relu")}
    return {key: value for key, value in config.items() if same.get(key) != value}


def write(config: dict) -> dict:
    """Returns the config with the numbers of sparse layers, from which transformers takes its
    steps, and with the token that a target begins with."""
    step = config["encoder_sparse_step"]
    sparse = {
        "num_sparse_encoder_layers": config["num_layers"] // step,
        "num_sparse_decoder_layers": config["num_decoder_layers"] // step,
        "decoder_sparse_step": step,
    }
    return t5.write(config | sparse)


def tensors(model: dict[str, Any]) -> list[Tensor]:
    """Returns all tensors of a config.model."""
    d, count, every = model["width"], model["experts"], model["experts_every"]

    def last(theirs: str, ours: str, layer: int) -> list[Tensor]:
        theirs = f"{theirs}.mlp"
        if layer % every != every - 1:
            return t5.feed_forward(model, theirs, f"{ours}/mlp")
        ours = f"{ours}/moe"
        router = t5.linear(f"{theirs}.router.classifier", (d, count), f"{ours}/router", (d, count))
        experts = ((f"{theirs}.experts.expert_{e}", f"{ours}/experts/{e}") for e in range(count))
        return [router, *(x for pair in experts for x in t5.feed_forward(model, *pair))]

    return t5.around(model, last)
