"""What somebody else wrote is not trusted: no code runs from it, and no secret is written down."""

import ast
import json
import random
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from research import config as config_lib
from research import manifest
from research.__main__ import main
from research.arguments import masked
from research.checkpoint import Checkpoints
from research.manifest import DamagedError
from research.storage import StoreError

ROOT = Path(__file__).resolve().parent.parent
# Calls that run what a file says, or put it where it says.
CALLS = {"eval", "exec", "execfile", "compile", "extractall", "extract", "unpack_archive"}
MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
KEYWORDS = {"allow_pickle": True, "trust_remote_code": True, "weights_only": False, "shell": True}
# Worker processes get the functions that their own parent made, and nothing else.
ALLOWED = {"research/data/workers.py": MODULES}


def faults_of(source: str) -> list[str]:
    """The banned things in a source text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            is_pattern = name == "compile" and getattr(node.func, "value", None) is not None
            if name in CALLS and not is_pattern:
                found.append(name)
            if name == "load" and getattr(getattr(node.func, "value", None), "id", "") in (
                "yaml", "torch"
            ):  # fmt: skip
                found.append("load")
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if keyword.arg in KEYWORDS and value is KEYWORDS[keyword.arg]:
                    found.append(keyword.arg)
    return found


@pytest.mark.core
@pytest.mark.fault("S2 malicious pickle")
def test_nothing_runs_or_unpacks_what_a_file_says(record_property):
    files = [
        p
        for d in ("research", "configs", "experiments", "launch")
        for p in (ROOT / d).rglob("*.py")
    ]
    for path in files:
        name = str(path.relative_to(ROOT))
        found = set(faults_of(path.read_text())) - ALLOWED.get(name, set())
        assert not found, f"{name} uses {sorted(found)}"
    record_property("observed", f"{len(files)} files without pickle, eval, exec, extractall")


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "eval('1')", "exec(x)", "tar.extractall(p)",
        "np.load(f, allow_pickle=True)", "f(trust_remote_code=True)", "yaml.load(f)",
        "torch.load(f, weights_only=False)", "subprocess.run(x, shell=True)", "import joblib.numpy",
        "shutil.unpack_archive(f)", "compile(x, 'f', 'exec')",
    ],
)  # fmt: skip
def test_the_ban_sees_each_of_them(source):
    assert faults_of(source)


# Checkpoints.


@pytest.fixture
def saved(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(3, {"params": {"w": jnp.arange(8.0)}})
    return tmp_path / "checkpoints"


HOSTILE = [
    b"", b"{", b"[]", b"null", b"1", b'"a"', b"{}", b'{"content": {}, "sha256": ""}', b"\xff\xfe",
    b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5_000, b'{"content": [], "sha256": "x"}',
    b'{"content": null, "sha256": null}', b"\0" * 100, b'{"content": {"files": 3}}', b"NaN",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:20]))
def test_a_malformed_manifest_is_damage_and_names_the_file(saved, text):
    (saved / "3" / "manifest.json").write_bytes(text)
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(DamagedError, match="manifest.json"):
            checkpoints.newest()


@pytest.mark.fault("S12 fuzz")
@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_mutated_manifest_is_refused_or_says_the_same(saved, count, record_property):
    path, rng = saved / "3" / "manifest.json", random.Random(0)
    good, content = path.read_bytes(), manifest.read(saved / "3")
    refused = 0
    for _ in range(count):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            place, how = rng.randrange(len(data)), rng.randrange(4)
            if how == 0:
                data[place] ^= 1 << rng.randrange(8)
            elif how == 1:
                del data[place : place + rng.randrange(1, 30)]
            elif how == 2:
                data[place:place] = rng.randbytes(rng.randrange(1, 8))
            else:
                data[place:place] = data[: rng.randrange(len(data))]
        path.write_bytes(data)
        try:
            assert manifest.read(saved / "3") == content  # white space, say
        except DamagedError:
            refused += 1
    assert refused > 0.8 * count
    record_property("observed", f"{count} mutated manifests: {refused} refused, no other error")


def resealed(folder, **changes):
    """A manifest whose own digest is right, as somebody can make who may write the folder."""
    content = manifest.read(folder) | changes
    manifest.write(folder, content)


@pytest.mark.parametrize(
    "changes",
    [
        {"leaves": {"params/w": ["float32[99999999999999]", "0"]}},
        {"leaves": {"params/w": ["nonsense[8]", "0"]}},
        {"leaves": {"params/w": 3}}, {"leaves": 3}, {"leaves": {"../../x": ["float32[8]", "0"]}},
        {"step": 4}, {"step": None}, {"metrics": 3}, {"format": 99},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_that_somebody_sealed_again_is_one_typed_error(saved, changes):
    resealed(saved / "3", **changes)
    with Checkpoints(saved) as checkpoints:
        with pytest.raises((DamagedError, StoreError)):
            checkpoints.check_arrays(3)
    assert not list(saved.rglob("x")) and not (saved.parent.parent / "x").exists()


@pytest.mark.fault("S9 mode of the checkpoint folder")
def test_checkpoints_are_not_for_everybody_to_read(saved, record_property):
    mode = (saved / "3").stat().st_mode & 0o777
    assert mode == 0o750
    record_property("observed", f"mode {mode:#o}")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("a", "b"):
        make = f"openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}.pem"
        subprocess.run(make.split(), cwd=folder, check=True, capture_output=True)
        public = f"openssl pkey -in {name}.pem -pubout -out {name}.pub"
        subprocess.run(public.split(), cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.fault("S10 altered signed manifest")
def test_a_signed_checkpoint_that_was_tampered_with_is_refused_before_any_array_is_read(
    keys, tmp_path, monkeypatch, record_property
):
    from research.signing import TamperedError

    folder, state = tmp_path / "checkpoints", {"params": {"w": jnp.arange(8.0)}}
    with Checkpoints(folder, sign=str(keys / "a.pem")) as checkpoints:
        checkpoints.save(3, state)
    with Checkpoints(folder, verify=str(keys / "a.pub")) as checkpoints:
        assert checkpoints.newest() == 3
        checkpoints.check_arrays(3)

    def never(*_, **__):
        raise AssertionError("an array was read")

    monkeypatch.setattr(Checkpoints, "load", never)
    with Checkpoints(folder, verify=str(keys / "b.pub")) as checkpoints:  # another's key
        with pytest.raises(TamperedError):
            checkpoints.newest()
    resealed(folder / "3", extra={"note": "mine now"})  # consistent in itself, but not signed
    with Checkpoints(folder, verify=str(keys / "a.pub")) as checkpoints:
        with pytest.raises(TamperedError) as error:
            checkpoints.newest(set_aside=True)
    assert (folder / "3").exists()  # refused, not passed over: an older one could be a trap
    (folder / "3" / "manifest.sig").unlink()
    with Checkpoints(folder, verify=str(keys / "a.pub")) as checkpoints:
        with pytest.raises(TamperedError):
            checkpoints.notes(3)
    record_property("observed", f"exit 1: {str(error.value)[-120:]}")


def test_a_signature_moved_to_another_step_is_refused(keys, tmp_path):
    import shutil

    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, sign=str(keys / "a.pem")) as checkpoints:
        checkpoints.save(3, {"params": {"w": jnp.arange(8.0)}})
    shutil.copytree(folder / "3", folder / "9")
    with Checkpoints(folder, verify=str(keys / "a.pub")) as checkpoints:
        with pytest.raises(DamagedError, match="is step 3 by its manifest"):
            checkpoints.notes(9)
        assert checkpoints.newest() == 3


@pytest.mark.fault("S11 path traversal in names")
@pytest.mark.parametrize("step", ["../../etc", "/etc", "..", "3/../3", "٣x", "-1", "3.damaged", ""])
def test_a_step_that_is_no_number_is_refused(step, tmp_path, capsys, record_property):
    assert main(["evaluate", f"--workdir={tmp_path}", f"--step={step}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    record_property("observed", "exit 2")


# Secrets.


def test_secrets_are_known_by_their_name_or_their_looks():
    for name in ("api_key", "config.data.token", "hf_token", "PASSWORD", "client_secret", "key"):
        assert masked(name, "hunter2") == "***"
    for value in ("hf_abcdefghijklmnopqrst", "sk-abcdefghijklmnop", "AKIAABCDEFGHIJKLMNOP"):
        assert value not in masked("path", f"x {value} y")
    assert masked("path", "https://bob:hunter2@host/x") == "https://***@host/x"
    for name, value in (("tokenizer", "bpe"), ("max_tokens", 3), ("num_kv_heads", 2), ("keep", 1)):
        assert masked(name, value) == value
    assert masked("path", "gs://bucket/run-key") == "gs://bucket/run-key"
    assert masked("api_key", None) is None


USERS = '''
"""A data module of a user's own, with a secret in its config."""
from research.data import text
def make(path: str, api_key: str | None = None, context: int = 32, *, split, seed, batch):
    return text.make(reader="files", path=path, tokenizer="bytes", context=context, split=split,
                     seed=seed, batch=batch)
