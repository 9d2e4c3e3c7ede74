"""Named paths over a pytree of dicts, and ordered (regex, value) rules over those paths.

A leaf under a key `layers` that no index follows holds all layers, stacked on its first axis:
`layers/attn/q` of shape (12, ...). Rules address it as if unrolled, `layers/3/attn/q`, so that one
rule means the same for a scanned and an unrolled model.
"""

import re
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

Rules = tuple[tuple[str, Any], ...]


def path_name(path: Iterable[Any]) -> str:
    """Returns a jax key path as 'layers/attn/q'."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf} in the order of the tree; None leaves are absent."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(function: Any, tree: Any, *rest: Any) -> Any:
    """Like jax.tree.map with the path as the first argument."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest
    )


def is_stacked(path: str) -> bool:
    """Tells whether the leaf at `path` holds all layers on its first axis."""
    return re.search(r"(^|/)layers/(?!\d)", path) is not None


def unrolled_paths(path: str, leaf: Any) -> list[str]:
    """Returns the path of each layer in a stacked leaf, or [path]."""
    if not is_stacked(path):
        return [path]
    return [
        re.sub(r"(^|/)layers/(?!\d)", rf"\1layers/{layer}/", path, count=1)
        for layer in range(leaf.shape[0])
    ]


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
        return np.asarray(values).reshape(-1, *[1] * (len(leaf.shape) - 1))

    return map_named(value, tree)
