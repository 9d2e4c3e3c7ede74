"""A mix: each source has its share of any number of examples, in its own order, without end."""

import itertools
import json
from fractions import Fraction

import jax
import numpy as np
import pytest

from research import build, config
from research.arguments import InputError
from research.data import mix
from research.data.order import mixed, turns, whole_shares
from research.evaluate import evaluate, evaluate_split
from research.train import train
from tests.faulty_runs import leaves, numbers

SIZES = dict(web=160, code=25, talk=6)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANNEAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """Documents of three sources, told apart by their first letter; sentences of two classes."""
    random = np.random.default_rng(0)
    for name, size in SIZES.items():
        (tmp_path / name).mkdir()
        for number in range(2 * size):
            words = "".join(random.choice(list("abc "), random.integers(20, 30)))
            (tmp_path / name / f"{number}.txt").write_text(f"{name[0]}{number} {words}")
    for name, classes in (("good", "01"), ("other", "01"), ("odd", "012")):
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            lines = [f"{name} {number}\t{classes[number % len(classes)]}\n" for number in range(9)]
            (tmp_path / name / f"{split}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
    return tmp_path


def make(folder, names=("web", "code", "talk"), weights=(0.5, 0.3, 0.2), split="train", **options):
    text = dict(name="text", reader="files", packing="none")
    given = {name: text | dict(path=str(folder / name)) for name in names}
    for key in [key for key in options if key in given]:
        given[key] = given[key] | options.pop(key)
    options = dict(tokenizer="bytes", context=40, seed=3, batch=8) | options
    return mix.make(names, weights, **options, split=split, **given)


def take(batches, count):
    return list(itertools.islice(batches, count))


def joined(batches):
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def sources_of(batch):
    """The letter that each row begins with; the token before it ends the document before."""
    return "".join(chr(letter) for letter in batch["targets"][:, 0])


SHARES = [(7, 3), (1, 1, 1), (1,), (1, 9999), (50, 30, 19, 1), (3, 1, 4, 1, 5, 9, 2, 6), (1,) * 23]


@pytest.mark.core
@pytest.mark.parametrize("shares", SHARES)
def test_any_number_of_turns_holds_each_share_to_within_one(shares):
    group_of, before = turns(shares)
    total = sum(shares)
    assert np.bincount(group_of).tolist() == list(shares)
    counts = np.cumsum(group_of[:, None] == np.arange(len(shares)), axis=0)
    ideal = np.arange(1, total + 1)[:, None] * np.array(shares)
    assert (np.abs(counts * total - ideal) < total).all()
    for group in range(len(shares)):
        assert before[group_of == group].tolist() == list(range(shares[group]))


@pytest.mark.core
def test_no_other_shares_miss_it_either():
    random = np.random.default_rng(0)
    for _ in range(40):
        shares = tuple((random.random(random.integers(2, 9)) ** 4 * 300 + 1).astype(int).tolist())
        group_of, _ = turns(shares)
        counts = np.cumsum(group_of[:, None] == np.arange(len(shares)), axis=0)
        ideal = np.arange(1, sum(shares) + 1)[:, None] * np.array(shares)
        assert (np.abs(counts * sum(shares) - ideal) < sum(shares)).all(), shares


def test_weights_become_whole_shares_of_the_same_ratio():
    assert whole_shares((0.7, 0.3)) == (7, 3)
    assert whole_shares((2, 2)) == (1, 1)
    assert whole_shares((0.1, 0.2, 0.30)) == (1, 2, 3)
    assert whole_shares((1e-4, 0.9999)) == (1, 9999)
    weights = (np.pi, np.e, 1e-3)
    shares = whole_shares(weights)
    assert sum(shares) <= 10_003
    for share, weight in zip(shares, weights, strict=True):
        exact = float(Fraction(weight) / sum(map(Fraction, weights)))
        assert abs(share / sum(shares) - exact) < 1e-4
    assert min(whole_shares((1e-9, 1.0))) == 1  # seldom is not never


@pytest.mark.core
def test_batches_hold_the_sources_by_their_weights(folder):
    drawn = "".join(map(sources_of, take(make(folder).batches(), 100)))
    assert [drawn.count(letter) for letter in "wct"] == [400, 240, 160]
    for count in range(1, 800):
        for letter, weight in zip("wct", (0.5, 0.3, 0.2), strict=True):
            assert abs(drawn[:count].count(letter) - weight * count) < 1
    even = "".join(map(sources_of, take(make(folder, weights=(1, 1, 1)).batches(), 30)))
    assert [even.count(letter) for letter in "wct"] == [80, 80, 80]


@pytest.mark.core
def test_a_small_source_repeats_in_another_order_while_a_large_one_goes_on(folder):
    source = make(folder)
    rows = joined(take(source.batches(), 100))
    drawn = np.array(list(sources_of(rows)))
    sizes = {name: held["examples"] for name, held in source.info["sources"].items()}
    for name, size in sizes.items():
        found = [tuple(row) for row in rows["targets"][drawn == name[0]]]
        epochs = [found[start : start + size] for start in range(0, len(found), size)]
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
        for epoch in epochs[1:-1]:
            assert set(epoch) == set(epochs[0]) and epoch != epochs[0]
        assert (len(epochs) > 3) == (name != "web")
    assert sizes["talk"] < 15 and sizes["web"] > 250


def test_sources_of_one_size_are_not_shuffled_alike():
    order = mixed((50, 50), (1, 1), 100, 3)
    index = np.array([order.place(0, row, False)[1] for row in range(100)])
    first, second = index[index < 50], index[index >= 50] - 50
    assert sorted(first) == sorted(second) == list(range(50))
    assert (first != second).sum() > 40


@pytest.mark.parametrize("options", [dict(), dict(objective="masked"), dict(objective="spans")])
def test_hosts_workers_and_seeking_do_not_change_a_mix(folder, options):
    each = {name: options for name in SIZES}
    plain, workers = make(folder, **each), make(folder, workers=2, **each)
    for one_pass in (False, True):
        expected = take(plain.batches(one_pass=one_pass), 40)[15:]
        parts = [take(plain.batches(15, (host, 2), one_pass), 25) for host in range(2)]
        other = take(workers.batches(15, one_pass=one_pass), 25)
        for want, left, right, made in zip(expected, *parts, other, strict=True):
            assert want.keys() == plain.spec.keys()
            for name, value in want.items():
                np.testing.assert_array_equal(np.concatenate([left[name], right[name]]), value)
                np.testing.assert_array_equal(made[name], value)


@pytest.mark.parametrize("packing", ["stream", "documents", "none"])
def test_one_pass_is_that_of_each_source_after_another(folder, packing):
    each = {name: dict(packing=packing) for name in SIZES}
    source = make(folder, split="validation", **each)
    found = list(source.batches())
    assert len(found) == source.num_batches == sum(source.parts.values())
    at = 0
    for name, count in source.parts.items():
        alone = make(folder, (name,), None, split="validation", **{name: dict(packing=packing)})
        for left, right in zip(found[at : at + count], alone.batches(), strict=True):
            for leaf, value in right.items():
                np.testing.assert_array_equal(left[leaf], value)
        at += count
    assert source.info["num_tokens"] == sum(batch["weight"].sum() for batch in found)


def test_one_tokenizer_is_learned_from_the_texts_of_all(folder, cache):
    (folder / "talk" / "1.txt").write_text("t snow ☃")
    everything = make(folder, tokenizer="characters", talk={}).tokenizer
    assert "☃" in everything.vocabulary and "w" in everything.vocabulary
    source = make(folder, tokenizer="bpe", vocab_size=280)
    again = make(folder, split="validation", tokenizer="bpe", vocab_size=280)
    assert source.tokenizer == again.tokenizer and source.info["vocab_size"] == 280
    assert (
        make(folder, ("web",), None, tokenizer="bpe", vocab_size=280).tokenizer != again.tokenizer
    )
    again.tokenizer.save(folder / "saved.json")
    one = make(folder, ("code",), None, tokenizer_path=str(folder / "saved.json"))
    assert one.tokenizer == source.tokenizer
    assert one.info["tokenizer_fingerprint"] == source.info["tokenizer_fingerprint"]


def test_what_a_mix_knows_adds_up_and_its_fingerprint_knows_the_weights(folder):
    source = make(folder)
    alone = [make(folder, (name,), None).info for name in SIZES]
    for key in ("num_tokens", "num_bytes", "num_documents"):
        assert source.info[key] == sum(info[key] for info in alone)
    assert json.loads(json.dumps(source.info)) == source.info
    assert [held["share"] for held in source.info["sources"].values()] == [0.5, 0.3, 0.2]
    prints = [make(folder, weights=weights).info["fingerprint"]
              for weights in ((5, 3, 2), (5, 3, 1), None)]  # fmt: skip
    assert prints[0] == source.info["fingerprint"] and len(set(prints)) == 3
    (folder / "talk" / "1.txt").write_text("t another")
    assert make(folder).info["fingerprint"] != source.info["fingerprint"]


@pytest.mark.parametrize(("temperature", "power"), [(1.0, 1.0), (2.0, 0.5), (1e6, 0.0)])
def test_without_weights_a_share_is_the_size_to_the_power_of_one_over_the_temperature(
    folder, temperature, power
):
    held = make(folder, weights=None, temperature=temperature).info["sources"]
    sizes = np.array([one["examples"] for one in held.values()], float)
    wanted = sizes**power / (sizes**power).sum()
    np.testing.assert_allclose([one["share"] for one in held.values()], wanted, atol=1e-4)


def test_sentences_mix_where_their_classes_are_the_same(folder):
    def sentences(*names, **options):
        given = {name: dict(name="sentences", path=str(folder / name)) for name in names}
        supplied = dict(split="train", seed=0, batch=4)
        return mix.make(names, tokenizer="bytes", context=16, **supplied, **given, **options)

    source = sentences("good", "other")
    first = [chr(token) for token in joined(take(source.batches(), 9))["tokens"][:, 1]]
    assert first.count("g") == first.count("o") == 18
    assert source.info["classes"] == ["0", "1"]
    with pytest.raises(InputError, match="config.data.odd: labels=3, but good has 2; .* agree"):
        sentences("good", "odd")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(weights=(1, 2)), "weights=.1, 2. are 2, config.data.names=.* 3; give one for each"),
        (dict(weights=(1, 2, 0)), "talk has 0, expected a number above 0; leave a source"),
        (dict(weights=(1, -2.0, 1)), "code has -2.0, expected a number above 0"),
        (dict(weights=(1, "x", 1)), "code has 'x', expected a number"),
        (dict(weights=(1, True, 1)), "code has True, expected a number"),
        (dict(names=(), weights=None), "names is empty"),
        (dict(names=("web", "web"), weights=None), "'web' is taken"),
        (dict(names=("web", "cache"), weights=None), "'cache' is taken"),
        (dict(code=dict(context=8)), "code.context is the same for all; set config.data.context"),
        (dict(code=dict(tokenizer="bpe")), "code.tokenizer is the same for all"),
        (dict(code=dict(packing="stream")), "config.data.code: segments of an example is None, of"),
        (dict(talk=dict(objective="spans")), "config.data.talk: tokens of an example is"),
        (dict(talk=dict(objective="masked")), "config.data.talk: vocab_size=259, but web has 257"),
        (dict(talk=dict(buckets=(8, 40))), "talk.buckets: rows of a mix are of one width"),
        (dict(talk=dict(name="mix")), "data.talk.name=mix is one of several itself"),
        (dict(talk=dict(paht="x")), "talk.paht is not known; did you mean 'path'"),
        (dict(web=dict(name="questions", stride=4)), "web.reader is not known"),
    ],
)
def test_what_does_not_go_together_is_refused(folder, options, message):
    with pytest.raises(InputError, match=message) as error:
        make(folder, **options)
    assert "\n" not in str(error.value)


