"""Counted FLOPs beside counts by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from research.flops import Flops, count, peak, training_flops
from research.kernels import attention as kernel
from research.kernels.attention import attention
from research.kernels.cross_entropy import cross_entropy


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def mlp(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


@pytest.mark.core
def test_a_scan_counts_every_layer():
    assert count(mlp, array(3, 8), array(5, 8, 8)) == Flops(5 * 2 * 3 * 8 * 8, 0)


@pytest.mark.core
def test_the_gradient_of_a_rematerialised_scan_adds_recomputation():
    def loss(x, weights, wrap):
        body = wrap(lambda x, w: (jnp.tanh(x @ w), None))
        return jax.lax.scan(body, x, weights)[0].sum()

    layer = 2 * 3 * 8 * 8
    shapes = array(3, 8), array(5, 8, 8)
    for wrap, passes in ((lambda f: f, 3), (jax.checkpoint, 4)):
        gradient = jax.grad(lambda x, w, wrap=wrap: loss(x, w, wrap), (0, 1))
        assert count(gradient, *shapes).total == passes * 5 * layer


@pytest.mark.core
def test_attention_is_counted_apart():
    batch, length, heads, kv_heads, dim = 2, 16, 4, 2, 8

    def layer(x, w, k):
        q = jnp.einsum("btd,dhk->bthk", x, w)
        return attention(q, k, k)

    flops = count(layer, array(2, 16, 5), array(5, heads, dim), array(2, 16, kv_heads, dim))
    products = 4 * batch * heads * length * length * dim
    assert flops == Flops(products + 2 * batch * length * 5 * heads * dim, products)

    # Handed down into the loop of a scanned layer, and not spread to what follows it.
    def scanned(x):
        return jax.lax.scan(lambda x, _: (attention(x, x, x) @ jnp.eye(8), None), x, None, 3)

    assert count(scanned, array(2, 16, 4, 8)).attention == 3 * products


def test_the_pallas_kernel_counts_what_plain_attention_does():
    @jax.named_scope("attention")  # handed down into the kernel
    def fused(q, k):
        return kernel._splash(q, k, k, causal=True, window=None)

    q, k = array(2, 1024, 4, 16), array(2, 1024, 2, 16)  # 2 x 2 blocks
    assert count(fused, q, k) == count(lambda q, k: attention(q, k, k), q, k)


@pytest.mark.core
@pytest.mark.parametrize("groups, stride", [(1, 1), (1, 2), (4, 1)])
def test_a_convolution_and_its_gradients(groups, stride):
    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            *(x, w, (stride, stride), "SAME"),
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    shapes = array(2, 8, 8, 4), array(3, 3, 4 // groups, 12)
    forward = 2 * (2 * (8 // stride) ** 2 * 12) * (3 * 3 * 4 // groups)
    assert count(convolve, *shapes).total == forward
    gradient = jax.grad(lambda x, w: (convolve(x, w) ** 2).sum(), (0, 1))
    assert count(gradient, *shapes).total == 3 * forward


@pytest.mark.core
def test_chunked_cross_entropy_is_one_product_forward_and_three_with_gradient():
    tokens = jnp.zeros((4, 20), jnp.int32)
    product = 2 * 4 * 20 * 16 * 128

    def loss(hidden, head):
        return cross_entropy(hidden, head, tokens, jnp.ones((4, 20)), chunk=5)[0]

    shapes = array(4, 20, 16), array(16, 128)
    assert count(loss, *shapes).total == product
    assert count(jax.value_and_grad(loss, (0, 1)), *shapes).total == 3 * product


@pytest.mark.core
def test_branches_loops_and_nested_functions():
    def function(x):
        x = jax.lax.cond(x.sum() > 0, lambda x: x @ x @ x, lambda x: x @ x, x)
        x = jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ x, x)
        return jax.jit(jax.checkpoint(lambda x: x @ x))(x)

    assert count(function, array(4, 4)).total == (2 + 1 + 1) * 2 * 4**3


@pytest.mark.core
def test_shard_map_counts_every_device():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    split = jax.shard_map(
        lambda x, w: x @ w,
        mesh=mesh,
        in_specs=(P("data"), P(None, "tensor")),
        out_specs=P("data", "tensor"),
    )
    assert count(split, array(8, 16), array(16, 4)).total == 2 * 8 * 16 * 4


@pytest.mark.core
def test_a_transformer_obeys_6n_plus_12ltd_per_token():
    batch, length, width, layers, vocab, heads = 2, 32, 64, 3, 128, 4

    def loss(blocks, head, x):
        def block(x, w):
            q, k, v = jnp.split(x @ w["qkv"], 3, -1)
            q, k, v = (a.reshape(batch, length, heads, -1) for a in (q, k, v))
            x = x + attention(q, k, v).reshape(x.shape) @ w["out"]
            return x + jax.nn.gelu(x @ w["up"]) @ w["down"], None

        x, _ = jax.lax.scan(block, x, blocks)
        tokens = jnp.zeros((batch, length), jnp.int32)
        return cross_entropy(x, head, tokens, jnp.ones(tokens.shape))[0]

    blocks = {
        "qkv": array(layers, width, 3 * width),
        "out": array(layers, width, width),
        "up": array(layers, width, 4 * width),
        "down": array(layers, 4 * width, width),
    }
    head, x = array(width, vocab), array(batch, length, width)
    parameters = sum(leaf.size for leaf in jax.tree.leaves((blocks, head)))
    per_token = 12 * layers * length * width
    full, causal = training_flops(count(loss, blocks, head, x))
    assert full == batch * length * (6 * parameters + per_token)
    assert causal == batch * length * (6 * parameters + per_token // 2)
    # And it is what the gradient really does.
    assert count(jax.grad(loss, (0, 1, 2)), blocks, head, x).total == full


@pytest.mark.core
@pytest.mark.parametrize(
    "kind, flops",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("cpu", None),
    ],
)
def test_peak_of_a_device(kind, flops):
    assert peak(SimpleNamespace(device_kind=kind)) == flops


def test_products_of_groups_count_each_row_once():
    sizes = jnp.array([2, 1, 3])
    product = lambda x, w: jax.lax.ragged_dot(x, w, sizes)  # noqa: E731
    assert count(product, jnp.ones((6, 4)), jnp.ones((3, 4, 5))).total == 2 * 6 * 4 * 5
