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
