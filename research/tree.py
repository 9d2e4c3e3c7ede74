"""Named paths over a pytree of dicts, and ordered (regex, value) rules over those paths.

A leaf under a key `layers` or `experts` that no index follows holds all of them, stacked on an axis
each: `layers/attn/q` of shape (12, ...), `layers/moe/experts/up` of shape (12, 8, ...). Rules
address it as if unrolled, `layers/3/moe/experts/5/up`, so that one rule means the same for a
scanned and an unrolled model. Of layers whose kinds take turns, `layers/turn1of2/mlp/up` holds
layers 1, 3, 5, ...
"""

import re
import zlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from research.arguments import InputError

Rules = tuple[tuple[str, Any], ...]


def path_name(path: Iterable[Any]) -> str:
    """Returns a jax key path as 'layers/attn/q'."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf} in the order of the tree; None leaves are absent."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def check_patterns(patterns: Iterable[str], where: str) -> None:
    """Raises InputError for what is no regex."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise InputError(f"{where}: {pattern!r} is not a regex: {error}") from error


def split(tree: dict, patterns: Iterable[str]) -> tuple[dict, dict]:
    """Returns the leaves of nested dicts whose path matches no pattern, and those that match one.

    Raises InputError for a pattern that matches nothing, or some layers of a stacked leaf only.
    """
    patterns, found = tuple(patterns), set()
    check_patterns(patterns, "config.freeze")
    parts: tuple[dict, dict] = ({}, {})  # by path
    for path, leaf in flatten(tree).items():
        names = unrolled_paths(path, leaf)
        hits = [next((p for p in patterns if re.search(p, name)), None) for name in names]
        found |= {p for p in patterns if any(re.search(p, name) for name in names)}
        if len({hit is None for hit in hits}) > 1:
            layers = ", ".join(str(i) for i, hit in enumerate(hits) if hit is not None)
            raise InputError(
                f"{path} holds all layers, and only layers {layers} match; set "
                "config.model.scan=False, so that each layer has parameters of its own"
            )
        parts[hits[0] is not None][path] = leaf
    for pattern in patterns:
        if pattern not in found:
            names = [n for path, leaf in flatten(tree).items() for n in unrolled_paths(path, leaf)]
            raise InputError(f"{pattern!r} matches no parameter; there are {_some(names)}")
    if not parts[0]:
        raise InputError(f"{', '.join(patterns)} match every parameter; nothing is left to train")
    return nest(parts[0]), nest(parts[1])


def nest(leaves: dict[str, Any]) -> dict:
    """Inverse of `flatten` for nested dicts."""
    result: dict = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = result
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return result


def _some(paths: Iterable[str]) -> str:
    paths = list(paths)
    return ", ".join(paths[:12]) + (f" and {len(paths) - 12} more" if len(paths) > 12 else "")


def merge(first: dict, second: dict) -> dict:
    """Inverse of `split`."""
    both = {name: merge(first[name], second[name]) for name in first.keys() & second.keys()}
    return first | second | both


def map_named(function: Any, tree: Any, *rest: Any) -> Any:
    """Like jax.tree.map with the path as the first argument."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest
    )


STACKED = r"(^|/)(layers|experts)/(?!\d)"


def stacked_axes(path: str) -> int:
    """Returns how many first axes of the leaf at `path` count layers or experts, not numbers."""
    return len(re.findall(STACKED, path))


# Parameters that map several axes onto others: how many of the first ones are contracted with the
# input. Whatever is not named here contracts one axis, a convolution all but the last.
INPUT_AXES = ((r"(attention|cross)/out(/a)?$", 2),)


def input_axes(path: str, ndim: int) -> int:
    """Returns how many first axes of a parameter of one layer, of `ndim` axes, are inputs."""
    given = ndim - 1 if ndim == 4 else min(1, ndim - 1)
    return match(INPUT_AXES, path, max(given, 0))


def unrolled_paths(path: str, leaf: Any) -> list[str]:
    """Returns the path of each layer (and expert) in a stacked leaf, or [path]."""
    names = [path]
    for size in leaf.shape[: stacked_axes(path)]:
        names = [
            re.sub(STACKED, rf"\1\2/{index}/", name, count=1)
            for name in names
            for index in range(size)
        ]
    layer = lambda found: f"layers/{int(found[1]) * int(found[3]) + int(found[2])}/"  # noqa: E731
    return [re.sub(r"layers/(\d+)/turn(\d+)of(\d+)/", layer, name) for name in names]


def unrolled_places(path: str, leaf: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Returns the path and the index of each layer (and expert) of a leaf, or [(path, ())]."""
    indices = np.ndindex(tuple(leaf.shape[: stacked_axes(path)]))
    return list(zip(unrolled_paths(path, leaf), indices, strict=True))


def key_of(key: jax.Array | None, path: str) -> jax.Array | None:
    """Returns a random key of the leaf at `path`, the same on every host and in every run."""
    return None if key is None else jax.random.fold_in(key, zlib.crc32(path.encode()))


def match(rules: Rules, path: str, default: Any) -> Any:
    """Returns the value of the first rule whose regex occurs in `path`."""
    return next((value for pattern, value in rules if re.search(pattern, path)), default)


def rule_values(rules: Rules, tree: Any, default: Any) -> Any:
    """Returns a tree of values, one a leaf; per layer where a stacked leaf's layers differ.

    A per-layer value has shape (layers, 1, ..., 1), so that it multiplies its leaf.
    """

    def value(path: str, leaf: Any) -> Any:
        values = [match(rules, name, default) for name in unrolled_paths(path, leaf)]
        if all(v == values[0] for v in values):
            return values[0]
        stacked = stacked_axes(path)
        return np.asarray(values).reshape(*leaf.shape[:stacked], *[1] * (len(leaf.shape) - stacked))

    return map_named(value, tree)
