"""GPT against transformers' GPT-2 and Llama, whose numbers tests/fixtures/make.py froze."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.models import gpt
from research.tasks import causal_lm

SIZE = dict(vocab_size=97, context=32, num_layers=2, num_heads=4, width=32)
SHAPES = {
    "gpt2": SIZE,
    "llama": SIZE
    | dict(
        num_kv_heads=2,
        mlp_width=48,
        norm="rmsnorm",
        norm_epsilon=1e-6,
        positions="rotary",
        mlp="swiglu",
        bias=False,
        tie_embeddings=False,
    ),
}


@pytest.fixture(scope="module", params=SHAPES)
def case(request):
    """(model, variables, batch, theirs): transformers' weights in our tree, and its numbers."""
    with np.load(Path(__file__).parent.parent / "fixtures" / f"{request.param}.npz") as file:
        theirs = dict(file)
    model = gpt.make(**SHAPES[request.param])
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
    params = tree.map_named(lambda path, leaf: jnp.asarray(theirs[f"params/{path}"]), shapes)
    assert set(tree.flatten(shapes)) == {k[7:] for k in theirs if k.startswith("params/")}
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params, shapes)
    batch = {k[6:]: jnp.asarray(v) for k, v in theirs.items() if k.startswith("batch/")}
    return model, {"params": params, "model_state": {}, "frozen": {}}, batch, theirs


@pytest.mark.core
def test_logits_equal_those_of_transformers(case):
    model, variables, batch, theirs = case
    inputs = batch["tokens"], batch["segments"], batch["positions"]
    ours = np.asarray(model.apply(variables, *inputs)[0][..., :97])
    real = np.asarray(batch["segments"]) > 0
    assert theirs["logits"][real].std() > 1  # the weights are large: this is no test of noise
    scale = np.abs(theirs["logits"][real]).max()
    np.testing.assert_allclose(ours[real], theirs["logits"][real], atol=1e-5 * scale, rtol=0)


@pytest.mark.core
def test_loss_and_every_gradient_equal_those_of_transformers(case):
    model, variables, batch, theirs = case
    task = causal_lm.make(vocab_size=97, chunk=5)

    def mean_loss(params):
        (total, weight), _ = task.loss(model, {**variables, "params": params}, batch, None, True)
        return total / weight

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(variables["params"])
    np.testing.assert_allclose(loss, theirs["loss"], rtol=1e-5)
    for path, ours in tree.flatten(grads).items():
        expected = theirs[f"grads/{path}"]
        # A bias of the keys moves all scores of a query alike: its gradient is rounding.
        scale = 1.0 if path.endswith("/k_bias") else np.abs(expected).max()
        assert scale > 1e-3, path
        np.testing.assert_allclose(ours, expected, atol=1e-4 * scale, rtol=0, err_msg=path)
