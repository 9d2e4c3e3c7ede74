"""Several sources as one, in shares by weights: web text and code, one language and another.

    data = dict(name="mix", names=("web", "code"), weights=(0.7, 0.3), context=256,
                web=dict(name="text", path="web/"), code=dict(name="text", path="code/"))

A section for each name is a source of its own; what all must share (tokenizer, context, workers)
stands once beside them. Any sources go together whose batches have one form. Of any number of
examples, in a batch or since step 0, each has its share to within one example (order.py). Each is
endless and shuffled by itself: a small one repeats, in another order, while a large one goes on.
"""

import bisect
import functools
import inspect
import itertools
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from research.arguments import Count, InputError, Range, Size
from research.data import tokenizer as tokenizers
from research.data.order import mixed, whole_shares
from research.data.readers import Records
from research.data.source import Batch, Row, Source, cache_folder, cached, make_batches
from research.data.text import digest, learn_tokenizer
from research.data.tokenizer import Kind
from research.lookup import find, section

SUPPLIED = ("split", "seed", "batch")  # by the program, to every source
# Numbers of info that add up; all but these, fingerprint and skipped must be equal.
SUMS = ("num_tokens", "num_bytes", "num_documents", "cut", "corrected")


def make(
    names: tuple[str, ...],
    weights: tuple[float, ...] | None = None,
    temperature: Annotated[float, Range(1)] = 1.0,
    tokenizer: Kind = "bpe",
    vocab_size: Count | None = None,
    tokenizer_path: str | None = None,
    context: Count = 128,
    workers: Size = 0,
    cache: str | None = None,
    *,
    split: str,
    seed: int,
    batch: int,
    **sections: dict,
) -> Source:
    """Returns batches whose examples are those of the sources `names`, by their `weights` (None:
    the number of their examples), each to the power of 1 / `temperature`: above 1 small ones come
    more often (arXiv:1910.10683).

    "train" is without end; any other split is one pass over each source after another. The
    tokenizer is learned from the texts of all, each document once, or read from `tokenizer_path`.
    info["sources"] holds the examples and, of training, the share of each.

    Raises InputError for weights that do not fit the names, and sources that do not fit together.
    """
    _check(names, weights)
    given = section("data", dict(name="mix", names=names) | sections, "config.data", SUPPLIED)
    shared = dict(context=context, cache=cache, split=split, seed=seed, batch=batch)
    takes = {}
    for name in names:
        takes[name] = inspect.signature(find("data", given[name]["name"])).parameters.keys()
    if tokenizer_path is None and any("tokenizer_path" in keys for keys in takes.values()):
        root = cache_folder(cache)
        codec = _learn({name: given[name] for name in names}, tokenizer, vocab_size, root)
        folder = root / f"tokenizer-{codec.fingerprint[:32]}"
        cached(folder, lambda to: codec.save(to / "tokenizer.json"))
        tokenizer_path = str(folder / "tokenizer.json")
    shared["tokenizer_path"] = tokenizer_path
    sources = {}
    for name in names:
        own = {key: value for key, value in given[name].items() if key != "name"}
        own |= {key: value for key, value in shared.items() if key in takes[name]}
        sources[name] = find("data", given[name]["name"])(**own)
    _refuse_other_forms(sources)
    first = sources[names[0]]
    sizes = tuple(source.num_rows for source in sources.values())
    weights = weights or sizes
    if temperature > 1:
        weights = [(weight / max(weights)) ** (1 / temperature) for weight in weights]
    shares = whole_shares(weights)
    order = mixed(sizes, shares, batch, seed)
    row = functools.partial(
        _row, [source.row for source in sources.values()], [0, *itertools.accumulate(sizes)]
    )
    budget = sum(given[name].get("skip_budget", 0) for name in names)
    batches, rows = make_batches(
        row, sum(sizes), spec=first.spec, batch=batch, seed=seed, shuffle=split == "train",
        repeat=split == "train", workers=workers, skip_budget=budget, order=order,
    )  # fmt: skip
    info = _together({name: source.info for name, source in sources.items()})
    info["fingerprint"] = digest(info["fingerprint"], shares if split == "train" else None)
    info["sources"] = {name: dict(examples=size) for name, size in zip(names, sizes, strict=True)}
    if split == "train":
        for name, share in zip(names, shares, strict=True):
            info["sources"][name]["share"] = share / sum(shares)
    parts = {name: source.num_batches for name, source in sources.items()}
    return Source(
        first.spec, info, order.num_batches, batches, rows, first.tokenizer, parts=parts,
        row=row, num_rows=sum(sizes),
    )  # fmt: skip


