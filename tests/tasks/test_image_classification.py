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


@pytest.mark.parametrize("which", ["mixup", "cutmix"])
def test_a_mixed_image_is_of_two_and_its_aim_of_their_labels_in_the_same_shares(which):
    key = jax.random.key(3)
    shares = []
    draw = jax.jit(lambda key: task_lib.draw_shares(key, (6, 5), **ALPHAS[which], probability=1.0))
    for seed in range(20):
        share = np.asarray(draw(jax.random.key(seed)))
        assert ((0 <= share) & (share <= 1)).all()
        if which == "mixup":
            assert (share == share[0, 0]).all()
        else:  # a rectangle of zeros
            rows, columns = (share == 0).any(1), (share == 0).any(0)
            np.testing.assert_array_equal(share == 0, np.outer(rows, columns))
            assert set(np.unique(share)) <= {0.0, 1.0}
        shares.append(share.mean())
    assert len(np.unique(shares)) > 5 and np.std(shares) > 0.1
    share = draw(key)
    aims = np.eye(CLASSES)[LABELS]
    image, aim = task_lib.mix(jnp.asarray(IMAGES), jnp.asarray(aims), jnp.ones(ROWS), share)
    s = np.asarray(share)[..., None]
    for i in range(ROWS):
        j = (i + 1) % ROWS
        np.testing.assert_allclose(image[i], s * IMAGES[i] + (1 - s) * IMAGES[j], atol=1e-3)
        np.testing.assert_allclose(aim[i], s.mean() * aims[i] + (1 - s.mean()) * aims[j], atol=1e-5)


ALPHAS = dict(mixup=dict(mixup=1.0, cutmix=None), cutmix=dict(mixup=None, cutmix=1.0))


def test_what_stands_in_padding_reaches_no_other_image_and_no_number():
    task, key = task_lib.make(CLASSES, mixup=1.0, cutmix=1.0), jax.random.key(0)
    padding = WEIGHT == 0
    images = np.where(padding[:, None, None, None], 255 - IMAGES, IMAGES)
    labels = np.where(padding, (LABELS + 1) % CLASSES, LABELS)
    seen = []
    want, _ = train_loss(task, key, seen=seen)
    got, aux = train_loss(task, key, images=images, labels=labels, seen=seen)
    assert want[0] == got[0] and want[1] == got[1] == WEIGHT.sum()
    np.testing.assert_array_equal(seen[0][~padding], seen[1][~padding])
    assert (np.asarray(seen[0])[~padding] != IMAGES[~padding]).any()
    assert 0 <= aux.metrics["accuracy"][0] <= WEIGHT.sum()


def test_mixing_is_as_frequent_as_asked_and_each_kind_has_half():
    draw = jax.jit(
        jax.vmap(lambda key, p: task_lib.draw_shares(key, (16, 16), 1.0, 1.0, p), (0, None))
    )
    shares = np.asarray(draw(jax.random.split(jax.random.key(0), 1_000), 0.6)).reshape(1_000, -1)
    uniform = shares.min(-1) == shares.max(-1)
    ones = (shares == 1).all(-1)
    assert abs((uniform & ~ones).mean() - 0.3) < 0.05  # mixup
    assert abs((~uniform).mean() - 0.3) < 0.06  # a rectangle may be empty, or be all
    assert (np.asarray(draw(jax.random.split(jax.random.key(0), 9), 0.0)) == 1).all()


def test_a_mixed_loss_is_equal_on_one_and_eight_devices():
    task, key = task_lib.make(CLASSES, mixup=0.4, cutmix=1.0), jax.random.key(5)
    logits = lambda image: image.reshape(len(image), -1)[:, :CLASSES] / 64.0  # noqa: E731
    batch = dict(image=IMAGES[:16], labels=LABELS[:16].astype(np.int32), weight=WEIGHT[:16])
    step = lambda batch: task.loss(model_of(logits), {}, batch, key, True)[0]  # noqa: E731
    want = jax.jit(step)(batch)
    mesh = sharding.make_mesh(dict(data=8))
    with jax.set_mesh(mesh):
        got = jax.jit(step, in_shardings=(sharding.batch_sharding(mesh, 16),))(batch)
    np.testing.assert_allclose(got, want, rtol=1e-6)


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
