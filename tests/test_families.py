"""Every family by its `:tiny` config: trains, is cut, goes on to the same bit, and answers."""

import jax
import numpy as np
import pytest

from research import build, tree
from research import config as config_lib
from research.arguments import InputError
from research.checkpoint import Checkpoints
from research.evaluate import evaluate, restore_weights
from research.export import export
from research.generate import generate
from research.init_from import fresh_state
from research.metrics import read
from research.train import train

# The config, a prompt, and the key of its answer.
FAMILIES = {
    "moe": ("gpt.py:tiny_moe", "import", "text"),
    "bert": ("bert.py:tiny", "imp[MASK]rt s[MASK]s", "candidates"),
    "next_sentence": ("bert.py:tiny_nsp", "imp[MASK]rt s[MASK]s", "candidates"),
    "t5": ("t5.py:tiny", "import sys", "text"),
    "switch": ("t5.py:tiny_switch", "import sys", "text"),
    "classes": ("sentiment.py:tiny", "import sys", "label"),
    "tags": ("tagging.py:tiny", "import sys", "tags"),
    "pairs": ("translation.py:tiny", "importsys", "text"),
    "items": ("recommend.py:tiny", "1 2 3", "items"),
}


SHORT = ("config.steps=6", "config.optim.lr.warmup=2", "config.log.every=1", "config.eval.every=6")
SHORT += ("config.checkpoint.every=3", "config.log.tensorboard=False")


def load(name, text):
    given = [*SHORT, "config.model.dropout=0.1", "config.eval.batch=64"]
    if name not in ("classes", "tags", "pairs", "items"):
        given += ["config.data.reader=files", f"config.data.path={text}"]
    return config_lib.load(f"configs/nlp/{FAMILIES[name][0]}", given)


def outcome(folder):
    """All arrays of the last checkpoint, and all numbers that the clock does not decide."""
    with Checkpoints(f"{folder}/checkpoints") as checkpoints:
        leaves = checkpoints.notes(6)["leaves"]
    lines = read(folder / "metrics.jsonl")
    return leaves, [{k: v for k, v in x.items() if not k.startswith("time/")} for x in lines]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_resumes_to_the_same_bit_and_answers(name, text, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(load(name, text), str(whole))
    for stop in (2, 5, None):
        train(load(name, text), str(cut), stop_after=stop)
    assert outcome(whole) == outcome(cut)
    assert np.isfinite(evaluate(str(whole))["loss"])
    _, prompt, key = FAMILIES[name]
    alone = list(generate(str(whole), [prompt], max_tokens=4, temperature=0.0))
    longer = prompt + (" 4" if name == "items" else " x")
    both = list(generate(str(whole), [prompt, longer], max_tokens=4, temperature=0.0))
    assert key in alone[0] and alone[0]["prompt"] == prompt
    if key in ("text", "label", "tags"):
        assert alone[0][key] == both[0][key]


@pytest.mark.slow
def test_adapters_resume_to_the_same_bit_and_are_exported_merged(text, tmp_path):
    given = ["config.data.reader=files", f"config.data.path={text}"]
    plain = config_lib.load("configs/nlp/gpt.py:tiny", given)
    spec = config_lib.load("configs/nlp/gpt.py:tiny", [*given, *SHORT, "config.lora.rank=2"])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(spec, str(whole))
    train(spec, str(cut), stop_after=2)
    train(spec, str(cut))
    assert outcome(whole) == outcome(cut)
    export(str(whole), str(tmp_path / "hf"))
    folder = config_lib.override(plain, [f"config.init_from=hf:{tmp_path / 'hf'}"])
    run, adapted = build.build(folder), build.build(spec)
    state = fresh_state(run, str(tmp_path / "new"))
    assert not any("lora" in path for path in tree.flatten(state.params))
    tokens = np.arange(128).reshape(8, 16)
    with jax.set_mesh(run.mesh):
        ours = run.model.apply(build.weights(state, "raw"), tokens)[0]
        variables, *_ = restore_weights(str(whole), adapted, "latest", None)
        theirs = adapted.model.apply(variables, tokens)[0]
    np.testing.assert_allclose(ours[..., :257], theirs[..., :257], atol=1e-5)


def test_a_prompt_that_an_answer_cannot_use_is_refused(text, tmp_path):
    train(load("bert", text), str(tmp_path / "bert"))
    with pytest.raises(InputError, match=r"has no \[MASK\] to fill"):
        list(generate(str(tmp_path / "bert"), ["import sys"]))
    with pytest.raises(InputError, match="and 32 have room"):
        list(generate(str(tmp_path / "bert"), ["[MASK]" + "x" * 40]))


@pytest.mark.parametrize(
    ("spec", "overrides", "message"),
    [
        ("bert.py:tiny", ["config.model.head=span"], "is not what task masked_lm reads: mlm"),
        ("sentiment.py:tiny", ["config.model.head=tag"], "is not what task classify reads"),
        ("t5.py:tiny", ["config.optim.chain=adam,layer_decay,lr"], "t5 has two; use multiply"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(spec, overrides, message):
    with pytest.raises(InputError, match=message):
        config_lib.load(f"configs/nlp/{spec}", overrides)
