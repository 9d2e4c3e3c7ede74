"""Is a sentence of a film review positive? From scratch, without pretrained vectors, or from BERT.

Paper: Kim 2014 (arXiv:1408.5882), CNN-rand: 82.7 % on SST-2 and 75.9 to 76.1 % on MR.
    Devlin et al. 2018 (arXiv:1810.04805), section 4.1: three epochs, batches of 32, the best of
    four learning rates; here the least of them.
Expected: see experiments/sentences. Published for BERT on SST-2's test sentences (table 1, the mark
    of GLUE): bert_base 93.5 %, bert_large 94.9 %; in at most a few hours of one GPU.
Command: anneal train --config=configs/nlp/sentiment.py:cnn --workdir=runs/s --config.data.path=SST2
    where SST2 holds train.tsv, dev.tsv and test.tsv of sentence and label. From BERT, with GLUE's
    SST-2, whose files begin with the names of their columns, and ./bert-base-uncased fetched by
    hf download google-bert/bert-base-uncased --local-dir bert-base-uncased:
    anneal train --config=configs/nlp/sentiment.py:bert_base --workdir=runs/s
    --config.data.path=SST-2
Variants: cnn, bert (4 layers of 128), bert_base and bert_large (from the published weights), tiny
    (seconds, no file).
"""

from typing import Literal

from configs.common import adamw, bert_adamw


def get_config(variant: Literal["cnn", "bert", "bert_base", "bert_large", "tiny"] = "cnn") -> dict:
    """Returns the config as a dict."""
    named = dict(cnn=cnn, bert=bert, bert_base=bert_base, bert_large=bert_large, tiny=tiny)
    return named[variant]()


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


def bert_base() -> dict:
    """Begins with BERT base as published; three epochs of GLUE's 67,349 phrases."""
    config = cnn()
    config.update(
        steps=6_314,
        batch=32,
        precision="bf16",
        init_from="hf:bert-base-uncased",
        model=dict(
            name="bert",
            head="classify",
            vocab_size=30_522,
            context=512,
            num_layers=12,
            num_heads=12,
            width=768,
        ),
        data=dict(
            name="sentences",
            path=None,
            tokenizer_path="bert-base-uncased/tokenizer.json",
            context=128,
        ),
        optim=bert_adamw(2e-5, warmup=631),
        eval=dict(every=1_000, batch=128),
        checkpoint=dict(every=1_000, best="accuracy", best_mode="max"),
    )
    return config


def bert_large() -> dict:
    """Begins with BERT large as published."""
    config = bert_base()
    config["init_from"] = "hf:bert-large-uncased"
    config["model"].update(num_layers=24, num_heads=16, width=1_024, remat="dots")
    config["data"]["tokenizer_path"] = "bert-large-uncased/tokenizer.json"
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
