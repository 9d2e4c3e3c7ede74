"""Is a sentence of a film review positive? From scratch, without pretrained vectors.

Paper: Kim 2014 (arXiv:1408.5882), CNN-rand: 82.7 % on SST-2 and 75.9 to 76.1 % on MR.
Expected: see experiments/sentences.
Command: anneal train --config=configs/nlp/sentiment.py:cnn --workdir=runs/s --config.data.path=SST2
    where SST2 holds train.tsv, dev.tsv and test.tsv of sentence and label.
Variants: cnn, bert (4 layers of 128), tiny (seconds, no file).
"""

from typing import Literal

from configs.common import adamw


def get_config(variant: Literal["cnn", "bert", "tiny"] = "cnn") -> dict:
    """Returns the config as a dict."""
    return {"cnn": cnn, "bert": bert, "tiny": tiny}[variant]()


def cnn() -> dict:
    """100 filters of 3, 4 and 5 tokens."""
    return dict(
        seed=0,
        steps=1_500,
        batch=64,
        model=dict(name="text_cnn", width=128),
        task=dict(name="classify"),
        data=dict(
            name="sentences",
            path=None,
            columns=("sentence", "label"),
            tokenizer="bpe",
            vocab_size=8_192,
            context=64,
        ),
        optim=adamw(1e-3, warmup=100, decay=0.1),
        eval=dict(every=250, batch=128),
        checkpoint=dict(every=500, best="accuracy", best_mode="max"),
        log=dict(every=50),
    )


def bert() -> dict:
    """A small encoder."""
    config = cnn()
    config.update(
        model=dict(name="bert", head="classify", num_layers=4, num_heads=4, width=128, unroll=4),
        optim=adamw(5e-4, warmup=200, decay=0.1),
    )
    return config


def tiny() -> dict:
    """Seconds: is a line of Python's own source code or comment?"""
    config = bert()
    config.update(
        steps=20,
        batch=8,
        model=dict(name="bert", head="classify", num_layers=2, num_heads=2, width=32),
        data=dict(name="sentences", path="stdlib", tokenizer="bytes", context=32),
        optim=adamw(1e-3, warmup=5),
        eval=dict(every=10),
        checkpoint=dict(every=10),
        log=dict(every=5),
    )
    return config
