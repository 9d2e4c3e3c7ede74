"""Which words name people, places, organisations?

Paper: Devlin et al. 2018 (arXiv:1810.04805), table 7: BERT base, pretrained, has 92.4 % F1 on the
    test set of CoNLL-2003, with the document around each sentence, which we do not give.
Expected: no number of our own yet: CoNLL-2003 is not at hand.
Command: anneal train --config=configs/nlp/tagging.py --workdir=runs/ner --config.data.path=CONLL
    where CONLL holds train.txt, dev.txt and test.txt in columns, the word first and its tag last.
    Another column: --config.data.tag=1, as for parts of speech. From pretrained weights:
    --config.init_from=hf:FOLDER --config.data.tokenizer_path=FOLDER/tokenizer.json
Variants: bert (the paper's), small (4 layers of 128), tiny (seconds, no file).
"""

from typing import Literal

from configs.common import adamw


def get_config(variant: Literal["bert", "small", "tiny"] = "bert") -> dict:
    """Returns the config as a dict."""
    return {"bert": bert, "small": small, "tiny": tiny}[variant]()


def bert() -> dict:
    """BERT base, for three epochs of CoNLL-2003 in batches of 32."""
    return dict(
        seed=0,
        steps=1_320,
        batch=32,
        precision="bf16",
        model=dict(name="bert", head="tag", num_layers=12, num_heads=12, width=768, context=512),
        task=dict(name="tag"),
        data=dict(name="tags", path=None, tokenizer="bpe", vocab_size=30_000, context=128),
        optim=adamw(5e-5, warmup=132, final=0.0, decay=0.01, b2=0.999),
        eval=dict(every=220, batch=128),
        checkpoint=dict(every=440, best="f1", best_mode="max"),
        log=dict(every=50),
    )


def small() -> dict:
    """4 layers of 128, from nothing."""
    config = bert()
    config.update(
        precision="fp32",
        model=dict(name="bert", head="tag", num_layers=4, num_heads=4, width=128, unroll=4),
        optim=adamw(5e-4, warmup=132, decay=0.1),
    )
    config["data"]["vocab_size"] = 8_192
    return config


def tiny() -> dict:
    """Seconds: which words of Python's own source are names, numbers, strings, comments?"""
    config = small()
    config.update(
        steps=20,
        batch=8,
        model=dict(name="bert", head="tag", num_layers=2, num_heads=2, width=32),
        data=dict(name="tags", path="stdlib", tokenizer="bytes", context=64),
        optim=adamw(1e-3, warmup=5),
        eval=dict(every=10, batch=32),
        checkpoint=dict(every=10, best="f1", best_mode="max"),
        log=dict(every=5),
    )
    return config
