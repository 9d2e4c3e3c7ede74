"""Settings that contradict each other: each by itself is legal, together they are another method.

`refuse(config)` is called once all defaults are known; every message names the keys.
"""

from research.arguments import InputError

PENALTIES = ("l1", "l2", "orthogonal", "spectral")
# Directions that muP's table for Adam holds for: an element of the step does not know its size.
ADAM_LIKE = (
    "adagrad", "rmsprop", "adam", "amsgrad", "adamax", "nadam", "radam", "lion", "ademamix"
)  # fmt: skip
DIRECTIONS = (*ADAM_LIKE, "adadelta", "adafactor", "muon", "soap")
# The order of a chain. What is not here (momentum, optax's parts, the user's) may stand anywhere.
ORDER = (
    (*PENALTIES, "agc"),
    DIRECTIONS,
    ("multiply", "layer_decay", "mup"),
    ("decay",),
    ("trust_ratio",),
    ("lr",),
    ("plateau", "proximal_l1", "schedule_free"),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def refuse(config: dict) -> None:
    """Raises InputError for the first contradiction in a complete config."""
    _averages(config)
    _order(config["optim"]["chain"])
    _gradients(config)
    _depths(config)
    _heads(config)
    _schedule_free(config)
    _mup(config)
    if config["init_rules"] and not config["init_from"]:
        raise InputError(
            f"config.init_rules={config['init_rules']} have nothing to choose from; set "
            "config.init_from, or leave them out"
        )
    optim = config["optim"]
    if optim.get("rmsprop", {}).get("centered") and optim["state_dtype"] != "fp32":
        raise InputError(
            f"config.optim.state_dtype={optim['state_dtype']}: rmsprop.centered subtracts two "
            "statistics, and what is left of their rounding would be divided by; use fp32"
        )


def _averages(config: dict) -> None:
    if config["lora"]["rank"] is not None and config["freeze"]:
        raise InputError("config.lora keeps all but lora.train as it is; leave out config.freeze")
    start, steps = config["swa"]["start"], config["steps"]
    if config["ema"] is not None and start is not None:
        raise InputError("config.ema and config.swa.start are both set; keep one average")
    if start is not None and start >= steps:
        raise InputError(f"config.swa.start={start} is not within {steps} steps; make it smaller")


def _order(chain: tuple[str, ...]) -> None:
    where = f"config.optim.chain={','.join(chain)}"
    directions = [name for name in chain if name in DIRECTIONS]
    if len(directions) > 1:
        raise InputError(f"{where} has the directions {' and '.join(directions)}; keep one")
    known = [name for name in chain if name in RANK]
    for before, after in zip(known, known[1:], strict=False):
        if RANK[before] > RANK[after]:
            advice = "; in front it is L2: name it l2" if before == "decay" else ""
            raise InputError(f"{where}: {after} belongs in front of {before}{advice}")
    behind = chain[chain.index("lr") + 1 :] if "lr" in chain else ()
    for name in behind:
        if name.startswith("clip"):
            raise InputError(f"{where}: {name} belongs in front of lr")


# What a task reads of BERT: with another head it would fail late, or compute nonsense.
HEADS = {
    "masked_lm": "mlm",
    "pretrain": "pretrain",
    "classify": "classify",
    "tag": "tag",
    "span": "span",
}


def _depths(config: dict) -> None:
    if "layer_decay" in config["optim"]["chain"] and config["model"]["name"] == "t5":
        raise InputError(
            "config.optim.chain: layer_decay knows one stack of layers, t5 has two; use multiply"
        )


def _heads(config: dict) -> None:
    name, head = config["task"]["name"], config["model"].get("head")
    if config["model"]["name"] == "bert" and HEADS.get(name) not in (None, head):
        raise InputError(f"config.model.head={head} is not what task {name} reads: {HEADS[name]}")


def _gradients(config: dict) -> None:
    chain = config["gradients"]["chain"]
    where = f"config.gradients.chain={','.join(chain)}"
    for name in ("accumulate", "noise_scale", "sam"):
        if name in chain and "loss_scale" in chain[: chain.index(name)]:
            raise InputError(f"{where}: {name} belongs in front of loss_scale")
    if config["precision"] == "bf16_params" and {"sam", "schedule_free"} & set(chain):
        raise InputError(
            f"{where} moves the parameters by less than bfloat16 can hold; use config.precision="
            "bf16"
        )


def _schedule_free(config: dict) -> None:
    optim, chain = config["optim"], config["optim"]["chain"]
    where = f"config.optim.chain={','.join(chain)}"
    gradients = config["gradients"]["chain"]
    if ("schedule_free" in chain) != ("schedule_free" in gradients):
        raise InputError(
            f"{where} and config.gradients.chain={','.join(gradients)} must agree on "
            "schedule_free: set both or none"
        )
    if "schedule_free" not in chain:
        return
    for name, names in (("optim", chain), ("gradients", gradients)):
        if names[-1] != "schedule_free":
            raise InputError(f"config.{name}.chain={','.join(names)}: schedule_free must be last")
    momentum = [name for name in chain if optim[name].get("b1", 0) and name != "schedule_free"]
    momentum += [name for name in chain if name == "momentum"]
    if momentum:
        raise InputError(
            f"{where}: {momentum[0]} has a momentum of its own beside schedule_free; set its b1 to "
            "0 or leave it out"
        )
    if optim.get("lr", {}).get("schedule", "constant") != "constant":
        raise InputError(f"{where} needs no schedule; set config.optim.lr.schedule=constant")
    if config["ema"] is not None or config["swa"]["start"] is not None:
        raise InputError(f"{where} is an average of weights; leave out config.ema and config.swa")


def _mup(config: dict) -> None:
    chain, model = config["optim"]["chain"], config["model"]
    where = f"config.optim.chain={','.join(chain)}"
    if ("mup" in chain) != (model.get("base_width") is not None):
        raise InputError(f"{where} and config.model.base_width must agree on mup: set both or none")
    if "mup" not in chain:
        return
    if not any(name in ADAM_LIKE for name in chain):
        raise InputError(f"{where}: mup is for {', '.join(ADAM_LIKE)}; use one of them")
    if model.get("mlp_width") is not None:
        raise InputError(
            f"config.model.mlp_width={model['mlp_width']} does not grow with the width, as muP "
            "needs; leave it out"
        )
