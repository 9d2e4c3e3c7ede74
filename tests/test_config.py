"""Configs: what is refused, and that everything is recorded."""

from typing import Literal

import pytest

from research import config as config_lib
from research.arguments import Count, Fraction, InputError, Text, complete
from research.build import build

TINY = "configs/nlp/gpt.py:tiny"


def make(n: Count = 3, rate: Fraction = 0.1, kind: Literal["a", "bb"] = "a", flag: bool = False):
    """A signature as models have it."""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": True}, "bool"),
        ({"n": Text("True")}, "expected int"),
        ({"n": -3}, "at least 1"),
        ({"n": 2.5}, "expected int"),
        ({"rate": float("nan")}, "out of range|finite"),
        ({"rate": Text("nan")}, "out of range|finite"),
        ({"rate": 1.5}, "at least 0 and at most 1"),
        ({"kind": "b"}, "did you mean 'bb'"),
        ({"flg": True}, "did you mean 'flag'"),
        ({"flag": 1}, "expected bool"),
    ],
)
def test_a_value_that_does_not_fit_its_signature_is_refused_by_name(given, message):
    with pytest.raises(InputError, match=message) as error:
        complete(make, given, "config.model")
    assert "\n" not in str(error.value)
    assert "config.model." + next(iter(given)) in str(error.value)


def test_text_from_the_command_line_takes_the_type_of_the_signature():
    given = {"n": Text("7"), "rate": Text("0"), "kind": Text("bb"), "flag": Text("True")}
    assert complete(make, given, "x") == {"n": 7, "rate": 0.0, "kind": "bb", "flag": True}


