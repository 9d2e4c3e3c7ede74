"""BERT and T5 by property: padding, packing, scan, devices, the cache; and their tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding, tree
from research.arguments import InputError
from research.decode.sample import decode
from research.models import bert, t5, text_cnn
from research.tasks import classify, masked_lm, seq2seq

BERT = dict(vocab_size=65, context=16, num_layers=2, num_heads=4, width=32, dropout=0.1)
T5 = dict(vocab_size=65, num_layers=2, num_heads=4, head_dim=8, width=32, mlp_width=48)
T5 |= dict(buckets=8, max_distance=16, dropout=0.1)
SWITCH = T5 | dict(num_layers=4, experts=4, capacity=1.0)
CNN = dict(vocab_size=65, labels=3, width=16, filters=8)


def variables_of(model):
    variables = model.init(jax.random.key(0))
    # BERT's weights start so small that attention is even. T5's do not: its scores are undivided,
    # and twice the weights would make gradients of rounding.
    grow = 3 if "types" in variables["params"] else 1
    return variables | {"params": jax.tree.map(lambda x: grow * x, variables["params"])}


def batch_for(kind, rows=8):
    tokens, inputs = jax.random.randint(jax.random.key(1), (2, rows, 16), 0, 65)
    segments = jnp.ones((rows, 16), int).at[1, 9:].set(0)
    batch = dict(tokens=tokens, targets=inputs, segments=segments)
    batch["weight"] = (segments * (jnp.arange(16) % 5 == 1)).astype(jnp.float32)
    if kind == "seq2seq":
        batch |= dict(inputs=inputs, input_segments=segments, weight=segments.astype(jnp.float32))
    if kind == "classify":
        batch |= dict(labels=jnp.arange(rows) % 3, weight=jnp.ones(rows).at[-1].set(0))
    return batch


CASES = {
    "bert": (lambda **c: bert.make(**BERT, **c), masked_lm.make(65, 4), "masked"),
    "classify": (
        lambda **c: bert.make(**BERT, head="classify", labels=3, **c), classify.make(3), "classify",
    ),
    "t5": (lambda **c: t5.make(**T5, **c), seq2seq.make(65), "seq2seq"),
    "switch": (lambda **c: t5.make(**SWITCH, **c), seq2seq.make(65), "seq2seq"),
}  # fmt: skip


def loss_of(model, task, variables, train=True):
    def loss(params, batch):
        key = jax.random.key(7) if train else None
        (total, weight), _ = task.loss(model, variables | {"params": params}, batch, key, train)
        return total / weight

    return loss


def unstacked(params, turns):
    """The parameters of a scanned model, whose layers repeat after `turns`, as an unrolled one has
    them."""
    if not isinstance(params, dict):
        return params
    found = {name: unstacked(value, turns) for name, value in params.items() if name != "layers"}
    if "layers" in params:
        groups = [params["layers"]] if turns == 1 else [*params["layers"].values()]
        count = len(jax.tree.leaves(groups)[0])
        at = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree)  # noqa: E731
        layers = [at(groups[i % turns], i // turns) for i in range(count * turns)]
        found["layers"] = dict(enumerate(layers))
    return found


@pytest.mark.parametrize(
    "name",
    ["bert", *(pytest.param(n, marks=pytest.mark.slow) for n in ("switch", "t5", "classify"))],
)
def test_scan_unroll_and_remat_change_nothing(name):
    make, task, kind = CASES[name]
    model, batch = make(), batch_for(kind)
    variables = variables_of(model)
    step = lambda model: jax.jit(jax.value_and_grad(loss_of(model, task, variables)))  # noqa: E731
    want, grads = step(model)(variables["params"], batch)
    got, others = step(make(unroll=2, remat="full"))(variables["params"], batch)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, others)
    plain, turns = make(scan=False), 2 if name == "switch" else 1
    variables = variables_of(plain)
    apart = jax.jit(jax.value_and_grad(loss_of(plain, task, variables)))
    got, others = apart(unstacked(variables_of(model)["params"], turns), batch)
    assert set(tree.flatten(others)) == set(tree.flatten(variables["params"]))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), unstacked(grads, turns), others
    )


@pytest.mark.parametrize(
    ("mesh", "name"),
    [
        (dict(fsdp=2, tensor=2), "bert"),
        pytest.param(dict(fsdp=2, expert=2), "switch", marks=pytest.mark.slow),
        pytest.param(dict(fsdp=2, tensor=2), "t5", marks=pytest.mark.slow),
        pytest.param(dict(fsdp=2, tensor=2), "switch", marks=pytest.mark.slow),
        pytest.param(dict(fsdp=2, tensor=2), "classify", marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_are_equal_on_one_and_eight_devices(name, mesh):
    make, task, kind = CASES[name]
    model, batch = make(), batch_for(kind)
    variables = variables_of(model)
    step = jax.value_and_grad(loss_of(model, task, variables, train=False))
    want, grads = jax.jit(step)(variables["params"], batch)
    devices = sharding.make_mesh({"data": None} | mesh)
    placed, _ = sharding.param_shardings(devices, model.axes, variables["params"])
    where = (placed, sharding.batch_sharding(devices, 8))
    with jax.set_mesh(devices):
        got, others = jax.jit(step, in_shardings=where)(variables["params"], batch)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), grads, others)


@pytest.mark.parametrize("name", CASES)
def test_what_stands_at_padding_changes_nothing(name):
    make, task, kind = CASES[name]
    model, batch = make(), batch_for(kind)
    variables = variables_of(model)
    loss = jax.jit(loss_of(model, task, variables, train=False))
    padding = batch["segments"] == 0
    other = {
        n: jnp.where(padding, 5, batch[n]) for n in ("tokens", "inputs", "targets") if n in batch
    }
    assert loss(variables["params"], batch) == loss(variables["params"], batch | other)


def test_masked_predictions_are_those_of_all_logits():
    model, batch = bert.make(**BERT), batch_for("masked")
    variables = variables_of(model)
    logits, _ = model.apply(variables, batch["tokens"], batch["segments"])
    nll = -jax.nn.log_softmax(logits[..., :65])
    nll = jnp.take_along_axis(nll, batch["targets"][..., None], -1)[..., 0]
    (total, weight), _ = masked_lm.make(65, 4).loss(model, variables, batch, None, False)
    np.testing.assert_allclose(total, (nll * batch["weight"]).sum(), rtol=1e-5)
    assert weight == batch["weight"].sum()


@pytest.mark.core
@pytest.mark.parametrize(
    "shape", [T5, T5 | dict(mlp="geglu", tie_embeddings=False), SWITCH | dict(capacity=None)]
)
def test_cached_decoding_equals_the_whole_decoder(shape):
    model, batch = t5.make(**shape), batch_for("seq2seq")
    variables = variables_of(model)
    whole, _ = model.apply(variables, batch["inputs"], batch["tokens"], batch["input_segments"])
    memory, _ = model.apply(variables, batch["inputs"], batch["input_segments"], method="encode")
    cache, _ = model.apply(variables, 8, 16, memory, batch["input_segments"], method="empty_cache")
    step = jax.jit(lambda *inputs: model.apply(variables, *inputs, method="decode_step")[0])
    for t in range(16):
        positions = jnp.full((8, 1), t)
        hidden, cache = step(batch["tokens"][:, t : t + 1], positions, cache)
        logits, _ = model.apply(variables, hidden, method="logits")
        np.testing.assert_allclose(logits[:, 0, :65], whole[:, t, :65], atol=1e-4)


@pytest.mark.slow
def test_greedy_decoding_is_the_likeliest_continuation():
    model, batch = t5.make(**T5), batch_for("seq2seq")
    variables = variables_of(model)
    inputs = {n: batch[n] for n in ("inputs", "input_segments")}
    inputs |= dict(tokens=jnp.full((8, 1), 64), lengths=jnp.ones(8, int))
    keys = jax.random.split(jax.random.key(0), 8)
    found = decode(model, variables, inputs, keys, max_tokens=6, end=64, temperature=0.0)
    tokens = np.full((8, 1), 64)
    for _ in range(6):
        logits, _ = model.apply(variables, batch["inputs"], tokens, batch["input_segments"])
        tokens = np.append(tokens, np.asarray(logits)[:, -1:].argmax(-1), 1)
    for ours, row in zip(np.asarray(found), tokens[:, 1:], strict=True):
        length = next((i for i, t in enumerate(row) if t == 64), 6)
        np.testing.assert_array_equal(ours[:length], row[:length])
        assert (ours[length:] == 64).all()


def test_packed_pairs_do_not_see_each_other():
    model, batch = t5.make(**T5), batch_for("seq2seq")
    variables = variables_of(model)
    packed = jnp.array([[1] * 6 + [2] * 7 + [0] * 3])
    row = (batch["inputs"][:1], batch["tokens"][:1])
    whole, _ = model.apply(variables, *row, packed, packed)
    alone, _ = model.apply(variables, row[0][:, 6:13], row[1][:, 6:13])
    np.testing.assert_allclose(whole[0, 6:13, :65], alone[0, :, :65], atol=1e-5)


def test_a_window_beyond_the_text_sees_padding_as_nothing():
    model = text_cnn.make(**CNN)
    variables = variables_of(model)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 65)
    segments = jnp.ones((2, 12), int).at[:, 2:].set(0)  # shorter than the widest window
    logits, _ = model.apply(variables, tokens, segments)
    cut, _ = model.apply(variables, tokens[:, :7], segments[:, :7])
    np.testing.assert_allclose(logits, cut, atol=1e-6)
    assert jnp.abs(logits[0] - logits[1]).max() > 0


def test_f1_and_matthews_equal_their_definitions():
    confusion = np.array([[50.0, 10], [5, 35]])
    found = classify.report({"_confusion": (confusion, 100.0)}, {})
    tn, fp, fn, tp = confusion.ravel()
    f1 = (2 * tp / (2 * tp + fp + fn) + 2 * tn / (2 * tn + fp + fn)) / 2
    matthews = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    np.testing.assert_allclose([found["f1"], found["matthews"]], [f1, matthews])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bert.make(head="mlm"), "bert needs vocab_size and context"),
        (lambda: bert.make(**BERT, head="tag"), "needs labels"),
        (lambda: bert.make(**(BERT | dict(num_heads=5))), "does not divide into num_heads=5"),
        (lambda: t5.make(**(T5 | dict(buckets=6))), "expected buckets a multiple of 4"),
        (lambda: t5.make(**(SWITCH | dict(num_layers=3))), "a multiple of experts_every"),
        (lambda: masked_lm.make(), "masked_lm needs vocab_size and predictions"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_layers_that_take_turns_are_addressed_as_if_unrolled():
    scanned, plain = (t5.make(**SWITCH, scan=scan) for scan in (True, False))
    paths = []
    for model in (scanned, plain):
        params = jax.eval_shape(model.init, jax.random.key(0))["params"]
        leaves = tree.flatten(params).items()
        paths.append(
            sorted(name for path, leaf in leaves for name in tree.unrolled_paths(path, leaf))
        )
    assert paths[0] == paths[1]
    assert any(name.startswith("encoder/layers/3/moe/experts/2/") for name in paths[0])


def test_a_text_beyond_the_positions_is_refused():
    model = bert.make(**BERT)
    with pytest.raises(InputError, match="17 tokens do not fit the context of 16"):
        jax.eval_shape(model.apply, model.init(jax.random.key(0)), jnp.zeros((1, 17), int))
