"""The optimizers under comparison, each a section `optim` with a learning rate to begin with."""

from typing import Any

# What each is made of, and the middle of its grid of learning rates.
DIRECTIONS: dict[str, tuple[tuple[str, ...], float, dict[str, Any]]] = {
    "sgd": (("lr",), 1.0, {}),
    "momentum": (("momentum", "lr"), 0.1, {}),
    "nesterov": (("momentum", "lr"), 0.1, {"momentum": {"nesterov": True}}),
    "adagrad": (("adagrad", "lr"), 3e-2, {}),
    "rmsprop": (("rmsprop", "lr"), 1e-3, {}),
    "rmsprop, centred, momentum": (
        ("rmsprop", "momentum", "lr"), 3e-4, {"rmsprop": {"centered": True}},
    ),
    "adadelta": (("adadelta", "lr"), 3.0, {}),
    "adam": (("adam", "lr"), 3e-3, {"adam": {"b2": 0.99}}),
    "amsgrad": (("amsgrad", "lr"), 3e-3, {"amsgrad": {"b2": 0.99}}),
    "adamax": (("adamax", "lr"), 3e-3, {}),
    "nadam": (("nadam", "lr"), 3e-3, {"nadam": {"b2": 0.99}}),
    "radam": (("radam", "lr"), 3e-3, {"radam": {"b2": 0.99}}),
    "adamw": (("adam", "decay", "lr"), 3e-3, {"adam": {"b2": 0.99}}),
    "adafactor": (("adafactor", "lr"), 3e-2, {"adafactor": {"min_size": 32}}),
    "lion": (("lion", "lr"), 3e-4, {}),
    "lamb": (("adam", "decay", "trust_ratio", "lr"), 1e-2, {"adam": {"b2": 0.99}}),
    "lars": (("trust_ratio", "lr", "momentum"), 3e-2, {}),
    "ademamix": (("ademamix", "lr"), 1e-3, {}),
    "schedule-free adam": (
        ("adam", "lr", "schedule_free"), 1e-2,
        {"adam": {"b1": 0.0, "b2": 0.99}, "lr": {"schedule": "constant"}},
    ),
    "muon": (("muon", "lr"), 3e-3, {"muon": {"scale": "rms"}}),
    "soap": (("soap", "lr"), 3e-3, {"soap": {"b1": 0.9, "b2": 0.99}}),
}  # fmt: skip


def sections(name: str, warmup: int) -> dict[str, Any]:
    """Returns the config's sections `optim` and `gradients`: clipping, the direction, warm-up and
    cosine to a tenth (schedule-free: warm-up, then constant)."""
    chain, peak, options = DIRECTIONS[name]
    given = {part: dict(options.get(part, {})) for part in chain}
    schedule = given["lr"].setdefault("schedule", "cosine")
    given["lr"] |= {"peak": peak, "warmup": warmup}
    if schedule == "cosine":
        given["lr"]["final"] = 0.1
    if "decay" in given:
        given["decay"] |= {"rate": 0.1, "rules": ((r"(bias|scale|positions)$", 0.0),)}
    optim = {"chain": ("clip", *chain), "clip": {"max_norm": 1.0}, **given}
    free = ("schedule_free",) if "schedule_free" in chain else ()
    return {"optim": optim, "gradients": {"chain": free}}
