"""GPT-3 in its eight sizes.

Paper: Brown et al. 2020 (arXiv:2005.14165), table 2.1 for sizes, batches and learning rates,
    appendix B for the rest: 300 billion tokens, a warm-up over 375 million of them, a cosine down
    to 10 % at 260 billion, Adam with b2 0.95, decay 0.1, clipping at 1.
Expected: no number of our own yet. Published, 175 B without examples (zero-shot): LAMBADA 76.2 %
    and a perplexity of 3.00, HellaSwag 78.9 %; on V100s, of which the paper does not say how many.
Command: anneal train --config=configs/nlp/gpt3_175b.py --workdir=runs/gpt3 --config.data.path=TEXTS
Variants: 125m, 350m, 760m, 1.3b, 2.7b, 6.7b, 13b, 175b, tiny (seconds). From 760m on the config is
    split over a mesh; --config.mesh.fsdp=N for another one. No run has tried how full it is.

What differs from the paper: every layer sees its whole context (theirs alternate with locally
banded sparse attention), the batch has its full size from the first step, and two rows of table 2.1
whose heads do not multiply to the width are made whole: 1.3b has 16 heads of 128, not 24, and 13b
is 5,120 wide, not 5,140. Batches are those of the table in powers of two; of 175b 1,536 texts.
"""

from typing import Literal

from configs.common import adamw, tiny_text

# Layers, width, heads, texts of 2,048 tokens in a batch, peak learning rate, mesh.
SIZES = {
    "125m": (12, 768, 12, 256, 6e-4, {}),
    "350m": (24, 1_024, 16, 256, 3e-4, {}),
    "760m": (24, 1_536, 16, 256, 2.5e-4, dict(fsdp=8)),
    "1.3b": (24, 2_048, 16, 512, 2e-4, dict(fsdp=16)),
    "2.7b": (32, 2_560, 32, 512, 1.6e-4, dict(fsdp=32)),
    "6.7b": (32, 4_096, 32, 1_024, 1.2e-4, dict(fsdp=64)),
    "13b": (40, 5_120, 40, 1_024, 1e-4, dict(fsdp=128)),
    "175b": (96, 12_288, 96, 1_536, 0.6e-4, dict(fsdp=256, tensor=8)),
}
VOCABULARY, CONTEXT = 50_257, 2_048
Variant = Literal["125m", "350m", "760m", "1.3b", "2.7b", "6.7b", "13b", "175b", "tiny"]


def get_config(variant: Variant = "175b") -> dict:
    """Returns the config as a dict."""
    return tiny_text(published("125m")) if variant == "tiny" else published(variant)


def published(size: str) -> dict:
    """A row of table 2.1."""
    layers, width, heads, batch, peak, mesh = SIZES[size]
    steps = lambda tokens: round(tokens / (batch * CONTEXT))  # noqa: E731
    optim = adamw(peak, warmup=steps(375e6))
    optim["lr"]["steps"] = steps(260e9)
    return dict(
        seed=0,
        steps=steps(300e9),
        batch=batch,
        precision="bf16",
        model=dict(
            name="gpt",
            vocab_size=VOCABULARY,
            context=CONTEXT,
            num_layers=layers,
            num_heads=heads,
            width=width,
            remat="full" if mesh else "none",
        ),
        task=dict(name="causal_lm", vocab_size=VOCABULARY),
        data=dict(
            name="text",
            reader="files",
            path=None,
            tokenizer="bpe",
            vocab_size=VOCABULARY,
            context=CONTEXT,
        ),
        optim=optim,
        mesh=mesh,
        eval=dict(every=5_000),
        checkpoint=dict(every=1_000),
        log=dict(every=100),
    )
