"""T5 learns to restore spans that were cut out of a text.

Paper: Raffel et al. 2019 (arXiv:1910.10683), v1.1 with a gated feed-forward (arXiv:2002.05202):
    no dropout, a million steps of 2,048 texts, a learning rate of 1 / sqrt(step), which the paper
    holds at 0.01 for 10,000 steps and which rises to it here.
Expected: no number of our own yet for the published sizes, which want C4 and a pod; v1.1 has been
    published without a table. Fedus et al. (arXiv:2101.03961), table 1: after 100,000 steps
    switch_base's negative log perplexity on C4 is -1.553 at capacity 1.25, T5 base's -1.731, on 32
    TPU v3 cores; their feed-forward is the gated one of 2,048, which has as many parameters.
Command: anneal train --config=configs/nlp/t5.py:base --workdir=runs/t5 --config.data.path=TEXTS
Variants: small, base, large, xl, xxl (v1.1: 77 M to 11 B), switch_base (128 experts in every second
    layer, arXiv:2101.03961, in the shape of the weights published as switch-base-128), tiny
    (seconds), tiny_switch. xl, xxl and switch_base are split over 8, 32 and 8 devices.
"""

from typing import Literal

from configs.common import adafactor, adamw

# Layers of each side, heads, width, feed-forward width, mesh.
SIZES = {
    "small": (8, 6, 512, 1_024, {}),
    "base": (12, 12, 768, 2_048, {}),
    "large": (24, 16, 1_024, 2_816, {}),
    "xl": (24, 32, 2_048, 5_120, dict(fsdp=8)),
    "xxl": (24, 64, 4_096, 10_240, dict(fsdp=32)),
}
VOCABULARY = 32_128  # 32,000 and room for the sentinels
Variant = Literal["small", "base", "large", "xl", "xxl", "switch_base", "tiny", "tiny_switch"]


def get_config(variant: Variant = "base") -> dict:
    """Returns the config as a dict."""
    named = {"switch_base": switch_base, "tiny": tiny, "tiny_switch": tiny_switch}
    return named[variant]() if variant in named else published(variant)


def published(size: str) -> dict:
    """A million steps of 2,048 texts of 512, inverse square root of the step, Adafactor."""
    layers, heads, width, hidden, mesh = SIZES[size]
    optim = adafactor(warmup=10_000)
    optim["chain"] = ("adafactor", "lr")  # which clips each update itself
    del optim["clip"]
    optim["lr"] = dict(peak=0.01, schedule="inverse_sqrt", warmup=10_000)
    return dict(
        seed=0,
        steps=1_000_000,
        batch=2_048,
        precision="bf16",
        model=dict(
            name="t5",
            vocab_size=VOCABULARY,
            num_layers=layers,
            num_heads=heads,
            width=width,
            mlp_width=hidden,
            mlp="geglu",
            tie_embeddings=False,
            dropout=0.0,
            remat="none" if size in ("small", "base") else "dots",
        ),
        task=dict(name="seq2seq", vocab_size=VOCABULARY),
        data=dict(
            name="text",
            reader="files",
            path=None,
            tokenizer="bpe",
            vocab_size=32_000,
            context=568,  # 512 once spans are sentinels
            objective="spans",
        ),
        optim=optim,
        mesh=mesh,
        eval=dict(every=10_000),
        checkpoint=dict(every=10_000),
        log=dict(every=100),
    )


def switch_base() -> dict:
    """T5 v1.0 base with 128 experts, one for each token: 7.4 B parameters. An expert has room for
    64 tokens of a text, as in the published weights: the paper's factor of 1.25 counts over all
    texts of a device, and of a single short target it would drop a third. The z loss is that of
    arXiv:2202.08906; the paper's noise on the router's input is not done."""
    config = published("base")
    config.update(
        model=dict(
            name="t5",
            vocab_size=VOCABULARY,
            num_layers=12,
            num_heads=12,
            width=768,
            mlp_width=3_072,
            dropout=0.0,
            experts=128,
            capacity=None,
            room=64,
        ),
        task=dict(name="seq2seq", vocab_size=VOCABULARY, balance_loss=0.01, router_z_loss=1e-3),
        mesh=dict(expert=8),
    )
    return config


def tiny() -> dict:
    """Seconds: for tests and for looking around."""
    config = published("small")
    config.update(
        steps=20,
        batch=8,
        precision="fp32",
        model=dict(name="t5", num_layers=2, num_heads=2, head_dim=16, width=32, mlp_width=64),
        task=dict(name="seq2seq"),
        data=dict(name="text", reader="stdlib", tokenizer="bytes", context=64, objective="spans"),
        optim=adamw(1e-3, warmup=5),
        eval=dict(every=10),
        checkpoint=dict(every=10),
        log=dict(every=5),
    )
    return config


def tiny_switch() -> dict:
    """The same with four experts."""
    config = tiny()
    config["model"].update(experts=4)
    return config
