"""Where in a passage is the answer to a question?

Paper: Devlin et al. 2018 (arXiv:1810.04805), section 4.2 and table 2: three epochs, batches of 32,
    learning rate 5e-5.
Expected: no number of our own yet: SQuAD is not at hand. See experiments/questions. Published, on
    the development questions of SQuAD 1.1 (arXiv:1606.05250): bert_base 80.8 % exact match and
    88.5 % F1, bert_large 84.1 % and 90.9 %; in at most a few hours of one GPU.
Command: anneal train --config=configs/nlp/questions.py:bert_base --workdir=runs/q
    --config.data.path=SQUAD
    where SQUAD holds train*.json and dev*.json, and ./bert-base-uncased the published weights:
    hf download google-bert/bert-base-uncased --local-dir bert-base-uncased
    From weights of one's own, `base` and: --config.init_from=runs/bert
    --config.data.tokenizer_path=runs/bert/tokenizer.json
    SQuAD 2.0: --config.task.unanswerable=True; Chinese: --config.task.language=zh
Variants: base (the paper's sizes, from nothing), bert_base and bert_large (from the published
    weights), small (4 layers of 192), tiny (seconds, no file).
"""

from typing import Literal

from configs.common import adamw, bert_adamw

Variant = Literal["base", "bert_base", "bert_large", "small", "tiny"]


def get_config(variant: Variant = "base") -> dict:
    """Returns the config as a dict."""
    named = dict(base=base, bert_base=bert_base, bert_large=bert_large, small=small, tiny=tiny)
    return named[variant]()


def base() -> dict:
    """The paper's three epochs of SQuAD 1.1, in batches of 32 windows."""
    return dict(
        seed=0,
        steps=8_300,
        batch=32,
        precision="bf16",
        model=dict(name="bert", head="span", num_layers=12, num_heads=12, width=768, context=512),
        task=dict(name="span", max_answer=30),
        data=dict(
            name="questions",
            path=None,
            tokenizer="bpe",
            vocab_size=30_000,
            context=384,
            stride=128,
            max_question=64,
        ),
        optim=bert_adamw(5e-5, warmup=830),
        eval=dict(every=1_000, batch=128),
        checkpoint=dict(every=1_000, best="f1", best_mode="max"),
        log=dict(every=50),
    )


def bert_base() -> dict:
    """Begins with BERT base as published."""
    config = base()
    config["init_from"] = "hf:bert-base-uncased"
    config["model"]["vocab_size"] = 30_522
    config["data"].update(tokenizer_path="bert-base-uncased/tokenizer.json", vocab_size=None)
    return config


def bert_large() -> dict:
    """Begins with BERT large as published."""
    config = bert_base()
    config["init_from"] = "hf:bert-large-uncased"
    config["model"].update(num_layers=24, num_heads=16, width=1_024, remat="dots")
    config["data"]["tokenizer_path"] = "bert-large-uncased/tokenizer.json"
    return config


def small() -> dict:
    """4 layers of 192, from nothing."""
    config = base()
    config.update(
        precision="fp32",
        model=dict(name="bert", head="span", num_layers=4, num_heads=6, width=192, unroll=4),
        optim=adamw(5e-4, warmup=830, final=0.0, decay=0.01),
    )
    config["data"]["vocab_size"] = 8_192
    return config


def tiny() -> dict:
    """Seconds: what does a function of Python's own library do, by its docstring?"""
    config = base()
    config.update(
        steps=20,
        batch=8,
        precision="fp32",
        model=dict(name="bert", head="span", num_layers=2, num_heads=2, width=32),
        task=dict(name="span", max_answer=60, unanswerable=True),
        data=dict(
            name="questions",
            path="stdlib",
            tokenizer="bytes",
            context=192,
            stride=64,
            max_question=48,
        ),
        optim=adamw(1e-3, warmup=5),
        eval=dict(every=10, batch=32),
        checkpoint=dict(every=10, best="f1", best_mode="max"),
        log=dict(every=5),
    )
    return config