@pytest.mark.core
def test_every_default_is_recorded_and_a_key_the_file_does_not_mention_can_be_set():
    config = config_lib.load(TINY, ["config.model.dropout=0.1", "config.optim.adam.b2=0.9"])
    assert config.model.dropout == 0.1
    assert config.optim.adam.b2 == 0.9
    assert config.model.remat == "none"  # a default of the signature
    assert config.optim.lr.steps == config.steps  # a schedule spans the run
    again = config_lib.from_json(config_lib.to_json(config))
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("config.optim.lr.peak=nan", "config.optim.lr.peak"),
        ("config.model.num_layers=-3", "config.model.num_layers=-3"),
        ("config.model.num_layers=True", "expected int"),
        ("config.modle.width=3", "did you mean 'model'"),
        ("config.model.widht=3", "did you mean 'width'"),
        ("config.model.name=gtp", "did you mean 'gpt'"),
        ("config.optim.lr.warmup=500", "does not fit into 20 steps|smaller"),
        ("config.optim.lion.b1=0.9", "not in config.optim.chain"),
        ("config.optim.chain=clip,adm,lr", "did you mean|not in config|known"),
        ("config.steps", "not of the form"),
        ("config.data.split=test", "config.data.split is not known"),
        ("config.seed.x=1", "is a value"),
        ("config.seed=4294967296", "at most 4294967295"),
        ("config.model.dropout=1.0", "at least 0 and below 1"),
        ("config.ema=1.0", "at least 0 and below 1"),
        ("config.optim.lr.steps=0", "at least 1"),
        ("config.optim.adam=5", "expected dict"),
        ("config.model.name=..", "is not in research/models"),
        ("config.optim.chain=1,2", "expected str"),
        ("config.optim.chain=adam,adam", "name each once"),
        ("config.optim.chain=apply_updates,lr", "'apply_updates' is not in research/optim"),
        ("config.optim.chain=GradientTransformation,lr", "is not in research/optim"),
        ("config.optim.chain=clip,adam", "0 times, not once; add 'lr'"),
        ("config.optim.chain=", "is not in research/optim"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_key(override, message):
    with pytest.raises(InputError, match=message) as error:
        decided = ["config.model.vocab_size=256", "config.model.context=32"]
        config = config_lib.load(TINY, [override, *decided, "config.task.vocab_size=256"])
        build(config, with_data=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_optax_alias_brings_its_own_learning_rate_and_may_not_meet_another(name):
    rate = f"config.optim.{name}.learning_rate=0.5"
    config = config_lib.load(TINY, [f"config.optim.chain={name}", rate])
    assert config.optim[name].learning_rate == 0.5
    with pytest.raises(InputError, match="2 times, not once; keep one"):
        config_lib.load(TINY, [f"config.optim.chain={name},lr", rate])


def test_a_part_that_does_not_turn_the_sign_of_an_update_is_no_learning_rate():
    rprop = ["config.optim.chain=scale_by_rprop", "config.optim.scale_by_rprop.learning_rate=1.0"]
    with pytest.raises(InputError, match="add 'lr'"):
        config_lib.load(TINY, rprop)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config():\n    return (\n", r"broken.py.*'\(' was never closed.*line 2"),
        ("x = 1\n\ny = x / 0\n", r"broken.py:3 fails with ZeroDivisionError"),
        ("def get_config():\n    return dict(steps=missing)\n", "broken.py:2 .*missing"),
        ("def get_config():\n    return 5\n", "broken.py fails with AttributeError"),
    ],
)
def test_a_config_file_that_fails_is_named_with_the_line(text, message, tmp_path):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        config_lib.load(str(tmp_path / "broken.py"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", '{"steps": 2', "[1]", "null"])
def test_a_damaged_config_json_is_refused_by_name(text):
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        config_lib.from_json(text)


def test_overrides_of_a_stored_config_are_checked_and_leave_the_rest():
    stored = config_lib.from_json(config_lib.to_json(config_lib.load(TINY)))
    assert config_lib.override(stored, []).to_dict() == stored.to_dict()
    changed = config_lib.override(stored, ["config.mesh.fsdp=1", "config.eval.batch=4"])
    assert changed.eval.batch == 4 and changed.mesh.fsdp == 1
    assert set(config_lib.drift(stored, changed)) == {"eval.batch"}
    with pytest.raises(InputError, match="did you mean 'fsdp'"):
        config_lib.override(stored, ["config.mesh.fdsp=1"])


def test_a_missing_file_and_an_unknown_variant_name_the_nearest():
    with pytest.raises(InputError, match="did you mean 'configs/nlp/gpt.py'"):
        config_lib.load("configs/nlp/gtp.py")
    with pytest.raises(InputError, match="not a Python file"):
        config_lib.load("README.md")
    with pytest.raises(InputError, match="did you mean 'tiny'"):
        config_lib.load("configs/nlp/gpt.py:tyni")


def test_only_mesh_workers_logging_and_saving_may_differ_on_resume():
    stored = config_lib.load(TINY)
    free = ["config.mesh.fsdp=2", "config.data.workers=2", "config.log.every=7"]
    assert config_lib.drift(stored, config_lib.load(TINY, free)) == {}
    drifted = config_lib.drift(stored, config_lib.load(TINY, ["config.steps=30"]))
    assert drifted == {"steps": (20, 30), "optim.lr.steps": (20, 30)}


def test_optax_names_can_be_used_in_a_chain_without_a_file_of_ours():
    config = config_lib.load(
        TINY, ["config.optim.chain=scale_by_lion,lr", "config.optim.scale_by_lion.b1=0.8"]
    )
    assert config.optim.scale_by_lion.b1 == 0.8


PICTURES = """
from configs.nlp.gpt import get_config as base

def get_config():
    data = dict(name="images", pipeline=("crop", "flip"), crop=dict(min_area=0.2))
    return base("tiny") | dict(data=data | dict(center_crop=dict(share=0.5)))
"""


def load_pictures(folder, *overrides):
    (folder / "pictures.py").write_text(PICTURES)
    return config_lib.load(str(folder / "pictures.py"), overrides)


def test_each_name_of_a_pipeline_has_a_section_whose_defaults_are_recorded(tmp_path):
    given = ("config.data.flip.probability=0.25", "config.data.channels=1")
    data = load_pictures(tmp_path, *given).data
    assert data.channels == 1
    assert data.crop.min_area == 0.2 and data.crop.max_ratio == 4 / 3 and data.crop.size is None
    assert data.flip.to_dict() == dict(probability=0.25, vertical=False)
    assert data.eval_pipeline == ("center_crop",) and data.center_crop.share == 0.5
    config = load_pictures(tmp_path)
    assert config_lib.from_json(config_lib.to_json(config)).to_dict() == config.to_dict()
    assert config_lib.override(config, []).to_dict() == config.to_dict()


def test_another_pipeline_leaves_behind_the_sections_of_the_first_alone(tmp_path):
    fewer = load_pictures(tmp_path, "config.data.pipeline=flip,rand_augment").data
    assert fewer.pipeline == ("flip", "rand_augment") and "crop" not in fewer
    assert fewer.rand_augment.number == 2 and fewer.center_crop.share == 0.5
    both = ["config.data.eval_pipeline=crop", "config.data.pipeline=flip"]
    for overrides in (both, both[::-1]):
        with pytest.raises(
            InputError, match="config.data.center_crop is not in config.data.pipeli"
        ):
            load_pictures(tmp_path, *overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("config.data.crop.min_arae=0.1", "config.data.crop.min_arae .*mean 'min_area'"),
        ("config.data.crop.min_area=2", "config.data.crop.min_area=2.0 is out of range"),
        ("config.data.flip.probability=True", "config.data.flip.probability=True"),
        ("config.data.flip=3", "config.data.flip=3 .*expected dict"),
        ("config.data.pipeline=crop,filp", "'filp' is not in research/data.augment.*mean 'flip'"),
        ("config.data.pipeline=crop,crop", "config.data.pipeline: 'crop' is taken"),
        ("config.data.pipeline=size", "config.data.pipeline: 'size' is taken"),
        ("config.data.pipeline=3", "config.data.pipeline=3"),
        ("config.data.letterbox.fill=3", "config.data.letterbox is not in .*; add it there"),
        ("config.data.pipelin=crop", "config.data.pipelin is not known.*mean 'pipeline'"),
        ("config.data.size=0", "config.data.size=0 is out of range"),
        ("config.data.channels=2", "config.data.channels=2 is not an option"),
        ("config.data.channels=True", "config.data.channels=True is not an option"),
    ],
)
def test_a_wrong_pipeline_is_one_line_that_names_the_key(tmp_path, override, message):
    with pytest.raises(InputError, match=message) as error:
        load_pictures(tmp_path, override)
    assert "\n" not in str(error.value)
