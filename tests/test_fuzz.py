"""Whatever a config says, it is accepted or refused in one line: no other error, and no hang."""

import json
import math
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import optax
import pytest

import research
from research import config as config_lib
from research import lookup
from research.arguments import InputError

TINY = "configs/nlp/gpt.py:tiny"
NAMES = [
    "", ".", "..", "...", "../x", "../../research/models/gpt", "..x", ".x", "x.", "a..b", "a/b",
    "/a", "a\\b", "gpt.py", "./gpt", "os.path", "os.system", "sys.modules", "os..path", "this.x",
    "subprocess.run", "antigravity", "__main__.x", "research..models", "research/models/gpt", "\0",
    "gpt\0", "a.\0", "a b.c", " gpt", "gpt ", "a\n.b", "1.5", "a.1", "a-b.c", "class.x", "é",
    "ｇｐｔ", "\ud800", "\ud800.x", "None", "nan", "-1", "__init__", "__pycache__", "_gpt",
    "canary/x", "../canary", "canary..x", ".canary", "canary.", "canary", "canary.x y",
    "canary.x\0", "canary.1", "x" * 5_000, "x." * 5_000 + "x", "a." * 100, "canary." * 100 + "x",
]  # fmt: skip
FOLDERS = ["models", "tasks", "data", "data.readers", "optim", "gradients"]
VALUES = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**64, 10**400, -(10**400), 0.5, -0.0, 1e308, 5e-324,
    float("nan"), float("inf"), -float("inf"), [], [[]], [{}], [None], {}, {"name": "gpt"},
    {"name": {}}, {"": 1}, {"a.b": 1}, {"chain": []}, {"chain": "adam"}, {"chain": [["lr"]]},
    {"\ud800": 1}, {"name": "adam", "x": float("nan")}, [float("nan")], [[[[1, "a", {"b": []}]]]],
    ["clip", "adam", "decay", "lr"], ["lr"], ["adamw"], ["sgd", 3], "gpt", "adam", "text", "bytes",
]  # fmt: skip
TEXTS = [
    "(" * 500, "[" * 100_000, "-" * 50_000 + "1", "not " * 20_000 + "1", "1+" * 20_000 + "1",
    "9" * 5_000, "1" + "0" * 400, "1e999", "-1e999", "1_0", "0x10", "b'x'", "{1, 2}", "{}", "1j",
    "...", "(...,)", "{'a': [1, {}]}", "{1: 2}", "{'a': 1j}", "lambda: 0", "'", '"""', "\n", "a\nb",
    "f'{1}'", "__import__('os').getpid()", "nan", "inf", "(nan,)", "[1e999]", "{'x': 1e999}",
    "clip,adam,decay,lr", "('lr', 'adam')", "lr,", ",", "True", "None", "null", "\0", "é", "\ud800",
    "adam.b1=3", "=", "==", "%s", "{0}", "$HOME", "~", "*" * 1_000, "a," * 10_000, "config.steps=3",
]  # fmt: skip


class TooLong(BaseException):
    """Not an Exception: no code under test catches it."""


def run(function, seconds=20):
    """Returns what `function` returns (not None), and None if it raises InputError in one line."""

    def ring(*_):
        raise TooLong

    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        return function()
    except InputError as error:
        assert str(error) and len(str(error).splitlines()) == 1, repr(str(error))[:300]
        assert len(str(error)) < 2_000, str(error)[:300]
        return None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def mutate(values, draw, depth=0):
    """Changes one place of nested values."""
    keys = sorted(values, key=str)
    kind = draw.random()
    key = draw.choice(keys) if keys and kind < 0.95 else draw.choice(NAMES)
    if kind < 0.6 and isinstance(values.get(key), dict) and depth < 5:
        mutate(values[key], draw, depth + 1)
    elif kind < 0.7:
        values.pop(key, None)
    elif kind < 0.75:
        values[key] = {"name": "gpt"} if kind < 0.72 else {key: values.get(key)}
    else:
        values[key] = draw.choice(draw.choice([VALUES, NAMES, TEXTS, dir(optax)]))


