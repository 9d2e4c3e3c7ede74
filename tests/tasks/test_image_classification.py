"""Images in classes: numbers beside NumPy, mixing, padding, batches and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding
from research.arguments import InputError
from research.models.functional import Model
from research.tasks import image_classification as task_lib

CLASSES, ROWS = 7, 60
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(ROWS, CLASSES)).astype(np.float32) * 2
LABELS = np.where(RNG.random(ROWS) < 0.5, LOGITS.argmax(-1), RNG.integers(0, CLASSES, ROWS))
WEIGHT = (np.arange(ROWS) % 10 != 9).astype(np.float32)
# The first pixels of an image say its logits, in bytes; a model reads them there.
IMAGES = RNG.integers(0, 256, (ROWS, 6, 5, 3)).astype(np.uint8)


def model_of(logits_of):
    apply = lambda variables, image, key=None, train=False: (logits_of(image), {})  # noqa: E731
    return Model(None, None, apply)


def numbers(task, parts):
    """All metrics and the report over batches of some rows each, as evaluate.py adds them."""
    totals = {}
    for rows in parts:
        batch = dict(image=IMAGES[rows], labels=LABELS[rows], weight=WEIGHT[rows])
        model = model_of(lambda image, rows=rows: jnp.asarray(LOGITS[rows]))
        loss, aux = task.loss(model, {}, batch, None, False)
        for name, (x, weight) in ({"loss": loss} | aux.metrics).items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = before[0] + np.asarray(x, float), before[1] + float(weight)
    found = {n: float(x / w) for n, (x, w) in totals.items() if not n.startswith("_")}
    return found | task.report(totals, {})


def brute_force():
    kept = WEIGHT > 0
    x, y = LOGITS[kept].astype(float), LABELS[kept]
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    guess, sure = p.argmax(-1), p.max(-1)
    ece = 0.0
    for m in range(15):
        inside = (sure > m / 15) & (sure <= (m + 1) / 15)
        if inside.any():
            gap = abs((guess == y)[inside].mean() - sure[inside].mean())
            ece += inside.mean() * gap
    order = np.argsort(-x, -1)[:, :5]
    recalls = [(guess == c)[y == c].mean() for c in range(CLASSES) if (y == c).any()]
    f1 = [
        2 * ((guess == c) & (y == c)).sum() / ((guess == c).sum() + (y == c).sum())
        for c in range(CLASSES)
        if (y == c).any()
    ]
    return dict(
        loss=-np.log(p[np.arange(len(y)), y]).mean(),
        accuracy=(guess == y).mean(),
        top5=np.mean([y[i] in order[i] for i in range(len(y))]),
        ece=ece,
        balanced_accuracy=np.mean(recalls),
        f1=np.mean(f1),
    )


@pytest.mark.core
@pytest.mark.parametrize("size", [ROWS, 15, 7])
def test_every_number_is_that_of_brute_force_however_the_split_is_cut(size):
    task = task_lib.make(CLASSES, label_smoothing=0.3, mixup=0.2)  # neither counts here
    parts = [np.arange(i, min(i + size, ROWS)) for i in range(0, ROWS, size)]
    found, expected = numbers(task, parts), brute_force()
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    assert 0.05 < expected["ece"] and 0 < expected["accuracy"] < expected["top5"] < 1


def test_five_classes_have_no_top5_and_many_no_table():
    batch = dict(image=IMAGES, labels=LABELS % 5, weight=WEIGHT)
    aux = task_lib.make(5).loss(model_of(lambda x: jnp.asarray(LOGITS[:, :5])), {}, batch, None, 0)
    assert "top5" not in aux[1].metrics and "_confusion" in aux[1].metrics
    wide = model_of(lambda x: jnp.zeros((ROWS, 1_001)))
    metrics = task_lib.make(1_001).loss(wide, {}, batch, None, False)[1].metrics
    assert "top5" in metrics and "_confusion" not in metrics


def train_loss(task, key, weight=WEIGHT, images=IMAGES, labels=LABELS, seen=None):
    def logits_of(image):
        if seen is not None:
            seen.append(image)
        return jnp.asarray(image.reshape(ROWS, -1)[:, :CLASSES], jnp.float32) / 64

    batch = dict(image=images, labels=labels, weight=weight)
    return task.loss(model_of(logits_of), {}, batch, key, True)


def test_smoothing_spreads_the_aim_over_all_classes():
    (total, weight), _ = train_loss(task_lib.make(CLASSES, label_smoothing=0.1), None)
    x = IMAGES.reshape(ROWS, -1)[:, :CLASSES] / 64
    log = x - np.log(np.exp(x).sum(-1, keepdims=True))
    aim = 0.9 * np.eye(CLASSES)[LABELS] + 0.1 / CLASSES
    np.testing.assert_allclose(total, -((aim * log).sum(-1) * WEIGHT).sum(), rtol=1e-5)
    assert weight == WEIGHT.sum()


@jax.jit
@jax.vmap
def draw(key, probability):
    return task_lib.draw_shares(key, (16, 12), 1.0, 1.0, probability)


def shares(probability):
    return np.asarray(draw(jax.random.split(jax.random.key(0), 1_000), np.full(1_000, probability)))


def test_shares_are_of_all_pixels_or_of_a_rectangle_as_often_as_asked():
    found = shares(0.6)
    assert ((0 <= found) & (found <= 1)).all()
    flat = found.reshape(1_000, -1)
    alike = flat.min(-1) == flat.max(-1)
    untouched = (flat == 1).all(-1)
    assert abs((alike & ~untouched).mean() - 0.3) < 0.05  # mixup
    assert abs((~alike).mean() - 0.3) < 0.06  # CutMix, whose rectangle may also be empty, or all
    assert flat[alike & ~untouched].std() > 0.2 and flat[~alike].mean(-1).std() > 0.15
    for share in found[~alike]:
        rows, columns = (share == 0).any(1), (share == 0).any(0)
        np.testing.assert_array_equal(share == 0, np.outer(rows, columns))
        assert set(np.unique(share)) == {0.0, 1.0}
        for inside in (rows, columns):  # without a gap
            assert np.ptp(np.flatnonzero(inside)) + 1 == inside.sum()
    assert (shares(0.0) == 1).all()


def test_a_mixed_image_is_of_two_and_its_aim_of_their_labels_in_the_same_shares():
    aims = np.eye(CLASSES)[LABELS]
    halves = np.repeat(np.array([1.0, 0.0]), [9, 21]).reshape(6, 5)
    for share in (np.full((6, 5), 0.3), halves):
        image, aim = task_lib.mix(
            jnp.asarray(IMAGES), jnp.asarray(aims), jnp.ones(ROWS), jnp.asarray(share, jnp.float32)
        )
        s = share[..., None]
        other, aim_of_other = np.roll(IMAGES, -1, 0), np.roll(aims, -1, 0)
        np.testing.assert_allclose(image, s * IMAGES + (1 - s) * other, atol=1e-3)
        np.testing.assert_allclose(aim, 0.3 * aims + 0.7 * aim_of_other, atol=1e-5)


def test_what_stands_in_padding_reaches_no_other_image_and_no_number():
    task, key = task_lib.make(CLASSES, mixup=1.0), jax.random.key(0)
    padding = WEIGHT == 0
    images = np.where(padding[:, None, None, None], 255 - IMAGES, IMAGES)
    labels = np.where(padding, (LABELS + 1) % CLASSES, LABELS)

    @jax.jit
    def loss(images, labels):
        seen = []
        found, aux = train_loss(task, key, images=images, labels=labels, seen=seen)
        return found, aux, seen[0]

    want, _, seen = loss(IMAGES, LABELS)
    got, aux, other = loss(images, labels)
    assert want[0] == got[0] and want[1] == got[1] == WEIGHT.sum()
    np.testing.assert_array_equal(seen[~padding], other[~padding])
    assert (np.asarray(seen)[~padding] != IMAGES[~padding]).any()
    assert 0 <= aux.metrics["accuracy"][0] <= WEIGHT.sum()


def test_images_are_changed_in_training_by_the_key_of_the_step_and_never_in_evaluation():
    task, seen = task_lib.make(labels=CLASSES, flip=0.5, shift=1, jitter=0.2, erase=0.5), []

    def look(image):
        seen.append(np.asarray(image))
        return jnp.asarray(LOGITS)

    batch = dict(image=IMAGES, labels=LABELS, weight=WEIGHT)
    for key, train in ((1, True), (1, True), (2, True), (1, False)):
        task.loss(model_of(look), {}, batch, jax.random.key(key), train)
    one, again, other, judged = seen
    np.testing.assert_array_equal(one, again)
    assert (one != IMAGES).any((1, 2, 3)).all() and (one != other).any((1, 2, 3)).all()
    np.testing.assert_array_equal(judged, IMAGES)


def test_mixing_is_equal_on_one_and_eight_devices():
    aims, share = jax.nn.one_hot(LABELS[:16], CLASSES), jnp.full((6, 5), 0.25)
    mixed = jax.jit(lambda image, aim, weight: task_lib.mix(image, aim, weight, share))
    inputs = (IMAGES[:16], aims, WEIGHT[:16])
    mesh = sharding.make_mesh(dict(data=8))
    where = sharding.batch_sharding(mesh, 16)
    with jax.set_mesh(mesh):
        got = mixed(*(jax.device_put(x, where) for x in inputs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, mixed(*inputs))


@pytest.mark.slow
def test_numbers_may_be_tracers():
    def loss(smoothing, alpha, probability):
        task = task_lib.make(CLASSES, smoothing, mixup=alpha, cutmix=alpha, mixing=probability)
        return train_loss(task, jax.random.key(0))[0][0]

    many = jax.jit(jax.vmap(loss))(*(jnp.array(x) for x in ((0.0, 0.1), (0.2, 1.0), (0.0, 1.0))))
    np.testing.assert_allclose(many[0], train_loss(task_lib.make(CLASSES), None)[0][0], rtol=1e-5)
    assert many[1] != many[0]


def test_without_classes_it_is_refused():
    with pytest.raises(InputError, match="needs labels"):
        task_lib.make()
