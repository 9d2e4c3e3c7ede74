"""A small T5 translates captions of pictures.

Paper: Raffel et al. 2019 (arXiv:1910.10683); data: Multi30k (arXiv:1605.00459), en to de.
Expected: see experiments/translation.
Command: anneal train --config=configs/nlp/translation.py --workdir=runs/de --config.data.path=M30K
    where M30K holds train.en, train.de, val.en, val.de (each may be a .gz).
Variants: small, tiny (seconds: spaces are put back into lines of code).
"""

from typing import Literal

from configs.common import adamw


def get_config(variant: Literal["small", "tiny"] = "small") -> dict:
    """Returns the config as a dict."""
    return {"small": small, "tiny": tiny}[variant]()


def small() -> dict:
    """3 + 3 layers of 256."""
    return dict(
        seed=0,
        steps=6_000,
        batch=64,
        model=dict(
            name="t5",
            num_layers=3,
            num_heads=4,
            head_dim=64,
            width=256,
            mlp_width=1_024,
            mlp="geglu",
            dropout=0.2,
            unroll=3,
        ),
        task=dict(name="seq2seq", label_smoothing=0.1),
        data=dict(
            name="pairs",
            path=None,
            source="en",
            target="de",
            tokenizer="bpe",
            vocab_size=8_192,
            context=48,
        ),
        optim=adamw(2e-3, warmup=1_000, final=0.02, decay=0.01, b2=0.98),
        eval=dict(every=1_000),
        checkpoint=dict(every=1_000),
        log=dict(every=50),
    )


def tiny() -> dict:
    """Seconds: for tests and for looking around."""
    config = small()
    config.update(
        steps=20,
        batch=8,
        model=dict(name="t5", num_layers=2, num_heads=2, head_dim=16, width=32, mlp_width=64),
        data=dict(name="pairs", path="stdlib", tokenizer="bytes", context=48),
        optim=adamw(1e-3, warmup=5),
        eval=dict(every=10),
        checkpoint=dict(every=10),
        log=dict(every=5),
    )
    return config