'''


@pytest.mark.fault("S8 secrets")
def test_no_secret_is_in_any_file_or_line_of_a_run(tmp_path, record_property):
    secret, bearer = "hunter2hunter2", "hf_" + "a1" * 12
    (tmp_path / "users_own").mkdir()
    (tmp_path / "users_own" / "data.py").write_text(USERS)
    (tmp_path / "users_own" / "cfg.py").write_text(
        "def get_config():\n    from configs.nlp.gpt import tiny\n    config = tiny()\n"
        f"    config['data'] = dict(name='users_own.data', path='{tmp_path}/text')\n"
        "    return config\n"
    )
    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / "text" / f"{number}.txt").write_text(f"document {number} says hello. " * 20)
    command = [
        sys.executable, "-m", "research", "train", f"--config={tmp_path}/users_own/cfg.py",
        f"--workdir={tmp_path}/run", f"--config.data.api_key={secret}", "--config.steps=2",
        "--config.optim.lr.warmup=1", "--config.eval.batch=64",
    ]  # fmt: skip
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "HF_TOKEN": bearer, "JAX_PLATFORMS": "cpu"}
    env |= {"ANNEAL_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    for more in ([], ["--config.steps=3"], [f"--config.data.api_key={secret}", "--config.batch=x"]):
        done = subprocess.run([*command, *more], capture_output=True, text=True, env=env, cwd=ROOT)
        assert secret not in done.stdout + done.stderr and bearer not in done.stdout + done.stderr
        assert done.returncode == (2 if more else 0), done.stderr
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert len(files) > 10
    for path in files:
        assert secret.encode() not in path.read_bytes(), path
        assert bearer.encode() not in path.read_bytes(), path
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"]["api_key"] == "***"
    assert "***" in (tmp_path / "run" / "environment.json").read_text()
    record_property("observed", f"in none of {len(files)} files and no line; *** instead")


def test_a_masked_value_is_no_drift(tmp_path):
    values = {"data": {"name": "x", "api_key": "one"}}
    import ml_collections

    one = ml_collections.FrozenConfigDict(values)
    stored = config_lib.from_json(config_lib.to_json(one).encode())
    assert "one" not in config_lib.to_json(one)
    assert not config_lib.drift(stored, one)


def test_an_unreadable_workdir_is_one_line(tmp_path, capsys):
    (tmp_path / "config.json").mkdir()
    for verb in (["evaluate"], ["verify"], ["generate", "--prompt=a"]):
        assert main([*verb, f"--workdir={tmp_path}"]) in (1, 2)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
