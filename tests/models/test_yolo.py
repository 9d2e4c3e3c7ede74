"""The detector: its size, its grids, what each head may teach, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.arguments import InputError
from research.models import yolo

SIZES = {"n": 2_768_304, "s": 10_932_224, "m": 29_685_264, "l": 61_904_544}
TINY = dict(labels=3, channels=3, strides=(4, 8), width=0.06, depth=0.33, bins=4)


def by_hand(depth, width, labels=80, bins=16):
    """The parameters of the parts that yolo.py says it is made of, at strides of 8, 16 and 32."""
    conv = lambda k, i, o: k * k * i * o + 2 * o  # noqa: E731

    def partial(i, o, n):
        h = o // 2
        return 2 * conv(1, i, h) + n * (conv(1, h, h) + conv(3, h, h)) + conv(1, 2 * h, o)

    w = {s: round(32 * s * width) for s in (2, 4, 8, 16, 32)}
    blocks = {4: round(3 * depth), 8: round(9 * depth), 16: round(9 * depth), 32: round(3 * depth)}
    total = conv(3, 3, w[2])
    total += sum(conv(3, w[s // 2], w[s]) + partial(w[s], w[s], n) for s, n in blocks.items())
    total += conv(1, w[32], w[16]) + conv(1, 4 * w[16], w[32])  # pooling
    for fine, coarse in ((8, 16), (16, 32)):
        total += conv(1, w[coarse], w[fine]) + conv(3, w[fine], w[fine])
        total += partial(w[coarse], w[fine], round(3 * depth))
        total += partial(w[coarse], w[coarse], round(3 * depth))
    head, last = w[8], labels + 4 * bins
    for s in (8, 16, 32):
        total += 2 * (conv(1, w[s], head) + 4 * conv(3, head, head) + head * last + last)
    return total


@pytest.mark.parametrize("scale", ["n", *(pytest.param(s, marks=pytest.mark.slow) for s in "sml")])
def test_a_scale_has_the_parameters_that_are_stated(scale):
    assert by_hand(*yolo.SCALES[scale]) == SIZES[scale]
    model = yolo.make(scale=scale, labels=80, channels=3)
    params = jax.eval_shape(model.init, jax.random.key(0))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == SIZES[scale]
    named = jax.tree.leaves(model.axes, is_leaf=lambda x: isinstance(x, tuple))
    assert [len(axes) for axes in named] == [leaf.ndim for leaf in jax.tree.leaves(params)]


def begin(model, seed=0):
    """Variables like those of `init`, whose hundred draws take minutes to compile on a CPU."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if leaf.ndim > 1:
            ones = leaf.ndim == 2  # the last product of a head
            std = 0.01 if ones else (2 / (leaf.shape[0] ** 2 * leaf.shape[-1])) ** 0.5
            return jnp.array(rng.normal(0, std, leaf.shape), jnp.float32)
        name = tree.path_name(path).rpartition("/")[2]
        value = {"scale": 1.0, "variance": 1.0, "classes_bias": -np.log(99)}.get(name, 0.0)
        return jnp.full(leaf.shape, value, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def tiny():
    model = yolo.make(**TINY)
    variables = begin(model)
    apply = jax.jit(model.apply, static_argnames="train")
    return model, variables, apply


def pictures(count=2, size=32):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def test_grids_are_where_their_cells_are(tiny):
    _, variables, apply = tiny
    outputs, _ = apply(variables, pictures(), train=False)
    cells = [(4 * x + 2, 4 * y + 2, 4) for y in range(8) for x in range(8)]
    cells += [(8 * x + 4, 8 * y + 4, 8) for y in range(4) for x in range(4)]
    found = np.concatenate([outputs["anchors"], outputs["strides"][:, None]], 1)
    np.testing.assert_array_equal(found, cells)
    for head in yolo.HEADS:
        assert outputs[head]["classes"].shape == (2, 80, 3)
        assert outputs[head]["boxes"].shape == (2, 80, 4, 4)
        assert {x.dtype.name for x in jax.tree.leaves(outputs[head])} == {"float32"}


def test_an_object_of_any_class_has_the_same_small_chance_at_first(tiny):
    init = lambda key: [tiny[0].init(key)["params"][name] for name in yolo.HEADS]  # noqa: E731
    biases = lambda key: [level["classes_bias"] for h in init(key) for level in h.values()]  # noqa: E731
    for bias in jax.jit(biases)(jax.random.key(0)):  # of the rest nothing is computed
        np.testing.assert_allclose(jax.nn.sigmoid(bias).sum(), yolo.PRIOR, rtol=1e-5)
        assert len(set(bias.tolist())) == 1


def test_an_image_does_not_know_its_batch_and_only_training_moves_the_statistics(tiny):
    _, variables, apply = tiny
    image = pictures()
    outputs, state = apply(variables, image, train=False)
    other, _ = apply(variables, np.stack([image[0], 255 - image[1]]), train=False)
    for head in yolo.HEADS:
        for name in ("classes", "boxes"):
            one, two = outputs[head][name][0], other[head][name][0]
            np.testing.assert_allclose(one, two, atol=1e-5)
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), state, variables["model_state"])
    assert all(jax.tree.leaves(same))
    _, moved = apply(variables, image, train=True)
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), moved, variables["model_state"])
    assert not any(jax.tree.leaves(same))


@pytest.mark.parametrize(
    ("detach", "heads"),
    [
        (True, ["one_to_one"]),
        pytest.param(True, ["one_to_many"], marks=pytest.mark.slow),
        pytest.param(False, ["one_to_many", "one_to_one"], marks=pytest.mark.slow),
    ],
)
def test_features_learn_from_the_one_to_many_head_alone(detach, heads):
    model = yolo.make(**TINY | dict(detach=detach))
    variables = begin(model)

    def said(params, head):
        outputs, _ = model.apply(variables | {"params": params}, pictures(), train=True)
        return sum((x**2).sum() for x in jax.tree.leaves(outputs[head]))

    grads = jax.jit(lambda p: {head: jax.grad(said)(p, head) for head in heads})(
        variables["params"]
    )
    for head in heads:
        moved = {n for n, g in grads[head].items() if any(np.any(x) for x in jax.tree.leaves(g))}
        features = set() if head == "one_to_one" and detach else {"backbone", "neck"}
        assert moved == {head} | features


def test_what_does_not_fit_is_refused(tiny):
    with pytest.raises(InputError, match="20 x 32 pixels do not divide by the largest"):
        jax.eval_shape(tiny[0].apply, tiny[1], np.zeros((1, 20, 32, 3), np.uint8))
    for strides in ((), (8, 32), (2, 4), (16, 8), (6,)):
        with pytest.raises(InputError, match="each twice the one before"):
            yolo.make(**TINY | dict(strides=strides))
    with pytest.raises(InputError, match="needs labels and channels"):
        yolo.make(labels=3)
    with pytest.raises(InputError, match="no 8 bits"):
        yolo.make(**TINY, precision="int8")
