"""A small GPT learns the source text of Python's own standard library, on any machine.

Paper: Radford et al. 2019 (GPT-2), byte-level BPE; Vaswani et al. 2017 (arXiv:1706.03762).
Expected: about 1.88 bits per byte on held-out files after 3 to 5 minutes on 2 CPU cores
    (an order-5 n-gram model on the same split: 1.93).
Command: anneal train --config=configs/nlp/gpt.py --workdir=runs/gpt
Variants: tiny (seconds), tiny_moe (the same, four experts a layer), shakespeare (characters; needs
    --config.data.path=input.txt).
"""

from typing import Literal

from configs.common import adamw

Variant = Literal["default", "tiny", "tiny_moe", "shakespeare"]


def get_config(variant: Variant = "default") -> dict:
    """Returns the config as a dict."""
    named = dict(default=default, tiny=tiny, tiny_moe=tiny_moe, shakespeare=shakespeare)
    return named[variant]()


def default() -> dict:
    """4 layers of 192, context 128, BPE of 2,048."""
    return dict(
        seed=0,
        steps=1_000,
        batch=8,
        model=dict(name="gpt", num_layers=4, num_heads=6, width=192, unroll=4),
        task=dict(name="causal_lm"),
        data=dict(name="text", reader="stdlib", tokenizer="bpe", vocab_size=2_048, context=128),
        optim=adamw(4e-3, warmup=100, final=0.05),
        eval=dict(every=250),
        checkpoint=dict(every=500),
        log=dict(every=20),
    )


def tiny() -> dict:
    """Seconds: for tests and for looking around."""
    config = default()
    config.update(
        steps=20,
        batch=8,
        model=dict(name="gpt", num_layers=2, num_heads=2, width=32),
        data=dict(name="text", reader="stdlib", tokenizer="bytes", context=32),
        optim=adamw(1e-3, warmup=5),
        eval=dict(every=10),
        checkpoint=dict(every=10),
        log=dict(every=5),
    )
    return config


def tiny_moe() -> dict:
    """Mixtral's shape: four experts a layer, two of which serve a token."""
    config = tiny()
    shape = dict(norm="rmsnorm", positions="rotary", mlp="swiglu", bias=False, experts=4)
    config["model"].update(shape)
    return config


def shakespeare() -> dict:
    """nanoGPT's setting for a CPU: 4 layers, 4 heads, 128 wide, context 64, batch 12, 2,000 steps.
    nanoGPT's README states a loss of about 1.88 for it."""
    return dict(
        seed=0,
        steps=2_000,
        batch=12,
        model=dict(name="gpt", num_layers=4, num_heads=4, width=128, unroll=4),
        task=dict(name="causal_lm"),
        data=dict(name="text", reader="files", path=None, tokenizer="characters", context=64),
        optim=adamw(2e-3, warmup=100, final=0.1, b2=0.99),
        eval=dict(every=500, batch=128),
        checkpoint=dict(every=1_000),
        log=dict(every=20),
    )