def random_override(leaves, draw):
    path = draw.choice(leaves).split(".")
    if draw.random() < 0.2:
        path[draw.randrange(len(path))] = draw.choice(NAMES)
    if draw.random() < 0.1:
        path.insert(draw.randrange(len(path) + 1), draw.choice(NAMES))
    value = draw.choice(draw.choice([VALUES, NAMES, TEXTS, dir(optax)]))
    value = str(value) if not isinstance(value, int) or abs(value) < 10**400 else "1" + "0" * 400
    return draw.choice(["config.", "--config.", "config.", ""]) + ".".join(path) + "=" + value


def mutate_bytes(data, draw):
    data = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(data))
        if (kind := draw.random()) < 0.6:
            data[at] = draw.choice([draw.randrange(256), *b'0123456789"[]{},:.-eE\\ntf'])
        elif kind < 0.8:
            del data[at : at + draw.choice([1, 1, 5, 50, 10_000])]
        else:
            data[at:at] = data[at : at + draw.choice([1, 10, 100])]
    return bytes(data) or b"x"


def accept(make):
    """Returns the complete config of make(), which is the same once written and read, or None."""
    config = make()
    text = config_lib.to_json(config)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    again = config_lib.from_json(text)
    assert config_lib.to_json(config_lib.override(again, [])) == text
    config_lib.drift(config, config_lib.load(TINY))
    return config


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.fault("S12 fuzz")
def test_a_mutated_config_is_accepted_or_refused_in_one_line(count, monkeypatch):
    stored = config_lib.load(TINY)
    text, leaves = config_lib.to_json(stored), sorted(config_lib._leaves(stored.to_dict()))
    accepted = 0
    for seed in range(count):
        draw = random.Random(seed)
        if (kind := seed % 3) == 0:
            values = json.loads(text)
            for _ in range(draw.choice([1, 1, 2, 4])):
                mutate(values, draw)
            found = run(lambda values=values: accept(lambda: config_lib.resolve(values)))
        elif kind == 1:
            lines = [random_override(leaves, draw) for _ in range(draw.choice([1, 1, 2]))]
            found = run(lambda lines=lines: accept(lambda: config_lib.override(stored, lines)))
        else:
            data = mutate_bytes(text.encode(), draw)
            given = data if seed % 2 else data.decode("utf-8", "surrogateescape")
            found = run(
                lambda given=given: accept(
                    lambda: config_lib.override(config_lib.from_json(given), [])
                )
            )
        accepted += found is not None
    assert count / 20 < accepted < count / 1.5  # neither all nor nothing


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 20_000 + "1" + "}" * 20_000,
        '{"a":' * 700 + "1" + "}" * 700,
        '{"steps": ' + "9" * 5_000 + "}",
        '{"a.b": 1}',
        '{"steps": 20',
        b"\xff\xfe{",
        b"\xc3",
        b"",
    ],
)
def test_a_config_json_that_cannot_be_read_is_refused(text):
    assert run(lambda: config_lib.override(config_lib.from_json(text), [])) is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("config.steps=1" + "0" * 400, "does not fit into 64 bits|cannot be read"),
        ("config.optim.lr.peak=1" + "0" * 400, "cannot be read .*too large"),
        ("config.optim.lr.peak=" + "(" * 500, "config.optim.lr.peak|cannot be read"),
        ("config.optim.lr.peak=" + "-" * 50_000 + "1", "config.optim.lr.peak|cannot be read"),
        ("config.optim.adam=0", "config.optim.adam=.* expected dict"),
        ("config.optim.adam=False", "config.optim.adam=.* expected dict"),
        ("config.mesh.replicate=('a', b'x')", "config.mesh.replicate=b'x' is no number, text"),
        ("config.mesh.replicate=(1j,)", "config.mesh.replicate=1j is no number, text"),
        ("config.mesh.replicate=(1e999,)", "config.mesh.replicate=inf is not a finite number"),
        ("config.mesh.replicate=({'a.b': 1},)", "has the key 'a.b'"),
        ("config.mesh.replicate=({1: 1},)", "has the key 1"),
        ("config.a\nb=1", "config.a b is not known"),
    ],
)
def test_a_value_that_config_json_could_not_hold_is_refused(override, message):
    with pytest.raises(InputError, match=message) as error:
        config_lib.load(TINY, [override])
    assert len(str(error.value)) < 1_000 and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0, False, "", [], 0.0])
