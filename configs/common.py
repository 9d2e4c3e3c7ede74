"""Functions that configs share: each returns a part of a config."""

# Gains, biases and learned positions are not decayed.
NO_DECAY = ((r"(bias|scale|positions)$", 0.0),)


def adamw(
    peak: float,
    *,
    warmup: int,
    final: float = 0.1,
    decay: float = 0.1,
    b2: float = 0.95,
    max_norm: float = 1.0,
) -> dict:
    """Returns an optim section: clipping, AdamW, linear warm-up and cosine to `final` x peak."""
    return dict(
        chain=("clip", "adam", "decay", "lr"),
        clip=dict(max_norm=max_norm),
        adam=dict(b1=0.9, b2=b2),
        decay=dict(rate=decay, rules=NO_DECAY),
        lr=dict(peak=peak, schedule="cosine", warmup=warmup, final=final),
    )


def bert_adamw(peak: float, *, warmup: int) -> dict:
    """Returns an optim section: AdamW and a linear decline, as BERT has them (1810.04805)."""
    optim = adamw(peak, warmup=warmup, final=0.0, decay=0.01, b2=0.999)
    optim["adam"]["eps"] = 1e-6
    optim["lr"]["schedule"] = "linear"
    return optim


def _scheduled(peak: float, warmup: int, final: float) -> dict:
    return dict(peak=peak, schedule="cosine", warmup=warmup, final=final)


def sgd(
    peak: float, *, warmup: int, momentum: float = 0.9, decay: float = 1e-4, final: float = 0.0
) -> dict:
    """Returns an optim section: SGD with momentum, decayed in the gradient as torch (L2)."""
    return dict(
        chain=("l2", "momentum", "lr"),
        l2=dict(rate=decay, rules=NO_DECAY),
        momentum=dict(decay=momentum),
        lr=_scheduled(peak, warmup, final),
    )


def lamb(peak: float, *, warmup: int, decay: float = 0.01, final: float = 0.0) -> dict:
    """Returns an optim section for large batches (arXiv:1904.00962)."""
    return dict(
        chain=("clip", "adam", "decay", "trust_ratio", "lr"),
        clip=dict(max_norm=1.0),
        adam=dict(b1=0.9, b2=0.999, eps=1e-6),
        decay=dict(rate=decay, rules=NO_DECAY),
        trust_ratio=dict(rules=NO_DECAY),
        lr=_scheduled(peak, warmup, final),
    )


def lars(peak: float, *, warmup: int, decay: float = 5e-4, final: float = 0.0) -> dict:
    """Returns an optim section for images in large batches (arXiv:1708.03888)."""
    return dict(
        chain=("trust_ratio", "lr", "momentum"),
        trust_ratio=dict(coefficient=1e-3, decay=decay, rules=NO_DECAY),
        lr=_scheduled(peak, warmup, final),
        momentum=dict(decay=0.9),
    )


def adafactor(peak: float = 0.01, *, warmup: int, final: float = 0.0) -> dict:
    """Returns an optim section with little memory (arXiv:1804.04235); `peak` is relative."""
    return dict(
        chain=("clip", "adafactor", "lr"),
        clip=dict(max_norm=1.0),
        adafactor=dict(),
        lr=_scheduled(peak, warmup, final),
    )


def lion(peak: float, *, warmup: int, decay: float = 1.0, final: float = 0.1) -> dict:
    """Returns an optim section; `peak` a third to a tenth of AdamW's, `decay` as much more."""
    return dict(
        chain=("clip", "lion", "decay", "lr"),
        clip=dict(max_norm=1.0),
        lion=dict(b1=0.9, b2=0.99),
        decay=dict(rate=decay, rules=NO_DECAY),
        lr=_scheduled(peak, warmup, final),
    )


def muon(peak: float, *, warmup: int, decay: float = 0.1, final: float = 0.1) -> dict:
    """Returns an optim section with AdamW's `peak` and `decay` for all (arXiv:2502.16982)."""
    return dict(
        chain=("clip", "muon", "decay", "lr"),
        clip=dict(max_norm=1.0),
        muon=dict(scale="rms"),
        decay=dict(rate=decay, rules=NO_DECAY),
        lr=_scheduled(peak, warmup, final),
    )


def soap(peak: float, *, warmup: int, decay: float = 1e-4, final: float = 0.1) -> dict:
    """Returns an optim section: Adam in Shampoo's eigenbasis (arXiv:2409.11321)."""
    return dict(
        chain=("clip", "soap", "decay", "lr"),
        clip=dict(max_norm=1.0),
        soap=dict(frequency=10),
        decay=dict(rate=decay, rules=NO_DECAY),
        lr=_scheduled(peak, warmup, final),
    )


def schedule_free_adamw(
    peak: float, *, warmup: int, decay: float = 0.1, b1: float = 0.9, b2: float = 0.999
) -> dict:
    """Returns an optim section and the gradients section that it needs (arXiv:2405.15682):
    config = dict(..., **schedule_free_adamw(2.5e-3, warmup=1_000))."""
    return dict(
        optim=dict(
            chain=("clip", "adam", "lr", "schedule_free"),
            clip=dict(max_norm=1.0),
            adam=dict(b1=0.0, b2=b2),
            lr=dict(peak=peak, schedule="constant", warmup=warmup),
            schedule_free=dict(b1=b1, decay=decay, rules=NO_DECAY),
        ),
        gradients=dict(chain=("schedule_free",)),
    )


def tiny_text(config: dict, **model: object) -> dict:
    """Returns the config of a large language model as one that takes seconds and needs no file: two
    layers of 32 on bytes of Python's own library. `model` is what else must be small."""
    large = ("vocab_size", "context", "remat")
    shape = {key: value for key, value in config["model"].items() if key not in large}
    return dict(
        seed=config["seed"],
        steps=20,
        batch=8,
        model=shape | dict(num_layers=2, num_heads=2, width=32) | model,
        task={key: value for key, value in config["task"].items() if key != "vocab_size"},
        data=dict(name="text", reader="stdlib", tokenizer="bytes", context=32),
        optim=adamw(1e-3, warmup=5),
        eval=dict(every=10),
        checkpoint=dict(every=10),
        log=dict(every=5),
    )
