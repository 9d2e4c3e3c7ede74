"""What will a user watch next? SASRec on MovieLens 1M.

Paper: Kang and McAuley 2018 (arXiv:1808.09781), table III and section IV: two layers of one head of
    50, dropout 0.2, the last 200 films, batches of 128, Adam at 1e-3 with b2 0.98, 200 epochs.
    The loss here is a softmax over all films; the paper's: --config.task.negatives=1. Not done: its
    dropout of attention weights, and its embeddings times the root of the width.
Expected: no number of our own yet: MovieLens is not at hand. Published: HR@10 0.8245 and NDCG@10
    0.5905, but among 100 drawn films, in minutes of one GTX 1080 Ti. Ours are among all films, so
    far lower, and not to be compared with those.
Command: anneal train --config=configs/nlp/recommend.py --workdir=runs/r
    --config.data.path=ml-1m/ratings.dat
    anneal evaluate --workdir=runs/r --split=test
    anneal generate --workdir=runs/r --prompt '1193 661 914'
Variants: movielens, tiny (seconds, no file).
"""

from typing import Literal

from configs.common import adamw


def get_config(variant: Literal["movielens", "tiny"] = "movielens") -> dict:
    """Returns the config as a dict."""
    return {"movielens": movielens, "tiny": tiny}[variant]()


def movielens() -> dict:
    """200 epochs of 6,040 users."""
    return dict(
        seed=0,
        steps=9_440,
        batch=128,
        model=dict(
            name="gpt",
            num_layers=2,
            num_heads=1,
            width=50,
            mlp_width=50,
            mlp="relu",
            dropout=0.2,
        ),
        task=dict(name="recommend"),
        data=dict(
            name="interactions",
            path=None,
            columns=("user", "item", "rating", "time"),
            core=5,
            context=200,
        ),
        optim=dict(
            chain=("adam", "lr"), adam=dict(b2=0.98), lr=dict(peak=1e-3, schedule="constant")
        ),
        eval=dict(every=944),
        checkpoint=dict(every=944, best="ndcg@10", best_mode="max"),
        log=dict(every=50),
    )


def tiny() -> dict:
    """Seconds: the walks of a Markov chain."""
    config = movielens()
    config.update(
        steps=20,
        batch=8,
        data=dict(name="interactions", path="synthetic", context=16),
        optim=adamw(1e-3, warmup=5),
        eval=dict(every=10),
        checkpoint=dict(every=10),
        log=dict(every=5),
    )
    config["model"].update(width=32, mlp_width=32)
    return config
