"""ResNet and ViT against transformers, ResNet in training too, frozen by tests/fixtures/make.py."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.models import resnet, vit

SHARED = dict(labels=10, channels=3, stem_width=8, momentum=0.9)
SHARED |= dict(stem="large", shortcut="projection")
VIT = dict(labels=10, channels=3, size=24, patch=8, num_layers=2, num_heads=4, width=32)
VIT |= dict(mlp_width=64, norm_epsilon=1e-12)
FAMILIES = {
    "resnet_basic": dict(block="basic", blocks=(2, 1), widths=(8, 12)) | SHARED,
    "vit": VIT,
    "resnet_bottleneck": dict(block="bottleneck", blocks=(1, 2), widths=(16, 32)) | SHARED,
}
CASES = [
    pytest.param("vit", False, marks=pytest.mark.core),
    pytest.param("resnet_bottleneck", True, marks=pytest.mark.core),
    pytest.param("resnet_basic", False),
    *(
        pytest.param(*x, marks=pytest.mark.slow)
        for x in (("resnet_bottleneck", False), ("resnet_basic", True))
    ),
]


def load(name):
    with np.load(Path(__file__).parent.parent / "fixtures" / f"{name}.npz") as file:
        return dict(file)


def under(theirs, prefix, dtype=jnp.float32):
    found = {k.removeprefix(prefix): v for k, v in theirs.items() if k.startswith(prefix)}
    return tree.nest({path: jnp.asarray(leaf, dtype) for path, leaf in found.items()})


def case(name, theirs, dtype, **changes):
    """The model, and transformers' variables in its places."""
    make = vit.make if name == "vit" else resnet.make
    model = make(**FAMILIES[name], **changes)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    variables = {"params": under(theirs, "params/", dtype)}
    variables["model_state"] = under(theirs, "state/", dtype)
    for kind, ours in variables.items():
        expected = {path: leaf.shape for path, leaf in tree.flatten(shapes[kind]).items()}
        assert {path: leaf.shape for path, leaf in tree.flatten(ours).items()} == expected
    # The order and the kinds of nodes are those of the model: lists have numbers as keys.
    return model, jax.tree.unflatten(
        jax.tree.structure({k: shapes[k] for k in variables}),
        [tree.flatten(variables)[path] for path in tree.flatten({k: shapes[k] for k in variables})],
    )


def near(ours, theirs, tolerance, message=""):
    scale = np.abs(theirs).max()
    assert scale > 1e-3, message
    np.testing.assert_allclose(ours, theirs, atol=tolerance * scale, rtol=0, err_msg=message)


@pytest.mark.parametrize(("name", "train"), CASES)
def test_outputs_and_every_gradient_equal_those_of_transformers(name, train):
    theirs, at = load(name), "train/" if train else ""
    model, variables = case(name, theirs, jnp.float32)

    def probed(params):
        image = theirs["batch/image"]
        logits, state = model.apply(variables | {"params": params}, image, train=train)
        return (logits * theirs["batch/probe0"]).sum(), (logits, state)

    (_, (logits, state)), grads = jax.jit(jax.value_and_grad(probed, has_aux=True))(
        variables["params"]
    )
    near(logits, theirs[f"{at}outputs/0"], 1e-5)
    for path, ours in tree.flatten(grads).items():
        if path.endswith("/k_bias"):  # moves all scores of a query alike: rounding
            continue
        near(ours, theirs[f"{at}grads/{path}"], 1e-4, path)
    # The running moments that the step leaves: torch's variance is the unbiased one.
    for path, ours in tree.flatten(state).items():
        near(ours, theirs[f"{at}state/{path}"], 1e-5, path)


@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("vit", False),
        ("resnet_bottleneck", True),
        pytest.param("resnet_bottleneck", False, marks=pytest.mark.slow),
    ],
)
def test_the_formula_is_that_of_transformers_in_float64(name, train):
    theirs = load(name)
    with jax.enable_x64(True):
        model, variables = case(name, theirs, jnp.float64, precision="fp64")
        apply = jax.jit(lambda v: model.apply(v, theirs["batch/image"], train=train)[0])
        logits = apply(variables)
        assert logits.dtype == jnp.float64
        near(logits, theirs["train/wide/0" if train else "wide/0"], 1e-10)
