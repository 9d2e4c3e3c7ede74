"""ResNets by property: sizes, norms, shortcuts, devices, micro-batches; and where images differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research import flops, sharding, tree
from research.arguments import InputError
from research.gradients import accumulate, plain
from research.models import resnet
from research.models.convolutions import BatchNorm, GroupNorm, normalised, pixel_statistics
from research.models.layers import Number
from research.step import TrainState

SMALL = dict(depth=20, blocks=(1, 1), widths=(8, 16), stem_width=8, labels=4, channels=3)
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 9, 9, 3)).astype(np.uint8)


def started(model):
    return jax.jit(model.init)(jax.random.key(0))


def sized(depth):
    cifar = depth in resnet.CIFAR
    return resnet.make(depth=depth, labels=10 if cifar else 1_000, channels=3)


# Of torchvision's models, and for CIFAR of table 6, exact by later implementations of it.
COUNTS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
COUNTS |= {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}
QUICK = (18, 20)


@pytest.mark.parametrize(
    "depth", [d if d in QUICK else pytest.param(d, marks=pytest.mark.slow) for d in COUNTS]
)
def test_a_depth_has_the_parameters_of_the_published_model(depth):
    params = jax.eval_shape(sized(depth).init, jax.random.key(0))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[depth]


@pytest.mark.slow
@pytest.mark.parametrize("depth,size,macs", [(18, 224, 1.81e9), (50, 224, 4.09e9), (20, 32, 41e6)])
def test_a_forward_pass_costs_what_is_published(depth, size, macs):
    model = sized(depth)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    total = flops.count(lambda v, x: model.apply(v, x)[0], variables, image).total
    assert abs(total / 2 / macs - 1) < 0.01


def norm_of(kind, channels, **changes):
    options = dict(momentum=0.9, epsilon=1e-5, scale=1.0, groups=1) | changes
    return kind(channels, **options)


def test_batch_norm_is_its_formula_and_keeps_the_unbiased_variance():
    x = np.random.default_rng(0).normal(3, 2, (2, 3, 1, 5))
    norm = norm_of(BatchNorm, 5)
    y = norm(jnp.asarray(x, jnp.float32), train=True)
    mean, flat = x.mean((0, 1, 2)), x.reshape(-1, 5)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(flat.var(0) + 1e-5), atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.variance[...], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    y = norm(jnp.asarray(x, jnp.float32), train=False)
    expected = (x - 0.1 * mean) / np.sqrt(0.9 + 0.1 * flat.var(0, ddof=1) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-4)


def test_a_mean_far_from_zero_does_not_eat_the_variance():
    x = np.random.default_rng(0).normal(1_000, 1, (8, 4, 4, 2))
    norm = norm_of(BatchNorm, 2)
    norm.mean[...] = jnp.full(2, 999.0)  # as after some steps
    y = norm(jnp.asarray(x, jnp.float32), train=True)
    x = np.asarray(jnp.asarray(x, jnp.float32), float)
    expected = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    np.testing.assert_allclose(y, expected, atol=1e-3)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_is_its_formula(groups):
    x = np.random.default_rng(0).normal(3, 2, (2, 3, 4, 6))
    y = norm_of(GroupNorm, 6, groups=groups)(jnp.asarray(x, jnp.float32), train=True)
    for i in range(groups):
        part = x[..., i * 6 // groups : (i + 1) * 6 // groups]
        mean, std = part.mean((1, 2, 3), keepdims=True), part.std((1, 2, 3), keepdims=True)
        np.testing.assert_allclose(
            y[..., i * 6 // groups : (i + 1) * 6 // groups], (part - mean) / std, atol=1e-4
        )


@pytest.mark.slow
def test_with_group_norm_an_image_does_not_know_the_batch():
    model = resnet.make(**SMALL, norm="group", groups=4)
    variables = started(model)
    assert not jax.tree.leaves(variables["model_state"])
    apply = jax.jit(lambda x: model.apply(variables, x, train=True)[0])
    others = np.concatenate([IMAGES[:1], IMAGES[8:15]])
    np.testing.assert_allclose(apply(IMAGES[:8])[0], apply(others)[0], atol=1e-5)


@pytest.mark.slow
def test_a_block_begins_as_its_shortcut():
    arguments = dict(block="basic", norm="batch", groups=1)
    arguments |= dict(momentum=Number(0.9), norm_epsilon=Number(1e-5))
    arguments |= dict(precision="fp32", shortcut="padding")
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)

    def block(zero_init):
        make = lambda: resnet.Block(arguments | dict(zero_init=zero_init), 3, 5, 2, nnx.Rngs(0))  # noqa: E731
        return np.asarray(jax.jit(lambda x: make()(x, train=True))(x))

    y = block(True)
    np.testing.assert_array_equal(y[..., :3], np.maximum(x, 0)[:, ::2, ::2])
    assert (y[..., 3:] == 0).all()
    assert (block(False)[..., 3:] != 0).any()


def gradients_of(model, variables):
    """(batch) -> Gradients of a sum of probed logits, as the step asks for them."""

    def loss(variables, batch, key):
        logits, state = model.apply(variables, batch["image"], key=key, train=True)
        probe = jnp.sin(jnp.arange(4.0))
        aux = type("Aux", (), dict(model_state=state, metrics={}))
        return ((jax.nn.log_softmax(logits) @ probe).sum(), jnp.float32(len(logits))), aux

    state = TrainState(
        *(None, variables["params"], {}, variables["model_state"], None, {}, None, None)
    )
    return plain.make(loss), state


def test_statistics_and_gradients_are_equal_on_one_and_eight_devices():
    model = resnet.make(**SMALL | dict(zero_init=False))
    variables = started(model)
    grad_fn, state = gradients_of(model, variables)
    step = lambda variables, batch: grad_fn(state._replace(**variables), batch, jax.random.key(1))[  # noqa: E731
        ::3
    ]
    batch = {"image": IMAGES}
    want = jax.jit(step)(variables, batch)
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    placed, _ = sharding.param_shardings(mesh, model.axes, variables["params"])
    where = {"params": placed, "model_state": jax.NamedSharding(mesh, jax.P())}
    with jax.set_mesh(mesh):
        got = jax.jit(step, in_shardings=(where, sharding.batch_sharding(mesh, 16)))(
            variables, batch
        )
    for path, ours in tree.flatten(got).items():
        theirs = np.asarray(tree.flatten(want)[path])
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1, np.abs(theirs).max()))


@pytest.mark.slow
def test_numbers_may_be_tracers():
    variables = started(resnet.make(**SMALL))

    def moved(momentum, epsilon):
        model = resnet.make(**SMALL, momentum=momentum, norm_epsilon=epsilon)
        return model.apply(variables, IMAGES, train=True)[1]["stem"]["norm"]["mean"]

    many = jax.jit(jax.vmap(moved))(jnp.array([0.9, 1.0]), jnp.array([1e-5, 1e-5]))
    np.testing.assert_allclose(many[0], jax.jit(lambda: moved(0.9, 1e-5))(), rtol=1e-5)
    assert (many[1] == 0).all() and (many[0] != 0).any()


@pytest.mark.slow
def test_micro_batches_move_the_running_moments_once():
    model = resnet.make(**SMALL)
    variables = started(model)
    grad_fn, state = gradients_of(model, variables)
    step = jax.jit(lambda batch: accumulate.make(grad_fn, 2)(state, batch, jax.random.key(1)))
    whole = step({"image": IMAGES}).model_state
    moved = jax.jit(lambda image: model.apply(variables, image, train=True)[1])
    halves = [moved(IMAGES[i::2]) for i in (0, 1)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, mean)


def test_pixels_are_normalised_and_mixing_them_commutes():
    mean, std = pixel_statistics(3, None, None)
    ours = normalised(jnp.asarray(IMAGES), mean, std, jnp.float32)
    np.testing.assert_allclose(ours, (IMAGES / 255 - mean) / std, atol=1e-5)
    mixed = 0.3 * IMAGES[:8].astype(np.float32) + 0.7 * IMAGES[8:]
    expected = 0.3 * ours[:8] + 0.7 * ours[8:]
    np.testing.assert_allclose(normalised(mixed, mean, std, jnp.float32), expected, atol=1e-5)
    assert pixel_statistics(1, None, (0.25,)) == ((0.5,), (0.25,))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_narrow_precisions_are_near_float32(precision):
    model, narrow = resnet.make(**SMALL), resnet.make(**SMALL, precision=precision)
    variables = started(model)
    (want, state), (got, other) = (
        jax.jit(lambda v, m=m: m.apply(v, IMAGES, train=True))(variables) for m in (model, narrow)
    )
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=0.03 * float(jnp.abs(want).max()))
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, (state, other))
    assert dtypes[0] == dtypes[1]


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(labels=None), "needs labels and channels"),
        (dict(depth=51), "depth=51 is none of"),
        (dict(widths=(8, 16, 32)), "expected as many of each"),
        (dict(blocks=(1, 0)), "above 0"),
        (dict(widths=(16, 8)), "use projection"),
        (dict(block="bottleneck", widths=(8, 18)), "multiples of 4"),
        (dict(norm="group"), "do not divide into config.model.groups=32"),
        (dict(mean=(0.5,)), "expected a number for each of 3 channels"),
        (dict(std=(0.5, 0.0, 0.5)), "expected numbers above 0"),
        (dict(precision="int8"), "convolutions have no 8 bits"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        resnet.make(**SMALL | changes)


def test_images_of_other_channels_are_refused():
    model = resnet.make(**SMALL)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(InputError, match="images of 1 channels"):
        jax.eval_shape(lambda v: model.apply(v, IMAGES[..., :1])[0], variables)