def test_a_source_whose_examples_do_not_stand_alone_is_refused(folder):
    asked = [dict(id="q", question="who", answers=[dict(text="she", answer_start=0)])]
    quiz = dict(data=[dict(paragraphs=[dict(context="she and he", qas=asked)])])
    (folder / "train.json").write_text(json.dumps(quiz))
    about = dict(name="questions", path=str(folder), stride=4, max_question=8)
    given = dict(split="train", seed=0, batch=4, context=32, about=about)
    with pytest.raises(InputError, match="config.data.about: no example of it stands alone"):
        mix.make(("about",), tokenizer="bytes", **given)
    with pytest.raises(InputError, match="about: questions does not say what its texts are; set"):
        mix.make(("about",), tokenizer="characters", **given)


def load(folder, *more):
    values = {
        "data.name": "mix", "data.names": "web,code", "data.weights": "(0.7, 0.3)",
        "data.tokenizer": "bytes", "data.context": 32, "batch": 8, "eval.batch": 8, "steps": 6,
        "log.every": 1, "log.tensorboard": False, "checkpoint.every": 3, "eval.every": 3,
        "model.num_layers": 1,
    }  # fmt: skip
    for name in ("web", "code"):
        values |= {f"data.{name}.name": "text", f"data.{name}.reader": "files"}
        values |= {f"data.{name}.path": folder / name}
    tiny = config.load("configs/nlp/gpt.py:tiny").to_dict()
    tiny["data"] = {}
    overrides = [f"config.{key}={value}" for key, value in values.items()]
    return config.override(build.ml_collections.ConfigDict(tiny), [*overrides, *more])


