"""muP in GPT: nothing at the base width, and beyond it the factors of arXiv:2203.03466, table 8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.arguments import InputError
from research.models import gpt

SMALL = dict(vocab_size=65, context=16, num_layers=2, num_heads=2, width=32)
TOKENS = jax.random.randint(jax.random.key(1), (2, 16), 0, 65)


def logits(model, variables):
    return jax.jit(lambda v: model.apply(v, TOKENS)[0])(variables)[..., :65]


@pytest.mark.core
@pytest.mark.parametrize("tie", [True, False])
def test_at_the_base_width_nothing_changes(tie):
    plain = gpt.make(**SMALL, tie_embeddings=tie)
    mup = gpt.make(**SMALL, tie_embeddings=tie, base_width=32)
    variables, other = plain.init(jax.random.key(0)), mup.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, variables, other)
    np.testing.assert_array_equal(logits(plain, variables), logits(mup, other))


@pytest.mark.core
def test_hidden_matrices_start_smaller_and_all_else_as_ever():
    plain = gpt.make(**SMALL, tie_embeddings=False).init(jax.random.key(0))["params"]
    mup = gpt.make(**SMALL, tie_embeddings=False, base_width=8).init(jax.random.key(0))["params"]
    mup = tree.flatten(mup)
    for path, leaf in tree.flatten(plain).items():
        hidden = path.split("/")[-1] in ("q", "k", "v", "out", "up", "down")
        np.testing.assert_allclose(mup[path], leaf * (0.5 if hidden else 1.0), rtol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("tie", [True, False])
def test_logits_and_attention_scores_are_scaled_where_loss_and_decoding_see_it(tie):
    """Base width 8 of 32: logits times 1/4, scores sqrt(4) / 16 instead of 1 / sqrt(16)."""
    shape = SMALL | dict(tie_embeddings=tie)
    plain, mup = gpt.make(**shape), gpt.make(**shape, base_width=8)
    variables = jax.tree.map(lambda x: 3 * x, plain.init(jax.random.key(0)))
    attention = variables["params"]["layers"]["attention"]
    halved = attention | {name: attention[name] / 2 for name in ("q", "q_bias")}
    layers = variables["params"]["layers"] | {"attention": halved}
    expected = variables | {"params": variables["params"] | {"layers": layers}}
    np.testing.assert_allclose(
        logits(mup, variables), logits(plain, expected) / 4, rtol=1e-4, atol=1e-6
    )
    (hidden, head), _ = mup.apply(variables, TOKENS, method="encode")
    by_loss = jnp.einsum("btd,dv->btv", hidden, head)[..., :65]
    np.testing.assert_allclose(by_loss, logits(mup, variables), rtol=1e-4, atol=1e-6)
    cache, _ = mup.apply(variables, 2, 16, method="empty_cache")
    positions = jnp.broadcast_to(jnp.arange(16), (2, 16))
    (hidden, _), _ = mup.apply(variables, TOKENS, positions, cache, method="decode_step")
    decoded, _ = mup.apply(variables, hidden, method="logits")
    np.testing.assert_allclose(decoded[..., :65], by_loss, rtol=1e-4, atol=1e-5)


def test_a_base_width_that_does_not_divide_into_the_heads_is_refused():
    with pytest.raises(InputError, match="base_width=7"):
        gpt.make(**SMALL, base_width=7)
