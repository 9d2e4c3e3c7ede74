"""The causal language modelling task: what it passes on to the loss, and when."""

import jax
import jax.numpy as jnp
import pytest

from research.kernels.cross_entropy import cross_entropy
from research.tasks import causal_lm


class Fixed:
    """A model whose hidden states and head are given."""

    hidden = jax.random.normal(jax.random.key(0), (2, 5, 8))
    head = jax.random.normal(jax.random.key(1), (8, 16))

    def apply(self, *_, **__):
        return (self.hidden, self.head), {}


@pytest.mark.core
def test_labels_are_smoothed_in_training_only_and_by_a_tracer_too():
    model, tokens = Fixed(), jnp.arange(10).reshape(2, 5)
    batch = {"tokens": tokens, "targets": tokens, "weight": jnp.ones((2, 5))}

    def loss(smoothing, train):
        task = causal_lm.make(vocab_size=10, label_smoothing=smoothing)
        return task.loss(model, {}, batch, None, train)[0][0]

    call = lambda s: cross_entropy(  # noqa: E731
        model.hidden, model.head, tokens, batch["weight"], vocab_size=10, label_smoothing=s
    )[0]
    assert loss(0.2, True) == call(0.2) != call(0.0)
    assert loss(0.2, False) == call(0.0)
    both = jax.vmap(lambda s: loss(s, True))(jnp.array([0.0, 0.2]))
    assert jnp.allclose(both, jnp.stack([call(0.0), call(0.2)]), rtol=1e-6)
