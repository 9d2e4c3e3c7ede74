"""A tag for each word (arXiv:1810.04805, section 5.3): entities, parts of speech.

A batch holds tokens, segments, labels, weight (b, t), and in evaluation `turn` (b, batches), as
data/tags.py makes them: `weight` is 1 on the first token of each word. A model gives logits
(b, t, c).

Where all tags are O, or B-, I-, E- or S- and a type, entities are judged as the shared task of
CoNLL-2003 does (Tjong Kim Sang and De Meulder 2003, and its program conlleval): one is right when
its words and its type are. Other tags are judged one by one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.arguments import Count, Fraction, InputError
from research.tasks import Aux, Task, classify, figures, name_class

PREFIXES = ("B-", "I-", "E-", "S-")


def make(labels: Count | None = None, label_smoothing: Fraction = 0.0) -> Task:
    """Returns the task; `labels`, the number of tags, None: what the data says. Reports accuracy
    over words; of entities precision, recall and f1 over all types together; of other tags f1, the
    macro average over tags."""
    if labels is None:
        raise InputError("tag needs labels, or data that decides them")

    def loss(
        model: Any, variables: dict, batch: dict, key: jax.Array | None, train: bool
    ) -> tuple[tuple[jax.Array, jax.Array], Aux]:
        inputs = (batch.get(name) for name in ("tokens", "segments", "positions", "types"))
        logits_btc, state = model.apply(variables, *inputs, key=key, train=train)
        total, metrics = name_class(logits_btc, batch, labels, label_smoothing, train)
        if "turn" in batch:
            guess_bt = logits_btc.argmax(-1)
            # Each row has a place of its own, as in span.py: a sentence may lie in several, and an
            # entity in two of them.
            own, exact = jnp.eye(len(guess_bt)), dict(precision=jax.lax.Precision.HIGHEST)
            tags = jnp.einsum("bn,bj,bt->njt", batch["turn"], own, guess_bt * 1.0, **exact)
            metrics["_tags"] = (tags, total[1])
        return total, Aux(state, metrics)

    return Task(loss, report, figures={"confusion": figures.confusion})


def report(totals: dict[str, Any], info: dict) -> dict[str, float]:
    """Returns f1, and of entities precision and recall, which need info["gold"] (any split but
    train): `rows` and `tags` of each sentence, `places` of each row."""
    classes, gold = info["classes"], info.get("gold")
    if not mark_entities(classes):
        return {"f1": classify.report(totals, info)["f1"]}
    if gold is None:  # the train split
        return {}
    found = np.asarray(totals["_tags"][0])
    found = found.reshape(-1, found.shape[-1]).astype(int)
    given = wanted = right = 0
    for rows, tags in zip(gold.rows, gold.tags, strict=True):
        numbers = np.concatenate([found[row, gold.places[row]] for row in rows])
        ours, theirs = entities([classes[i] for i in numbers]), entities(tags)
        given, wanted = given + len(ours), wanted + len(theirs)
        right += len(set(ours) & set(theirs))
    # With nothing found, or nothing to find, conlleval says 0.
    precision, recall = right / max(given, 1), right / max(wanted, 1)
    return {"precision": precision, "recall": recall, "f1": 2 * right / max(given + wanted, 1)}


def mark_entities(classes: list[str]) -> bool:
    """Tells whether tags are those of entities: O, and a prefix with a type."""
    typed = [name.startswith(PREFIXES) for name in classes if name != "O"]
    return bool(typed) and all(typed)


def entities(tags: list[str]) -> list[tuple[int, int, str]]:
    """Returns (first word, word behind it, type) of the entities of a sentence, by conlleval's
    rules: one begins at B- and S-, behind E-, S- and O, and where the type is another. So I- may
    begin one too, as in the older IOB."""
    found: list[tuple[int, int, str]] = []
    before, kind_before = "O", ""
    for index, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        begins = prefix in ("B", "S") or before in ("E", "S", "O") or kind != kind_before
        if tag != "O" and begins:
            found.append((index, index + 1, kind))
        elif tag != "O":
            found[-1] = (found[-1][0], index + 1, kind)
        before, kind_before = prefix, kind
    return found