@pytest.mark.core
def test_a_config_of_a_mix_is_complete_and_can_be_overridden(folder):
    given = load(folder, "config.data.web.packing=documents", "config.data.code.skip_budget=2")
    assert given.data.web.packing == "documents" and given.data.code.skip_budget == 2
    assert given.data.code.field == "text"  # a default of the signature
    assert "context" not in given.data.web and given.data.context == 32
    assert config.from_json(config.to_json(given)).to_dict() == given.to_dict()
    fewer = load(folder, "config.data.names=web", "config.data.weights=None")
    assert fewer.data.names == ("web",) and "code" not in fewer.data
    assert not config.drift(given, load(folder, "config.data.web.packing=documents",
        "config.data.code.skip_budget=2", "config.data.workers=3"))  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("config.data.web.paht=x", "config.data.web.paht is not known; did you mean 'path'"),
        ("config.data.web.packing=some", "config.data.web.packing='some' is not an option"),
        ("config.data.cod.path=x", "config.data.cod is not in config.data.names=.'web', 'code'.;"),
        ("config.data.names=web,code,talk", "config.data.talk.name is missing"),
        ("config.data.web.name=txet", "'txet' is not in research/data; did you mean 'text'"),
        ("config.data.web.workers=2", "web.workers is the same for all; set config.data.workers"),
        ("config.data.web.split=test", "config.data.web.split is not known"),
        ("config.data.wieghts=1", "config.data.wieghts is not known; did you mean 'weights'"),
        ("config.data.temperature=0.5", "temperature=0.5 is out of range; expected at least 1"),
        ("config.data.web=5", "config.data.web=.*expected dict"),
    ],
)
def test_a_wrong_key_of_a_mix_is_named(folder, override, message):
    with pytest.raises(InputError, match=message):
        load(folder, override)


