"""Llama 3 8B.

Paper: Grattafiori et al. 2024 (arXiv:2407.21783), table 3: sizes and peak learning rate; warm-up
    and the end of the cosine are those that it gives for 405B, the batch of 4 million tokens too.
    Documents of a row do not see each other, as there.
Expected: no number of our own yet. Published: MMLU (5-shot) 66.6 % after 15 trillion tokens, which
    took 1.3 million hours of H100 (Llama 3's model card).
Command: anneal train --config=configs/nlp/llama_8b.py --workdir=runs/l --config.data.path=TEXTS
    From Meta's weights: --config.init_from=hf:FOLDER
    --config.data.tokenizer_path=FOLDER/tokenizer.json
Variants: full (128 devices, --config.mesh.fsdp=N for another number; no run has tried how full they
    are), tiny (seconds).
"""

from typing import Literal

from configs.common import adamw, tiny_text

VOCABULARY, CONTEXT = 128_256, 8_192


def get_config(variant: Literal["full", "tiny"] = "full") -> dict:
    """Returns the config as a dict."""
    tiny = dict(num_kv_heads=1, mlp_width=64)
    return tiny_text(full(), **tiny) if variant == "tiny" else full()


def full() -> dict:
    """32 layers of 4,096; four queries share a key and a value."""
    return dict(
        seed=0,
        steps=3_600_000,
        batch=512,
        precision="bf16",
        model=dict(
            name="gpt",
            vocab_size=VOCABULARY,
            context=CONTEXT,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            width=4_096,
            mlp_width=14_336,
            norm="rmsnorm",
            positions="rotary",
            rope_theta=500_000.0,
            mlp="swiglu",
            bias=False,
            tie_embeddings=False,
            remat="full",
        ),
        task=dict(name="causal_lm", vocab_size=VOCABULARY),
        data=dict(
            name="text",
            reader="files",
            path=None,
            tokenizer="bpe",
            vocab_size=VOCABULARY,
            context=CONTEXT,
            packing="documents",
        ),
        optim=adamw(3e-4, warmup=8_000, final=0.01),
        mesh=dict(fsdp=128),
        eval=dict(every=10_000),
        checkpoint=dict(every=2_000),
        log=dict(every=100),
    )
