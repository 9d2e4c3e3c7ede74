"""BERT learns to fill masked words.

Paper: Devlin et al. 2018 (arXiv:1810.04805); base, large and small without next sentences, as
    RoBERTa (arXiv:1907.11692); base_nsp with them, as published. Texts of 512 from the first step,
    where the paper has 128 for the first 90 % of the steps.
Expected: no number of our own yet for base and large, which want the paper's 3.3 billion words and
    a pod: the paper took 4 days on 4 (base) and 16 (large) Cloud TPUs, and gives no loss. What they
    are worth is measured by sentiment.py and questions.py. `small` learns the standard library's
    text on a CPU.
Command: anneal train --config=configs/nlp/bert.py --workdir=runs/bert --config.data.path=TEXTS
Variants: base, base_nsp (110 M), large (335 M), small (minutes on a CPU), tiny, tiny_nsp (seconds).
"""

from typing import Literal

from configs.common import adamw, bert_adamw

Variant = Literal["base", "base_nsp", "large", "small", "tiny", "tiny_nsp"]


def get_config(variant: Variant = "base") -> dict:
    """Returns the config as a dict."""
    named = dict(base=base, base_nsp=base_nsp, large=large, small=small)
    return (named | dict(tiny=tiny, tiny_nsp=tiny_nsp))[variant]()


def base() -> dict:
    """12 layers of 768; the paper's million steps of 256 texts of 512, and its 30,522 ids: the mask
    and a first token are two of them."""
    return dict(
        seed=0,
        steps=1_000_000,
        batch=256,
        precision="bf16",
        model=dict(
            name="bert", vocab_size=30_522, context=512, num_layers=12, num_heads=12, width=768
        ),
        task=dict(name="masked_lm", vocab_size=30_522, predictions=77),  # 15 % of 512
        data=dict(
            name="text",
            reader="files",
            path=None,
            tokenizer="bpe",
            vocab_size=30_520,
            context=512,
            packing="documents",
            objective="masked",
        ),
        optim=bert_adamw(1e-4, warmup=10_000),
        eval=dict(every=10_000),
        checkpoint=dict(every=10_000),
        log=dict(every=100),
    )


def base_nsp() -> dict:
    """The same, and whether a second segment follows: documents are files, or lines of JSON."""
    config = base()
    config["model"].update(head="pretrain")
    config.update(
        task=dict(name="pretrain"),
        data=dict(
            name="next_sentence",
            reader="files",
            path=None,
            tokenizer="bpe",
            vocab_size=30_000,
            context=512,
        ),
    )
    return config


def large() -> dict:
    """24 layers of 1,024."""
    config = base()
    config["model"].update(num_layers=24, num_heads=16, width=1_024, remat="dots")
    return config


def small() -> dict:
    """4 layers of 192, on Python's own source text."""
    config = base()
    config.update(
        steps=2_000,
        batch=16,
        precision="fp32",
        model=dict(name="bert", num_layers=4, num_heads=6, width=192, unroll=4, dropout=0.0),
        task=dict(name="masked_lm"),
        data=dict(
            name="text",
            reader="stdlib",
            tokenizer="bpe",
            vocab_size=2_048,
            context=128,
            objective="masked",
        ),
        optim=adamw(2e-3, warmup=200, final=0.05, decay=0.01),
        eval=dict(every=500),
        checkpoint=dict(every=500),
        log=dict(every=20),
    )
    return config


def tiny() -> dict:
    """Seconds: for tests and for looking around."""
    config = small()
    config.update(
        steps=20,
        batch=8,
        model=dict(name="bert", num_layers=2, num_heads=2, width=32),
        data=dict(name="text", reader="stdlib", tokenizer="bytes", context=32, objective="masked"),
        optim=adamw(1e-3, warmup=5),
        eval=dict(every=10),
        checkpoint=dict(every=10),
        log=dict(every=5),
    )
    return config


def tiny_nsp() -> dict:
    """The same with pairs of segments."""
    config = tiny()
    config["model"].update(head="pretrain")
    config.update(
        task=dict(name="pretrain"),
        data=dict(name="next_sentence", reader="stdlib", tokenizer="bytes", context=64),
    )
    return config
