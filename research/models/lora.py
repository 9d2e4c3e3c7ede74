"""Low-rank adapters for any model whose weights are multiplied by `project` (LoRA,
arXiv:2106.09685): y = x (W + alpha / rank a b), where W stays and a and b learn.

    model = lora(model, rank=8, alpha=16.0, targets=(r"attention/[qv]$",), train=("^head",))

The base lies in variables["frozen"]: it has no gradient, no accumulator and no optimizer state, and
no product of its size is ever made for one. Adapters lie in params under `lora/` and the path of
their weight; `b` starts at zero, so that step 0 computes what the base does.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from research import tree
from research.arguments import InputError
from research.models.functional import Model

Array = jax.Array


@jax.tree_util.register_pytree_node_class
class Adapted:
    """A weight with its adapters, in the place of the weight: `project` knows it, nothing else."""

    def __init__(self, base: Array, a: Array, b: Array, scale: float) -> None:
        self.base, self.a, self.b, self.scale = base, a, b, scale

    def tree_flatten(self) -> tuple[tuple[Array, Array, Array], float]:
        """The three arrays are children, so that a scan over layers takes one layer of each."""
        return (self.base, self.a, self.b), self.scale

    @classmethod
    def tree_unflatten(cls, scale: float, children: tuple[Array, Array, Array]) -> "Adapted":
        """The inverse."""
        return cls(*children, scale)

    def __getitem__(self, index: Any) -> "Adapted":
        return self if index is ... else self.shape  # p[...] reads it; all else is a look-up

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise InputError(
            "config.lora.targets names a weight that is not multiplied by itself (an embedding, a "
            "norm, an expert without capacity); name attention or mlp weights"
        )


def lora(
    model: Model, rank: int, alpha: float, targets: tuple[str, ...], train: tuple[str, ...]
) -> Model:
    """Returns `model` with adapters at the parameters that match a pattern of `targets`; of the
    others only those that match `train` learn.

    Raises InputError, once parameters are made, for a pattern that matches nothing, and a target
    that is no matrix or is in `train`.
    """
    tree.check_patterns(targets, "config.lora.targets")
    tree.check_patterns(train, "config.lora.train")
    scale = alpha / rank

    def shapes(path: str, leaf: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        stacked = tree.stacked_axes(path)
        inputs = stacked + tree.input_axes(path, leaf.ndim - stacked)
        before, outputs = leaf.shape[:stacked], leaf.shape[inputs:]
        return leaf.shape[:inputs] + (rank,), before + (rank,) + outputs

    def adapters(params: dict, key: jax.Array) -> dict:
        found = {}
        for path, leaf in chosen(params, targets, "targets").items():
            name = tree.unrolled_paths(path, leaf)[0]
            if leaf.ndim - tree.stacked_axes(path) < 2 or any(re.search(p, name) for p in train):
                raise InputError(f"config.lora.targets: {path} is no matrix, or is in lora.train")
            a, b = shapes(path, leaf)
            fan_in = math.prod(a[tree.stacked_axes(path) : -1])
            draw = jax.random.normal(tree.key_of(key, path), a, leaf.dtype)
            found[f"{path}/a"] = draw * fan_in**-0.5
            found[f"{path}/b"] = jnp.zeros(b, leaf.dtype)
        return tree.nest(found)

    def init(key: jax.Array) -> dict[str, Any]:
        variables = model.init(key)
        params = variables["params"]
        learned = chosen(params, train, "train")
        kept = {path: leaf for path, leaf in tree.flatten(params).items() if path not in learned}
        both = tree.nest(learned) | {"lora": adapters(params, jax.random.fold_in(key, 1))}
        return variables | {"params": both, "frozen": {"params": tree.nest(kept)}}

    def apply(variables: dict[str, Any], *inputs: Any, **options: Any) -> tuple[Any, Any]:
        params = {name: leaf for name, leaf in variables["params"].items() if name != "lora"}
        whole = tree.flatten(tree.merge(params, variables["frozen"]["params"]))
        given = tree.flatten(variables["params"]["lora"])
        for path in {name.rpartition("/")[0] for name in given}:
            whole[path] = Adapted(whole[path], given[f"{path}/a"], given[f"{path}/b"], scale)
        return model.apply(variables | {"params": restore(whole, model.axes)}, *inputs, **options)

    axes = dict(model.axes)
    leaves = jax.tree_util.tree_leaves_with_path(model.axes, is_leaf=lambda x: isinstance(x, tuple))
    adapted: dict[str, tuple[str, ...]] = {}
    for key, names in leaves:
        path = tree.path_name(key)
        stacked = tree.stacked_axes(path)
        inputs = stacked + tree.input_axes(path, len(names) - stacked)
        adapted[f"{path}/a"] = (*names[:inputs], "rank")
        adapted[f"{path}/b"] = (*names[:stacked], "rank", *names[inputs:])
    return Model(init, axes | {"lora": tree.nest(adapted)}, apply)


def chosen(params: dict, patterns: tuple[str, ...], what: str) -> dict[str, Array]:
    """Returns the leaves that match a pattern; raises InputError for one that matches nothing, or
    some layers of a stacked leaf only."""
    found, used = {}, set()
    for path, leaf in tree.flatten(params).items():
        names = tree.unrolled_paths(path, leaf)
        hits = [{p for p in patterns if re.search(p, name)} for name in names]
        used |= set().union(*hits)
        if any(hits) and not all(hits):
            raise InputError(
                f"config.lora.{what}: {path} holds all layers, and only some match; set "
                "config.model.scan=False"
            )
        if any(hits):
            found[path] = leaf
    for pattern in patterns:
        if pattern not in used:
            raise InputError(f"config.lora.{what}: {pattern!r} matches no parameter")
    return found


def restore(leaves: dict[str, Any], like: Any) -> Any:
    """Returns `leaves` nested as `like`, whose keys may be integers."""

    def place(key: tuple, _: Any) -> Any:
        return leaves[tree.path_name(key)]

    return jax.tree_util.tree_map_with_path(place, like, is_leaf=lambda x: isinstance(x, tuple))


def merged(variables: dict[str, Any], rank: int, alpha: float) -> dict[str, Any]:
    """Returns the parameters with the adapters added to their weights: an ordinary model's."""
    params = {name: leaf for name, leaf in variables["params"].items() if name != "lora"}
    whole = tree.merge(params, variables["frozen"]["params"])
    given = tree.flatten(variables["params"]["lora"])

    def add(path: str, leaf: Array) -> Array:
        if f"{path}/a" not in given:
            return leaf
        a, b = given[f"{path}/a"], given[f"{path}/b"]
        stacked = tree.stacked_axes(path)
        rows = a.reshape(*a.shape[:stacked], -1, rank)
        columns = b.reshape(*b.shape[:stacked], rank, -1)
        product = jnp.matmul(rows, columns, precision=jax.lax.Precision.HIGHEST)
        return (leaf + alpha / rank * product.reshape(leaf.shape)).astype(leaf.dtype)

    return tree.map_named(add, whole)
