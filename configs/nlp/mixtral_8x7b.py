"""Mixtral 8x7B: eight experts a layer, two of which serve a token.

Paper: Jiang et al. 2024 (arXiv:2401.04088), table 1. It says nothing of its training but the
    context: batch, learning rate, steps and the losses of the router are ours.
Expected: no number of our own yet. Published: MMLU 70.6 %, HellaSwag 84.4 %; of the hardware it was
    trained on the paper says nothing.
Command: anneal train --config=configs/nlp/mixtral_8x7b.py --workdir=runs/m --config.data.path=TEXTS
    From Mistral's weights: --config.init_from=hf:FOLDER
    --config.data.tokenizer_path=FOLDER/tokenizer.json
Variants: full (46.7 B parameters on 128 devices, --config.mesh.fsdp=N for 8 x N; no run has tried
    how full they are), tiny (seconds).
"""

from typing import Literal

from configs.common import adamw, tiny_text

VOCABULARY, CONTEXT = 32_000, 32_768


def get_config(variant: Literal["full", "tiny"] = "full") -> dict:
    """Returns the config as a dict."""
    tiny = dict(num_kv_heads=1, mlp_width=64, experts=4)
    return tiny_text(full(), **tiny) if variant == "tiny" else full()


def full() -> dict:
    """32 layers of 4,096; dropless."""
    return dict(
        seed=0,
        steps=1_000_000,
        batch=128,
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
            rope_theta=1_000_000.0,
            mlp="swiglu",
            experts=8,
            top_k=2,
            bias=False,
            tie_embeddings=False,
            remat="full",
        ),
        task=dict(name="causal_lm", vocab_size=VOCABULARY, balance_loss=0.02),
        data=dict(
            name="text",
            reader="files",
            path=None,
            tokenizer="bpe",
            vocab_size=VOCABULARY,
            context=CONTEXT,
            packing="documents",
        ),
        optim=adamw(3e-4, warmup=2_000),
        mesh=dict(fsdp=16, expert=8),
        eval=dict(every=10_000),
        checkpoint=dict(every=2_000),
        log=dict(every=100),
    )
