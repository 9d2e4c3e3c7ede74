"""Batches of one width each: every row as often as the others, the same sums, few shapes."""

import itertools

import jax
import numpy as np
import pytest

from research import build, config
from research.arguments import InputError
from research.data import pairs, sentences, text
from research.data.order import by_length
from research.evaluate import evaluate_split
from research.train import train
from tests.faulty_runs import leaves, numbers

BUCKETS = (8, 16, 40)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANNEAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Documents of 0 to 35 bytes, most of them short; lines of two languages; sentences."""
    random = np.random.default_rng(0)
    sizes = (35 * random.random(300) ** 2).astype(int)
    for kind in ("texts", "sentences", "pairs"):
        (tmp_path / kind).mkdir()
    lines = []
    for number, size in enumerate(sizes):
        words = f"{number} " + "".join(random.choice(list("abcdef "), size))
        (tmp_path / "texts" / f"{number:03}.txt").write_text(words)
        lines.append(words)
    for split, kept in (("train", lines[:250]), ("validation", lines[250:])):
        (tmp_path / "sentences" / f"{split}.tsv").write_text(
            "sentence\tlabel\n" + "".join(f"{one}\t{len(one) % 2}\n" for one in kept)
        )
        (tmp_path / "pairs" / f"{split}.en").write_text("".join(f"{one}\n" for one in kept))
        (tmp_path / "pairs" / f"{split}.de").write_text(
            "".join(f"{(one + one[-3:])[-37:][n % 5 :]}\n" for n, one in enumerate(kept))
        )
    return tmp_path


def make(kind, folder, split="train", buckets=BUCKETS, context=40, **options):
    options = dict(tokenizer="bytes", context=context, buckets=buckets) | options
    supplied = dict(split=split, seed=3, batch=4)
    if kind in ("next", "masked", "spans"):
        options = dict(reader="files", packing="none", objective=kind) | options
        return text.make(path=str(folder / "texts"), **options, **supplied)
    if kind == "pairs":
        options = dict(source="en", target="de") | options
    return dict(sentences=sentences, pairs=pairs)[kind].make(
        str(folder / kind), **options, **supplied
    )


KINDS = ("next", "masked", "spans", "sentences", "pairs")


def take(batches, count):
    return list(itertools.islice(batches, count))


def row_of(batch, number):
    """What a row holds, however wide it is."""
    kept = {name: np.trim_zeros(np.atleast_1d(x[number]), "b") for name, x in batch.items()}
    return tuple((name, tuple(kept[name].tolist())) for name in sorted(kept))


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
def test_buckets_change_no_row(kind, folder):
    found = []
    for buckets in ((), BUCKETS):
        source = make(kind, folder, "validation", buckets)
        batches = list(source.batches())
        assert len(batches) == source.num_batches
        rows = [row_of(batch, number) for batch in batches for number in range(4)]
        found.append(sorted(row for row in rows if any(values for _, values in row)))
    assert found[0] == found[1] and len(found[0]) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_every_batch_has_one_of_the_forms_that_the_source_names(kind, folder):
    source = make(kind, folder)
    forms = [{k: (v.shape, v.dtype) for k, v in spec.items()}
             for spec in (*source.narrower, source.spec)]  # fmt: skip
    batches = take(source.batches(), 60) + list(source.batches(one_pass=True))
    met = [{k: (v.shape, v.dtype) for k, v in batch.items()} for batch in batches]
    assert [form for form in forms if form in met] == forms and len(forms) == 3
    assert all(one in forms for one in met)


@pytest.mark.parametrize("kind", ["next", "sentences", "pairs"])
@pytest.mark.parametrize("one_pass", [False, True])
def test_a_row_stands_in_the_narrowest_bucket_that_holds_it(kind, one_pass, folder):
    for batch in take(make(kind, folder).batches(one_pass=one_pass), 60):
        sides = [batch["segments"], batch.get("input_segments", batch["segments"])]
        longest = np.maximum(*(side.sum(1) for side in sides))
        width = BUCKETS.index(batch["tokens"].shape[1])
        below = (0, *BUCKETS)[width]
        # Padding stands in batches of a pass only, behind the last row.
        kept = len(np.trim_zeros(longest, "b"))
        assert (longest[:kept] > below).all() and (longest[:kept] <= BUCKETS[width]).all()
        assert kept == 4 or one_pass


def test_buckets_fill_fewer_places_with_padding(folder):
    shares = []
    for buckets in ((), BUCKETS):
        batches = list(make("next", folder, buckets=buckets).batches(one_pass=True))
        kept, places = (sum(f(b["segments"]) for b in batches) for f in (np.sum, np.size))
        shares.append(1 - kept / places)
    assert shares[1] < 0.6 * shares[0]


@pytest.mark.core
def test_every_row_comes_as_often_as_any_other_and_what_fills_no_batch_waits():
    lengths = np.random.default_rng(1).integers(1, 41, 37)
    batch = 4
    order = by_length(lengths, 40, BUCKETS, batch, seed=5)
    of = np.searchsorted(BUCKETS, lengths)
    waiting, step, seen = [[], [], []], 0, np.zeros(37, int)
    drawn = [[], [], []]
    for epoch in range(3 * batch):
        # A second account of it: rows of an epoch join what waits, batches leave.
        for bucket in range(3):
            waiting[bucket] += np.flatnonzero(of == bucket).tolist()
        left = [len(rows) // batch for rows in waiting]
        for bucket in range(3):
            waiting[bucket] = waiting[bucket][left[bucket] * batch :]
        for _ in range(sum(left)):
            left[order.bucket(step, False)] -= 1
            for row in range(batch):
                turn, index = order.place(step, row, False)
                assert turn <= epoch and of[index] == order.bucket(step, False)
                seen[index] += 1
            step += 1
        assert left == [0, 0, 0]
        if (epoch + 1) % batch == 0:  # then nothing waits
            assert (seen == epoch + 1).all()
    # Within a bucket: epochs, each in an order of its own.
    for number in range(step):
        bucket = order.bucket(number, False)
        drawn[bucket] += [(number, *order.place(number, row, False)) for row in range(batch)]
    for bucket in range(3):
        of_epoch = {}
        for _, epoch, index in drawn[bucket]:
            of_epoch.setdefault(epoch, []).append(index)
        assert len({tuple(rows) for rows in of_epoch.values()}) > 8
        for rows in of_epoch.values():
            assert sorted(rows) == np.flatnonzero(of == bucket).tolist()


def test_batches_of_an_epoch_come_in_an_order_of_its_own():
    order = by_length(np.repeat([8, 16, 40], 40), 40, BUCKETS, 4, seed=5)
    first, second = ([order.bucket(30 * epoch + step, False) for step in range(30)]
                     for epoch in range(2))  # fmt: skip
    assert sorted(first) == sorted(second) and first != second
    assert first != sorted(first)


def test_a_bucket_without_rows_and_less_than_a_batch_of_rows_are_no_trouble():
    order = by_length(np.array([40, 39, 1]), 40, BUCKETS, 4, seed=0)
    assert order.num_batches == 2
    steps = [(order.bucket(s, False), [order.place(s, r, False)[1] for r in range(4)])
             for s in range(30)]  # fmt: skip
    assert [bucket for bucket, _ in steps].count(2) == 20
    assert all(set(rows) == ({0, 1} if bucket else {2}) for bucket, rows in steps)


@pytest.mark.parametrize("kind", ["masked", "pairs"])
def test_hosts_workers_and_seeking_do_not_change_bucketed_batches(kind, folder):
    source, workers = make(kind, folder), make(kind, folder, workers=2)
    for one_pass in (False, True):
        expected = take(source.batches(one_pass=one_pass), 30)
        later = slice(9, 30)
        parts = [take(source.batches(9, (host, 2), one_pass), 21) for host in range(2)]
        other = take(workers.batches(9, one_pass=one_pass), 21)
        for want, left, right, made in zip(expected[later], *parts, other, strict=True):
            for name, value in want.items():
                np.testing.assert_array_equal(np.concatenate([left[name], right[name]]), value)
                np.testing.assert_array_equal(made[name], value)


def test_rows_names_the_examples_of_a_bucketed_batch(folder):
    source = make("next", folder)
    everything = np.concatenate(
        [np.pad(b["tokens"], ((0, 0), (0, 40 - b["tokens"].shape[1])))
         for b in make("next", folder, buckets=()).batches(one_pass=True)]
    )  # fmt: skip
    for step, batch in enumerate(take(source.batches(), 20)):
        width = batch["tokens"].shape[1]
        np.testing.assert_array_equal(everything[source.rows(step), :width], batch["tokens"])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("next", dict(buckets=(8, 16)), r"buckets=\(8, 16\) must .* rise to the context of 40"),
        ("next", dict(buckets=(16, 8, 40)), "must be lengths that rise"),
        ("next", dict(buckets=(8, 8, 40)), "must be lengths that rise"),
        ("sentences", dict(buckets=(0, 40)), "must be lengths that rise"),
        ("sentences", dict(buckets=("8", 40)), "must be lengths that rise"),
        ("pairs", dict(buckets=(8.5, 40)), "must be lengths that rise"),
        ("next", dict(packing="stream"), "need packing=none, not stream"),
        ("pairs", dict(target_context=20), "target_context=20: with buckets both"),
    ],
)
def test_buckets_that_cannot_be_are_refused(kind, options, message, folder):
    with pytest.raises(InputError, match=message):
        make(kind, folder, **options)


@pytest.mark.parametrize(
    ("kind", "file", "place", "length"),
    [
        ("next", "texts/000.txt", "texts/000.txt", 51),
        ("sentences", "sentences/train.tsv", "train.tsv:2", 52),
        ("pairs", "pairs/train.en", "pairs/train:1", 51),
        ("pairs", "pairs/train.de", "pairs/train:1", 51),
    ],
)
def test_a_text_longer_than_any_bucket_is_named_with_its_length(kind, file, place, length, folder):
    first, tab, rest = (folder / file).read_text().partition("\t" if kind == "sentences" else "\n")
    first = "x" * 50 if kind != "sentences" else "sentence"
    if kind == "sentences":
        rest = "label\n" + "x" * 50 + "\t0\n" + rest.split("\n", 2)[2]
    (folder / file).write_text(first + tab + rest)
    message = f"{place} has {length} tokens, and 40 have room; .*cut=True"
    with pytest.raises(InputError, match=message):
        make(kind, folder)
    with pytest.raises(InputError, match=message):  # also without buckets, if it is said
        make(kind, folder, buckets=(), cut=False)
    widest = max(b["tokens"].shape[1] for b in make(kind, folder, cut=True).batches(one_pass=True))
    assert widest == 40
    make(kind, folder, buckets=())
    make(kind, folder, buckets=(8, length), context=length)
    with pytest.raises(InputError, match=f"and {length - 1} have room"):
        make(kind, folder, buckets=(8, length - 1), context=length - 1)


def load(folder, *more):
    values = {
        "data.reader": "files", "data.path": folder / "texts", "data.tokenizer": "bytes",
        "data.context": 40, "data.packing": "none", "batch": 8, "model.num_layers": 1,
        "eval.batch": 8, "steps": 8, "log.every": 1,
        "log.tensorboard": False, "checkpoint.every": 4, "eval.every": 4,
    }  # fmt: skip
    overrides = [f"config.{key}={value}" for key, value in values.items()]
    return config.load("configs/nlp/gpt.py:tiny", [*overrides, *more])


def test_a_step_compiles_once_a_bucket_and_an_evaluation_gives_the_same_loss(folder):
    run = build.build(load(folder, "config.data.buckets=(16, 40)"), jax.devices()[:1])
    variables = build.weights(build.init(run), "raw")
    losses = []
    with jax.set_mesh(run.mesh):
        step, state = build.jit_train_step(run), build.init(run)
        widths = set()
        for batch in itertools.islice(build.batches(run, run.source), 25):
            state, metrics = step(state, batch)
            widths.add(batch["tokens"].shape[1])
        assert widths == {16, 40} and step._cache_size() == 2
        assert np.isfinite(metrics["loss"])
        for buckets in ("(16, 40)", "()"):
            source = build.make_source(load(folder, f"config.data.buckets={buckets}"), "train")
            eval_step = jax.jit(lambda *x: run.eval_step(*x))
            losses.append(evaluate_split(run, eval_step, variables, source))
            assert eval_step._cache_size() == (2 if buckets != "()" else 1)
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        np.testing.assert_allclose(value, losses[1][name], rtol=1e-6)


def test_masks_count_the_same_in_a_bucket_narrower_than_their_number(folder):
    values = {
        "data.reader": "files", "data.path": folder / "texts", "data.packing": "none",
        "data.context": 40, "data.mask_rate": 0.5, "model.num_layers": 1,
    }  # fmt: skip
    values = [f"config.{key}={value}" for key, value in values.items()]
    tiny = "configs/nlp/bert.py:tiny"
    bucketed = config.load(tiny, [*values, "config.data.buckets=(12, 40)"])
    run = build.build(bucketed, jax.devices()[:1])
    assert run.config.task.predictions == 20  # of a row of 40
    variables, losses = build.weights(build.init(run), "raw"), []
    with jax.set_mesh(run.mesh):
        for given in (bucketed, config.load(tiny, values)):
            source = build.make_source(given, "train")
            found = evaluate_split(run, jax.jit(run.eval_step), variables, source)
            losses.append(found["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.slow
def test_a_run_over_buckets_resumes_to_the_bit(folder, tmp_path):
    given = load(folder, "config.data.buckets=(8, 16, 40)")
    train(given, str(tmp_path / "whole"))
    train(given, str(tmp_path / "cut"), stop_after=3)
    train(given, str(tmp_path / "cut"))
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "cut")
    assert leaves(tmp_path / "whole", 8) == leaves(tmp_path / "cut", 8)
