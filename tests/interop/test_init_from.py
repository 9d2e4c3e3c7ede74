"""A run that begins with parameters from elsewhere: what is taken, left, said and refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from research import build, evaluate, export, init_from, interop, resume, tree, workdir
from research import config as config_lib
from research.arguments import InputError
from research.checkpoint import Checkpoints
from research.checksum import checksums
from research.data import tokenizer as tokenizer_lib
from research.train import train
from tests.interop.small import folder

# The model of the frozen Llama, on text as bytes.
LLAMA = (
    "config.model.width=32", "config.model.num_heads=4", "config.model.num_kv_heads=2",
    "config.model.mlp_width=48", "config.model.norm=rmsnorm", "config.model.norm_epsilon=1e-6",
    "config.model.positions=rotary", "config.model.mlp=swiglu", "config.model.bias=False",
    "config.model.tie_embeddings=False", "config.model.num_layers=2",
)  # fmt: skip


def load(text, *overrides, llama=True):
    return config_lib.load(
        "configs/nlp/gpt.py:tiny",
        [
            "config.data.reader=files",
            f"config.data.path={text}",
            "config.data.tokenizer=bytes",
            "config.steps=2",
            "config.optim.lr.warmup=1",
            "config.eval.batch=64",
            "config.log.tensorboard=False",
            *(LLAMA if llama else ()),
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "llama"
    return path, *folder(path, "llama", vocab_size=257)


def state_of(config, path):
    run = build.build(config)
    state = init_from.fresh_state(run, str(path))
    checksums(state)  # refuses devices that disagree
    return run, state, json.loads((path / "init_from.json").read_text())


def one_layer_paths(params):
    read = export.reader(params)
    return {name: read(name) for name in export.shapes_of(params)}


def equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.core
@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("mesh", [(), ("config.mesh.fsdp=2", "config.mesh.tensor=2")])
def test_every_parameter_is_taken_on_any_mesh(scan, mesh, hf, text, tmp_path, capsys):
    path, _, params = hf
    config = load(text, f"config.init_from=hf:{path}", f"config.model.scan={scan}", *mesh)
    run, state, report = state_of(config, tmp_path)
    equal(one_layer_paths(state.params), one_layer_paths(params))
    wanted = jax.tree.map(lambda leaf: leaf.sharding, run.abstract.params)
    assert jax.tree.map(lambda leaf: leaf.sharding, state.params) == wanted
    assert set(report["parameters"]) == set(export.shapes_of(params))
    assert all(kind == "loaded" for kind, _ in report["parameters"].values())
    assert report["unused"] == [] and report["from"] == f"hf:{path}" and report["notes"] == []
    said = capsys.readouterr().out
    assert "21 loaded, 0 skipped, 0 fresh" in said
    assert all(f"{name}  " in said for name in tree.flatten(state.params))


def test_the_average_and_the_optimizer_begin_with_what_was_loaded(hf, text, tmp_path):
    config = load(text, f"config.init_from=hf:{hf[0]}", "config.ema=0.9")
    _, state, _ = state_of(config, tmp_path)
    equal(one_layer_paths(state.ema["params"]), one_layer_paths(hf[2]))
    assert int(state.step) == 0


def test_a_frozen_part_is_loaded_too(hf, text, tmp_path):
    freeze = "config.freeze=('embed$', 'attention/')"
    _, state, _ = state_of(load(text, f"config.init_from=hf:{hf[0]}", freeze), tmp_path)
    assert "embed" in state.frozen["params"] and "embed" not in state.params
    whole = tree.merge(state.params, state.frozen["params"])
    equal(one_layer_paths(whole), one_layer_paths(hf[2]))


def test_rules_skip_rename_and_are_ordered(hf, text, tmp_path, capsys):
    rules = (
        (r"layers/1/mlp/up$", "layers/1/mlp/gate"),
        (r"layers/(\d)/mlp", "skip"),
        (r"layers/0/norm1", r"layers/1/norm2"),
        (r"^head$", "skip"),
    )
    config = load(
        text, f"config.init_from=hf:{hf[0]}", f"config.init_rules={rules[:2] + rules[3:]}"
    )
    _, state, report = state_of(config, tmp_path)
    run = build.build(load(text))
    fresh = one_layer_paths(build.init(run).params)
    ours, theirs = one_layer_paths(state.params), one_layer_paths(hf[2])
    np.testing.assert_array_equal(ours["layers/1/mlp/up"], theirs["layers/1/mlp/gate"])
    np.testing.assert_array_equal(ours["layers/0/mlp/up"], fresh["layers/0/mlp/up"])
    np.testing.assert_array_equal(ours["head"], fresh["head"])
    np.testing.assert_array_equal(ours["layers/0/attention/q"], theirs["layers/0/attention/q"])
    assert report["parameters"]["layers/1/mlp/up"] == ["loaded", "layers/1/mlp/gate"]
    assert report["parameters"]["layers/1/mlp/gate"] == ["skipped", None]
    assert "head" in report["unused"] and "layers/1/mlp/gate" not in report["unused"]
    said = capsys.readouterr().out
    assert "layers/mlp/up" in said and "skipped (0); loaded * (1)" in said
    moved = load(text, f"config.init_from=hf:{hf[0]}", f"config.init_rules={rules[2:3]}")
    with pytest.raises(InputError, match="takes layers/0/norm1/scale from layers/1/norm2, which"):
        init_from.fresh_state(build.build(moved), str(tmp_path / "no"))
    assert not (tmp_path / "no").exists()


def test_a_new_head_and_a_longer_model_are_fresh_and_said(hf, text, tmp_path, capsys):
    config = load(text, f"config.init_from=hf:{hf[0]}", "config.model.num_layers=3",
                  "config.model.rope_theta=5e5")  # fmt: skip
    _, state, report = state_of(config, tmp_path)
    assert report["parameters"]["layers/2/mlp/up"] == ["fresh", None]
    assert len([n for n in report["notes"] if "rope_theta=500000.0" in n and "10000.0" in n]) == 1
    assert "rope_theta" in capsys.readouterr().err
    fresh = one_layer_paths(build.init(build.build(config)).params)
    ours = one_layer_paths(state.params)
    np.testing.assert_array_equal(ours["layers/2/mlp/up"], fresh["layers/2/mlp/up"])
    assert (ours["layers/1/mlp/up"] != fresh["layers/1/mlp/up"]).all()


@pytest.mark.parametrize(
    "overrides,words",
    [
        (["config.model.mlp_width=64"], ("layers/0/mlp/down", "64x32", "48x32", "mlp_width=48")),
        (["config.model.vocab_size=300"], ("embed", "300 tokens", "257 tokens")),
        (["config.model.norm_epsilon=1e-5"], ("norm_epsilon", "1e-06")),
        (["config.init_rules=(('nowhere', 'skip'),)"], ("nowhere", "matches no parameter")),
        (["config.init_rules=(('.', 'skip'),)"], ("gave nothing",)),
        (["config.init_rules=(('(', 'skip'),)"], ("config.init_rules", "not a regex", "(")),
        (["config.init_rules=(('^head$', r'x\\9'),)"], ("config.init_rules", "no path")),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_it(overrides, words, hf, text, tmp_path):
    config = load(text, f"config.init_from=hf:{hf[0]}", *overrides)
    with pytest.raises(InputError) as error:
        train(config, str(tmp_path / "run"))
    message = str(error.value)
    assert "\n" not in message and len(message) < 600, message
    assert all(word in message for word in words), message
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    "override",
    ["config.init_rules=(('a',),)", "config.init_rules=(('a', 1),)", "config.init_rules=a,b",
     "config.init_rules=(('a', 'skip'),)"],
)  # fmt: skip
def test_rules_of_another_form_or_without_an_origin_are_refused(override, text):
    with pytest.raises(InputError, match="init_rules"):
        load(text, override)


def test_a_mismatch_is_no_error_where_a_rule_skips_it(hf, text, tmp_path):
    rules = (("mlp/(up|gate|down)", "skip"),)
    config = load(text, f"config.init_from=hf:{hf[0]}", "config.model.mlp_width=64",
                  f"config.init_rules={rules}")  # fmt: skip
    _, _, report = state_of(config, tmp_path)
    kinds = [kind for kind, _ in report["parameters"].values()]
    assert kinds.count("skipped") == 6 and kinds.count("loaded") == 15


def test_a_folder_becomes_a_workdir_and_a_resumed_run_does_not_look_at_it_again(
    hf, text, tmp_path, capsys
):
    shutil.copytree(hf[0], tmp_path / "hf")
    origin = f"config.init_from=hf:{tmp_path / 'hf'}"
    train(load(text, origin), str(tmp_path / "whole"))
    train(load(text, origin), str(tmp_path / "cut"), stop_after=1)
    shutil.rmtree(tmp_path / "hf")
    capsys.readouterr()
    train(load(text, origin), str(tmp_path / "cut"))
    assert "loaded" not in capsys.readouterr().out
    files = [export.export(str(tmp_path / w), str(tmp_path / f"{w}-hf")) for w in ("whole", "cut")]
    assert files[0] == files[1] == ["config.json", "model.safetensors"]
    one, two = ((tmp_path / f"{w}-hf" / files[0][1]).read_bytes() for w in ("whole", "cut"))
    assert one == two
    theirs = interop.load(str(tmp_path / "whole-hf"))
    assert (theirs.read("layers/0/mlp/up") != one_layer_paths(hf[2])["layers/0/mlp/up"]).any()


def save(config, path):
    """A workdir with one checkpoint, whose average is another than its weights."""
    run = build.build(config)
    state = build.init(run)
    if state.ema:
        shift = lambda x: jax.device_put(x + 1, x.sharding)  # noqa: E731
        state = state._replace(ema=jax.tree.map(shift, state.ema))
    with Checkpoints(path / "checkpoints") as checkpoints:
        checkpoints.save(2, state, extra=resume.notes(run))
    workdir.write_config(workdir.epath.Path(path), run.config, run.source.tokenizer)


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    save(load(text, "config.ema=0.5", "config.freeze=('embed$',)"), path)
    return path


def weights_of(path, kind):
    run = build.build(workdir.existing_config(str(path)), with_data=False)
    variables, *_ = evaluate.restore_weights(str(path), run, "latest", kind)
    return one_layer_paths(tree.merge(variables["params"], variables["frozen"].get("params", {})))


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
def test_a_workdir_gives_its_average_to_a_run_on_another_mesh(scan, trained, text, tmp_path):
    config = load(text, f"config.init_from={trained}", f"config.model.scan={scan}",
                  "config.mesh.fsdp=2", "config.freeze=('norm',)")  # fmt: skip
    _, state, report = state_of(config, tmp_path)
    whole = one_layer_paths(tree.merge(state.params, state.frozen["params"]))
    equal(whole, weights_of(trained, "ema"))
    raw = weights_of(trained, "raw")
    assert (whole["layers/1/attention/q"] != raw["layers/1/attention/q"]).any()
    assert report["from"] == f"{trained} (step 2)" and report["unused"] == []


@pytest.mark.slow
def test_an_unrolled_workdir_gives_its_layers_to_a_scanned_run(text, tmp_path):
    save(load(text, "config.model.scan=False", llama=False), tmp_path / "a")
    config = load(text, f"config.init_from={tmp_path / 'a'}", llama=False)
    _, state, _ = state_of(config, tmp_path)
    equal(one_layer_paths(state.params), weights_of(tmp_path / "a", "raw"))


def test_a_place_without_checkpoints_is_refused(text, tmp_path):
    with pytest.raises(InputError, match="no config.json"):
        train(load(text, f"config.init_from={tmp_path / 'none'}"), str(tmp_path / "run"))
    with pytest.raises(InputError, match="is no folder here"):
        train(load(text, "config.init_from=hf:openai-community/gpt2"), str(tmp_path / "run"))


def test_another_tokenizer_is_said(trained, text, tmp_path, capsys):
    path = tmp_path / "tokenizer.json"
    tokenizer_lib.Tokenizer("characters", "".join(map(chr, range(256)))).save(path)
    assert tokenizer_lib.load(path).vocab_size == 257
    config = load(text, f"config.init_from={trained}", f"config.data.tokenizer_path={path}",
                  "config.model.vocab_size=257")  # fmt: skip
    state_of(config, tmp_path)
    assert "the tokenizer is not that of" in capsys.readouterr().err


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixture") / "mixtral"
    return path, folder(path, "mixtral", vocab_size=257)[1]


EXPERTS, SPLIT = "config.model.experts=4", ("config.mesh.fsdp=2", "config.mesh.expert=2")


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.slow
def test_experts_of_all_layers_are_taken_on_any_mesh(scan, mixture, text, tmp_path):
    path, params = mixture
    config = load(text, f"config.init_from=hf:{path}", EXPERTS, f"config.model.scan={scan}", *SPLIT)
    _, state, report = state_of(config, tmp_path)
    equal(one_layer_paths(state.params), one_layer_paths(params))
    assert report["parameters"]["layers/1/moe/experts/3/up"][0] == "loaded"
    save(load(text, EXPERTS, f"config.model.scan={not scan}"), tmp_path / "run")
    config = load(text, f"config.init_from={tmp_path / 'run'}", EXPERTS,
                  f"config.model.scan={scan}", *SPLIT)  # fmt: skip
    _, state, _ = state_of(config, tmp_path)
    equal(one_layer_paths(state.params), weights_of(tmp_path / "run", "raw"))


@pytest.mark.slow
def test_single_experts_are_skipped_and_moved(mixture, text, tmp_path):
    rules = ((r"layers/0/moe/experts/1/", "skip"), (r"(experts)/2/(up)", r"layers/0/moe/\1/0/\2"))
    config = load(text, f"config.init_from=hf:{mixture[0]}", EXPERTS, *SPLIT,
                  f"config.init_rules={rules}", "config.model.top_k=3")  # fmt: skip
    _, state, report = state_of(config, tmp_path)
    assert len(report["notes"]) == 1 and "top_k=3" in report["notes"][0]
    ours, theirs = one_layer_paths(state.params), one_layer_paths(mixture[1])
    fresh = one_layer_paths(build.init(build.build(config)).params)
    one, moved = "layers/0/moe/experts/1/up", "layers/1/moe/experts/2/up"
    np.testing.assert_array_equal(ours[one], fresh[one])
    np.testing.assert_array_equal(ours[moved], theirs["layers/0/moe/experts/0/up"])
    np.testing.assert_array_equal(ours[f"{moved[:-2]}down"], theirs[f"{moved[:-2]}down"])
    assert report["parameters"][one] == ["skipped", None]


@pytest.mark.slow
def test_single_experts_of_a_workdir_are_taken(text, tmp_path):
    save(load(text, EXPERTS), tmp_path / "run")
    rules = ((r"layers/0/moe/experts/[13]/", "skip"),)
    config = load(text, f"config.init_from={tmp_path / 'run'}", EXPERTS, *SPLIT, "config.seed=5",
                  f"config.init_rules={rules}")  # fmt: skip
    _, state, _ = state_of(config, tmp_path)
    ours, theirs = one_layer_paths(state.params), weights_of(tmp_path / "run", "raw")
    differs = {name for name, value in ours.items() if (value != theirs[name]).any()}
    assert differs == {
        f"layers/0/moe/experts/{e}/{x}" for e in (1, 3) for x in ("up", "gate", "down")
    }


def bert(text, *overrides):
    values = [
        "config.data.reader=files",
        f"config.data.path={text}",
        "config.eval.batch=64",
        *("config.model.num_heads=4", "config.model.mlp_width=64", "config.log.tensorboard=False"),
        *overrides,
    ]
    return config_lib.load("configs/nlp/bert.py:tiny", values)


def test_a_bert_of_another_head_gives_what_has_a_place(text, tmp_path):
    run = build.build(bert(text))
    vocab = run.config.model.vocab_size
    _, params = folder(tmp_path / "hf", "bert_pretrain", vocab_size=vocab)
    config = bert(text, f"config.init_from=hf:{tmp_path / 'hf'}")
    _, state, report = state_of(config, tmp_path)
    theirs = one_layer_paths(params)
    others = {"pooler/kernel", "pooler/kernel_bias", "classifier/kernel", "classifier/kernel_bias"}
    equal(one_layer_paths(state.params), {k: v for k, v in theirs.items() if k not in others})
    assert set(report["unused"]) == others
    assert len(report["notes"]) == 1 and "head=mlm, but hf:" in report["notes"][0]
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    written["architectures"] = ["BertForMaskedLM"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(written))
    _, _, report = state_of(config, tmp_path)
    seq = ["cls.seq_relationship.bias", "cls.seq_relationship.weight"]
    assert report["unused"] == ["pooler/kernel", "pooler/kernel_bias", *seq]