@pytest.mark.parametrize("path", ["optim.adam", "mesh", "model", "data", "optim"])
def test_a_section_that_is_no_dict_is_refused(path, value):
    values = json.loads(config_lib.to_json(config_lib.load(TINY)))
    *outer, last = path.split(".")
    (values[outer[0]] if outer else values)[last] = value
    with pytest.raises(InputError, match=f"config.{path}=.* expected dict"):
        config_lib.resolve(values)


@pytest.mark.parametrize(
    "file", ["x" * 5_000 + ".py", "\0.py", "\ud800.py", "", "..", "/", "a" * 300]
)
def test_a_config_file_that_cannot_exist_is_refused(file):
    with pytest.raises(InputError, match="is not a Python file here"):
        config_lib.load(file)


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A package on the path that leaves a mark when it is imported."""
    package = tmp_path / "canary"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\n")
    (package / "good.py").write_text("def make(n: int = 3):\n    return n\n")
    (package / "broken.py").write_text("import json\n\njson.loads('')\n")
    (package / "lacking.py").write_text("import no_such_package\n")
    (package / "other.py").write_text("make = 5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "mark"
    for name in [name for name in sys.modules if name.partition(".")[0] == "canary"]:
        del sys.modules[name]


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_no_name_is_refused_and_imports_nothing(folder, canary, capfd):
    lookup.names(folder)
    before, fallback = set(sys.modules), optax if folder == "optim" else None
    for name in NAMES:
        assert run(lambda name=name: lookup.find(folder, name, fallback)) is None, name
    new = set(sys.modules) - before
    assert all(name.startswith("research.") and "__" not in name for name in new), new
    assert not canary.exists()
    assert capfd.readouterr() == ("", "")  # `this` would print


def test_a_module_of_the_users_own_is_found_or_named(canary):
    assert lookup.find("models", "canary.good")() == 3
    assert canary.exists()
    with pytest.raises(InputError, match="canary.broken cannot be imported .JSONDecodeError: .*"):
        lookup.find("models", "canary.broken")
    with pytest.raises(InputError, match="canary.lacking cannot be imported .*no_such_package"):
        lookup.find("models", "canary.lacking")
    with pytest.raises(InputError, match="canary.other has no function `make`"):
        lookup.find("models", "canary.other")
    for name in ("canary.missing", "no_such_package.x", "canary.good.x"):
        with pytest.raises(InputError, match=f"'{name}' is not in research/models"):
            lookup.find("models", name)


REFUSED = """
import sys
from research.__main__ import main
code = main(sys.argv[1:])
from jax._src import xla_bridge
print(code, len(xla_bridge._backends))
"""


@pytest.mark.fault("S1 wrong config value")
def test_a_wrong_value_is_refused_in_two_seconds_and_before_any_device(tmp_path):
    arguments = ["train", f"--config={TINY}", f"--workdir={tmp_path / 'run'}"]
    command = [sys.executable, "-c", REFUSED, *arguments, "--config.model.num_layers=-3"]
    seconds = [math.inf]
    while min(seconds) >= 2 and len(seconds) < 8:  # a neighbour on the same core slows computing
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        options = dict(capture_output=True, text=True, cwd=Path(research.__file__).parents[1])
        found = subprocess.run(command, timeout=60, **options)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert found.stdout.split() == ["2", "0"]
        assert "num_layers" in found.stderr and len(found.stderr.splitlines()) == 1
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 2  # of computing, not of waiting
    assert not (tmp_path / "run").exists()
