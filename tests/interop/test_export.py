"""anneal export: the folder, its tokenizer, and what it refuses."""

import json

import jax
import numpy as np
import pytest
import tokenizers as package

from research import build, interop, resume, workdir
from research import config as config_lib
from research.__main__ import main
from research.arguments import InputError
from research.checkpoint import Checkpoints
from research.data import tokenizer as tokenizer_lib
from research.export import export
from research.generate import generate
from research.train import train

TEXTS = ["the cat sat on a mat and ran far away\n", "hello world"] * 20


def config(text, *overrides):
    values = [
        "config.data.reader=files",
        f"config.data.path={text}",
        "config.data.tokenizer=bpe",
        "config.data.vocab_size=280",
        "config.eval.batch=64",
        "config.steps=1",
        "config.optim.lr.warmup=0",
        "config.log.tensorboard=False",
    ]
    return config_lib.load("configs/nlp/gpt.py:tiny", [*values, *overrides])


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    """A workdir of a GPT-2 with one checkpoint and a bpe tokenizer."""
    path = tmp_path_factory.mktemp("run") / "run"
    made = build.build(config(text, "config.ema=0.5"))
    state = build.init(made)
    shift = lambda x: jax.device_put(x + 1, x.sharding)  # noqa: E731
    state = state._replace(ema=jax.tree.map(shift, state.ema))
    with Checkpoints(path / "checkpoints") as checkpoints:
        checkpoints.save(2, state, extra=resume.notes(made))
    workdir.write_config(workdir.epath.Path(path), made.config, made.source.tokenizer)
    return path, jax.device_get(state)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setattr("research.__main__._keep_compilations", lambda: None)


def test_the_folder_has_the_files_that_transformers_expects(run, tmp_path, capsys):
    path, state = run
    out = tmp_path / "hf"
    assert main(["export", f"--workdir={path}", f"--output={out}"]) == 0
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    said = capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == names and all(name in said for name in names)
    written = json.loads((out / "config.json").read_text())
    assert written["architectures"] == ["GPT2LMHeadModel"] and written["model_type"] == "gpt2"
    assert written["vocab_size"] == 280 and written["eos_token_id"] == 279
    weights = interop.load(str(out))  # of the average, which the run is judged by
    np.testing.assert_array_equal(weights.read("embed")[:280], state.ema["params"]["embed"][:280])
    assert not weights.read("embed")[280:].any()
    raw = tmp_path / "raw"
    assert main(["export", f"--workdir={path}", f"--output={raw}", "--weights=raw", "--step=2",
                 "--dtype=bf16"]) == 0  # fmt: skip
    ours = interop.load(str(raw)).read("positions")
    assert (ours != state.params["positions"]).any()
    np.testing.assert_allclose(ours, state.params["positions"], rtol=2**-8)


def test_an_exported_tokenizer_comes_back_with_the_same_ids_and_end(run, tmp_path):
    export(str(run[0]), str(tmp_path / "hf"))
    ours = tokenizer_lib.load(run[0] / "tokenizer.json")
    back = tokenizer_lib.load(tmp_path / "hf" / "tokenizer.json")
    assert (back.kind, back.end, back.vocab_size) == ("package", ours.end, ours.vocab_size)
    for one, two in zip(ours.encode(TEXTS), back.encode(TEXTS), strict=True):
        np.testing.assert_array_equal(one, two)
        assert back.decode([back.end, *two, back.end]) == ours.decode(one)
    assert back.end not in back.encode(["<|endoftext|>"])[0]
    theirs = package.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    assert theirs.token_to_id("<|endoftext|>") == ours.end


