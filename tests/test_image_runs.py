"""Every recipe of image classification by its `:tiny` config: trains, is cut, goes on to the same
bit, is judged, names an image file and, where there are such, goes out as a folder and comes back.
"""

import jax
import numpy as np
import pytest

from research import build, tree
from research import config as config_lib
from research.arguments import InputError
from research.evaluate import evaluate, restore_weights
from research.export import export
from research.generate import generate
from research.init_from import fresh_state
from research.train import train
from tests.test_families import SHORT, outcome

FAMILIES = ("mnist", "resnet_cifar", "resnet50_imagenet", "vit_imagenet", "transfer")
ONCE = ("mnist",)  # in every run of the tests; the others among the slow ones
PARAMS = [name if name in ONCE else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


def load(name, *more):
    given = [text for text in SHORT if "warmup" not in text]
    return config_lib.load(f"configs/vision/{name}.py:tiny", [*given, *more])


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("pictures") / "one.png"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.mark.parametrize("name", PARAMS)
def test_a_recipe_trains_resumes_to_the_same_bit_and_names_an_image(name, picture, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(load(name), str(whole))
    for stop in (2, 5, None):
        train(load(name), str(cut), stop_after=stop)
    assert outcome(whole) == outcome(cut)
    numbers = evaluate(str(whole))
    assert {"loss", "accuracy", "top5", "ece", "f1", "balanced_accuracy"} <= numbers.keys()
    assert np.isfinite(list(numbers.values())).all()
    alone = list(generate(str(whole), [picture]))[0]
    both = list(generate(str(whole), [picture, picture]))
    chances = alone["probabilities"]
    assert alone["prompt"] == picture and alone["label"] == max(chances, key=chances.get)
    assert set(chances) == set(map(str, range(10)))
    np.testing.assert_allclose(sum(chances.values()), 1, rtol=1e-5)
    assert [one["label"] for one in both] == [alone["label"]] * 2
    (tmp_path / "text.png").write_text("no image")
    for path in ("text.png", "missing.png"):
        with pytest.raises(InputError, match=path):
            list(generate(str(whole), [str(tmp_path / path)]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,more",
    [
        ("resnet50_imagenet", ("config.model.stem=large",)),
        ("vit_imagenet", ("config.model.pool=token",)),
    ],
)
def test_a_run_goes_out_as_a_folder_and_a_new_one_begins_with_it(name, more, tmp_path):
    train(load(name, *more), str(tmp_path / "run"))
    export(str(tmp_path / "run"), str(tmp_path / "hf"))
    again = build.build(load(name, *more, f"config.init_from=hf:{tmp_path / 'hf'}"))
    state = fresh_state(again, str(tmp_path / "new"))
    with jax.set_mesh(again.mesh):
        variables, *_ = restore_weights(str(tmp_path / "run"), again, "latest", None)
    for kind in ("params", "model_state"):  # running moments too
        ours, theirs = tree.flatten(variables[kind]), tree.flatten(getattr(state, kind))
        for path, leaf in ours.items():
            np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)