def test_evaluation_gives_the_loss_of_each_source(folder):
    given = load(folder)
    run = build.build(given, jax.devices()[:1])
    variables, eval_step = build.weights(build.init(run), "raw"), jax.jit(run.eval_step)
    found = {}
    with jax.set_mesh(run.mesh):
        for names in ("web,code", "web", "code"):
            one = load(folder, f"config.data.names={names}", "config.data.weights=None")
            source = build.make_source(one, "validation")
            found[names] = evaluate_split(run, eval_step, variables, source)
    for name in ("web", "code"):
        assert (
            found["web,code"][f"loss/{name}"] == found[name]["loss"] == found[name][f"loss/{name}"]
        )
    assert found["web"]["loss"] != found["code"]["loss"]
    low, high = sorted((found["web"]["loss"], found["code"]["loss"]))
    assert low < found["web,code"]["loss"] < high


@pytest.mark.slow
def test_a_run_over_a_mix_resumes_to_the_bit_and_its_sources_can_be_evaluated(folder, tmp_path):
    given = load(folder, "config.checkpoint.best=loss/code")
    train(given, str(tmp_path / "whole"))
    train(given, str(tmp_path / "cut"), stop_after=2)
    train(given, str(tmp_path / "cut"))
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "cut")
    assert leaves(tmp_path / "whole", 6) == leaves(tmp_path / "cut", 6)
    last = numbers(tmp_path / "whole")[-1]
    one = ("config.data.names=code", "config.data.weights=None")
    assert evaluate(str(tmp_path / "whole"), overrides=one)["loss"] == last["loss/code"]