def _check(names: tuple[str, ...], weights: tuple[float, ...] | None) -> None:
    if not names:
        raise InputError("config.data.names is empty; name the sources to mix")
    if weights is None:
        return
    if len(weights) != len(names):
        raise InputError(
            f"config.data.weights={weights} are {len(weights)}, config.data.names={names} "
            f"{len(names)}; give one for each"
        )
    for name, weight in zip(names, weights, strict=True):
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float)
            or not 0 < weight < math.inf
        ):
            raise InputError(
                f"config.data.weights: {name} has {weight!r}, expected a number above 0; leave a "
                "source that is not wanted out of config.data.names"
            )


def _learn(
    sections: dict[str, dict], kind: str, vocab_size: int | None, root: Path
) -> tokenizers.Tokenizer:
    """Returns a tokenizer learned from the texts of all sources, one after another."""

    @functools.cache
    def read(split: str) -> Records:
        parts = []
        for name, given in sections.items():
            texts = find("data", given["name"], function="texts")
            if texts is None:
                raise InputError(
                    f"config.data.{name}: {given['name']} does not say what its texts are; set "
                    "config.data.tokenizer_path"
                )
            parts.append(texts(split, **{k: v for k, v in given.items() if k != "name"}))
        ends = list(itertools.accumulate(part.count for part in parts))

        def at(index: int) -> tuple[Records, int]:
            part = bisect.bisect_right(ends, index)
            return parts[part], index - ([0, *ends])[part]

        def name_of(index: int) -> str:
            part, place = at(index)
            return part.name(place)

        def text_of(index: int) -> str:
            part, place = at(index)
            return part.read(place)

        return Records(ends[-1], name_of, text_of, digest(*(part.fingerprint for part in parts)))

    budget = sum(given.get("skip_budget", 0) for given in sections.values())
    return learn_tokenizer(read, kind, vocab_size, None, root, budget)


def _refuse_other_forms(sources: dict[str, Source]) -> None:
    (first, expected), *others = sources.items()
    for name, source in sources.items():
        if source.row is None:
            raise InputError(f"config.data.{name}: no example of it stands alone; leave it out")
        if source.narrower:
            raise InputError(f"config.data.{name}.buckets: rows of a mix are of one width; unset")

    def form(source: Source) -> dict[str, Any]:
        return {leaf: (x.shape[1:], x.dtype.name) for leaf, x in source.spec.items()}

    for name, source in others:
        there, here = form(expected), form(source)
        for leaf in there | here:
            if there.get(leaf) != here.get(leaf):
                raise InputError(
                    f"config.data.{name}: {leaf} of an example is {here.get(leaf)}, of {first} "
                    f"{there.get(leaf)}; sources of a mix must have one form (context, packing)"
                )


def _together(infos: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns what is known of all: numbers add up, fingerprints join, all else must be equal."""
    result: dict[str, Any] = {}
    first = next(iter(infos))
    for key in {key: None for info in infos.values() for key in info}:
        found = {name: info.get(key) for name, info in infos.items()}
        if key in SUMS:
            result[key] = None if None in found.values() else sum(found.values())
        elif key == "fingerprint":
            result[key] = digest(found)
        elif key == "skipped":
            result[key] = [item for items in found.values() for item in items or ()]
        else:
            for name, value in found.items():
                if value != found[first]:
                    raise InputError(
                        f"config.data.{name}: {key}={value!r}, but {first} has {found[first]!r}; "
                        "sources of a mix must agree in it"
                    )
            result[key] = found[first]
    return result


def _row(
    rows: list[Row], begins: list[int], index: int, epoch: int, random: np.random.Generator
) -> Batch:
    source = bisect.bisect_right(begins, index) - 1
    return rows[source](index - begins[source], epoch, random)
