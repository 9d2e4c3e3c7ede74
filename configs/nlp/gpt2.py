"""GPT-2 in its four sizes, from nothing, on OpenWebText.

Paper: Radford et al. 2019, Language Models are Unsupervised Multitask Learners. It has no arXiv id
    and does not say its learning rates: these are GPT-3's for the same sizes (arXiv:2005.14165).
Expected: no number of our own yet. Published, on OpenWebText's validation text: nanoGPT, trained
    from nothing as `small` (without biases and dropout, 600,000 steps of 480), comes to a loss of
    about 2.85 on 8 A100 of 40 GB in about 4 days. OpenAI's weights, trained on other text, have
    there 3.12 (small), 2.84 (medium), 2.67 (large), 2.54 (xl) without further training.
Command: anneal train --config=configs/nlp/gpt2.py --workdir=runs/gpt2 --config.data.path=TEXTS
    From OpenAI's weights: --config.init_from=hf:gpt2
    --config.data.tokenizer_path=gpt2/tokenizer.json where gpt2 is a folder that
    `hf download openai-community/gpt2 --local-dir gpt2` fetched.
Variants: small (124 M), medium (355 M), large (774 M), xl (1.6 B), tiny (seconds). large and xl are
    split over 8 devices: --config.mesh.fsdp=N for another number.
"""

from typing import Literal

from configs.common import adamw, tiny_text

# Layers, heads, width, peak learning rate.
SIZES = {
    "small": (12, 12, 768, 6e-4),
    "medium": (24, 16, 1_024, 3e-4),
    "large": (36, 20, 1_280, 2.5e-4),
    "xl": (48, 25, 1_600, 2e-4),
}
VOCABULARY = 50_257


def get_config(variant: Literal["small", "medium", "large", "xl", "tiny"] = "small") -> dict:
    """Returns the config as a dict."""
    return tiny_text(published("small")) if variant == "tiny" else published(variant)


def published(size: str) -> dict:
    """The paper's batch of 512 texts of 1,024; dropout as the published weights were trained with,
    but none on attention weights."""
    layers, heads, width, peak = SIZES[size]
    split = size in ("large", "xl")
    return dict(
        seed=0,
        steps=600_000,
        batch=512,
        precision="bf16",
        model=dict(
            name="gpt",
            vocab_size=VOCABULARY,
            context=1_024,
            num_layers=layers,
            num_heads=heads,
            width=width,
            dropout=0.1,
            remat="full" if size == "xl" else "dots" if split else "none",
        ),
        task=dict(name="causal_lm", vocab_size=VOCABULARY),
        data=dict(
            name="text",
            reader="files",
            path=None,
            tokenizer="bpe",
            vocab_size=VOCABULARY,
            context=1_024,
        ),
        optim=adamw(peak, warmup=2_000),
        mesh=dict(fsdp=8 if split else 1),
        eval=dict(every=5_000),
        checkpoint=dict(every=5_000),
        log=dict(every=100),
    )