def test_a_folder_is_trained_on_and_generates_with_its_own_tokenizer(run, text, tmp_path):
    hf = tmp_path / "hf"
    export(str(run[0]), str(hf))
    options = (f"config.init_from=hf:{hf}", f"config.data.tokenizer_path={hf / 'tokenizer.json'}")
    train(config(text, *options), str(tmp_path / "run"))
    (result,) = generate(str(tmp_path / "run"), ["the cat"], max_tokens=3)
    assert result["tokens"] <= 3
    export(str(tmp_path / "run"), str(tmp_path / "again"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_text() == (hf / name).read_text()
    smaller = config(text, *options, "config.model.vocab_size=270")
    with pytest.raises(InputError, match="vocab_size=270 is less than the data's 280"):
        train(smaller, str(tmp_path / "no"))


def test_a_folder_that_holds_something_is_left_alone(run, tmp_path, capsys):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").write_text("precious")
    assert main(["export", f"--workdir={run[0]}", f"--output={tmp_path / 'hf'}"]) == 2
    assert "name a new folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob("*")] == ["hf", "mine"]
    assert main(["export", f"--workdir={tmp_path}", f"--output={tmp_path / 'out'}"]) == 2


@pytest.mark.parametrize("model", ["bert", "t5"])
def test_special_ids_have_names_in_the_exported_tokenizer(model, tmp_path):
    from research.export import _tokenizer_files

    ours = tokenizer_lib.train("bpe", TEXTS, 300)
    shape = dict(name=model, vocab_size=ours.vocab_size + 2)
    for name, content in _tokenizer_files(ours, shape).items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    back = tokenizer_lib.load(tmp_path / "tokenizer.json")
    special = (back.mask, back.first) if model == "bert" else back.sentinels(2)
    assert list(special) == [ours.vocab_size, ours.vocab_size + 1]
    assert back.vocab_size == ours.vocab_size + 2 and back.end == ours.end
    np.testing.assert_array_equal(back.encode(TEXTS)[0], ours.encode(TEXTS)[0])


@pytest.fixture
def llama_like(tmp_path):
    """A tokenizer that begins and ends texts, cuts and pads them, as published ones do."""
    made = package.Tokenizer(package.models.BPE())
    level = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer, made.decoder = level, package.decoders.ByteLevel()
    trainer = package.trainers.BpeTrainer(
        special_tokens=["<s>", "</s>"], initial_alphabet=sorted(level.alphabet()), vocab_size=270
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = package.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    made.enable_truncation(4)
    made.enable_padding(length=16)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def describe(path, **files):
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return tokenizer_lib.load(path / "tokenizer.json")


@pytest.mark.parametrize(
    "files",
    [
        dict(tokenizer_config={"eos_token": "</s>"}),
        dict(tokenizer_config={"eos_token": {"content": "</s>"}}, config={"eos_token_id": 7}),
        dict(generation_config={"eos_token_id": [1, 0]}),
        dict(config={"eos_token_id": 1}, tokenizer_config={"eos_token": None}),
        dict(tokenizer_config={"sep_token": "</s>"}),
    ],
)
def test_the_end_of_a_text_is_found_in_the_folder(files, llama_like):
    assert describe(llama_like, **files).end == 1


def test_a_foreign_tokenizer_neither_cuts_nor_pads_and_ends_no_text_itself(llama_like, tmp_path):
    tokenizer = describe(llama_like, config={"eos_token_id": 1})
    text = "the cat sat on a mat</s> far away"
    (ids,) = tokenizer.encode([text])
    assert ids[0] == 0 and 1 not in ids and tokenizer.decode(ids) == f"<s>{text}"
    assert tokenizer.vocab_size == 270
    tokenizer.save(tmp_path / "ours.json")
    back = tokenizer_lib.load(tmp_path / "ours.json")
    assert back == tokenizer and back.fingerprint == tokenizer.fingerprint
    assert back.fingerprint != back._replace(end_id=0).fingerprint


@pytest.mark.parametrize(
    "files,reason",
    [
        ({}, "no file beside it names the token that ends a text"),
        (dict(tokenizer_config={"eos_token": "<eot>"}), "said to be None"),
        (dict(config={"eos_token_id": 300}), "said to be 300, which is none of its 270 ids"),
    ],
)
def test_a_tokenizer_without_a_known_end_is_refused(files, reason, llama_like):
    with pytest.raises(InputError, match=reason):
        describe(llama_like, **files)


def test_a_damaged_tokenizer_is_one_line(llama_like):
    path = llama_like / "tokenizer.json"
    path.write_text(path.read_text().replace('"BPE"', '"Nothing"'))
    with pytest.raises(InputError, match="is not a saved tokenizer"):
        describe(llama_like, config={"eos_token_id": 1})
