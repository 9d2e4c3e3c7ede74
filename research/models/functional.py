"""The boundary: flax NNX modules inside, pure functions over plain dicts outside.

    model = functional(lambda rngs: GPT(..., rngs=rngs))
    variables = model.init(key)                        # {"params": ..., "model_state": ...}
    logits, model_state = model.apply(variables, tokens)

Plain dicts dispatch in 0.07 ms a step where nnx.jit needs 2 to 24 ms, and every other part of the
project (optimizers, checkpoints, compression) sees ordinary pytrees.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from research import tree


class Model(NamedTuple):
    """A model as pure functions.

    init(key) -> variables; axes: a tuple of logical names for every parameter;
    apply(variables, *inputs, method="__call__", key=None, train=False) -> outputs, model_state
    """

    init: Callable
    axes: Any
    apply: Callable


def narrow(model: Model) -> Model:
    """Returns `model` with bfloat16 parameters: half the memory, and no copies to compute with.
    The optimizer rounds its updates stochastically, or they would be lost (kernels/rounding.py)."""

    def init(key: jax.Array) -> dict[str, Any]:
        variables = model.init(key)
        cast = lambda x: x.astype(jnp.bfloat16)  # noqa: E731
        return variables | {"params": jax.tree.map(cast, variables["params"])}

    return model._replace(init=init)


def freeze(model: Model, patterns: tuple[str, ...]) -> Model:
    """Returns `model` with the parameters that match a pattern in variables["frozen"]["params"]:
    no gradient, no optimizer state, no average.

    Raises InputError, once parameters are made, for a pattern that does not fit them.
    """

    def init(key: jax.Array) -> dict[str, Any]:
        variables = model.init(key)
        params, frozen = tree.split(variables["params"], patterns)
        return variables | {"params": params, "frozen": {"params": frozen}}

    def apply(variables: dict[str, Any], *inputs: Any, **options: Any) -> tuple[Any, Any]:
        whole = tree.merge(variables["params"], variables["frozen"]["params"])
        return model.apply(variables | {"params": whole}, *inputs, **options)

    return Model(init, model.axes, apply)


def functional(make: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """Turns `make(rngs) -> nnx.Module` into a Model. Every public method of the module takes `key`
    (None: no randomness) and `train`."""
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graphdef, abstract_params, _ = nnx.split(abstract, nnx.Param, ...)
    axes = jax.tree.map(
        lambda variable: variable.get_metadata()["out_sharding"],
        abstract_params,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )

    def init(key: jax.Array) -> dict[str, Any]:
        _, params, model_state = nnx.split(make(nnx.Rngs(key)), nnx.Param, ...)
        return {"params": nnx.to_pure_dict(params), "model_state": nnx.to_pure_dict(model_state)}

    def apply(
        variables: dict[str, Any],
        *inputs: Any,
        method: str = "__call__",
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[Any, Any]:
        # copy=True: without it, merging arrays of an outer trace under grad raises.
        module = nnx.merge(graphdef, variables["params"], variables["model_state"], copy=True)
        outputs = getattr(module, method)(*inputs, key=key, train=train)
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))

    return Model(init, nnx.to_pure_dict(axes), apply)
