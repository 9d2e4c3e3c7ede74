"""No damaged entry of the compilation cache is ever run: it is compiled again, said aloud."""

import json
import os
import stat
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.core

# A process that compiles one program again and again, each time as a fresh process would. Arrays
# are numpy's, so that nothing but the program is compiled.
PREAMBLE = """
import json, logging, os, pathlib, random, sys
for name in sys.argv[2:]:
    sys.modules[name] = None  # as if it were not installed
import jax, jax.numpy as jnp, numpy as np
from jax.experimental.compilation_cache import compilation_cache as public

folder = pathlib.Path(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
said, events = [], []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("anneal").addHandler(handler)
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.split("/")[-1]))

def program(x, n=4):
    for i in range(n):
        x = jnp.tanh(x @ x.T / 8 + i) @ x
    return jnp.sin(x).sum(axis=0)

x = np.random.default_rng(0).normal(size=(24, 24)).astype(np.float32)

def start(n=4):
    "Returns the answer, what was said and what happened, as in a new process."
    public.reset_cache()
    jax.clear_caches()
    said.clear(), events.clear()
    answer = np.asarray(jax.jit(program, static_argnums=1)(x, n)).tobytes().hex()
    return answer, list(said), [e for e in events if e in ("cache_hits", "cache_misses")]

def files():
    return sorted(folder.glob("*-cache"))

from research import compilation_cache
"""


def run(folder, script, *missing, **environment):
    """Runs the script in a process of its own, without the packages `missing`; what it printed."""
    command = [sys.executable, "-c", PREAMBLE + textwrap.dedent(script), str(folder), *missing]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


DAMAGE = """
compilation_cache.keep(str(folder))
first = start()
(path,) = files()
whole = path.read_bytes()
jax.config.update("jax_enable_compilation_cache", False)
right = start()[0]
jax.config.update("jax_enable_compilation_cache", True)
rng = random.Random(0)

def flipped():
    bit = rng.randrange(8 * len(whole))
    data = bytearray(whole)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)

damages = [flipped() for _ in range(12)]
damages += [whole[:n] for n in (0, 1, 31, 32, 33, len(whole) // 2, len(whole) - 33, len(whole) - 1)]
damages += [whole[:-32], whole + b"0", bytes(len(whole)), whole[-32:] + whole[:-32]]
outcomes = []
for data in damages:
    path.write_bytes(data)
    outcomes.append(start() + (start()[2],))
path.unlink()
deleted = start()
other = start(5)
(second,) = [p for p in files() if p != path]
second.write_bytes(path.read_bytes())
exchanged = start(5)
print(json.dumps(dict(first=first, right=right, outcomes=outcomes, deleted=deleted, name=path.name,
    other=other, exchanged=exchanged, magic=whole[:4].hex(), again=start())))
"""


@pytest.mark.parametrize(
    ("missing", "magic"),
    [
        pytest.param((), "28b52ffd", id="zstandard"),
        pytest.param(("zstandard", "compression"), "78", id="zlib", marks=pytest.mark.slow),
    ],
)
@pytest.mark.fault("damaged compilation cache")
def test_a_damaged_entry_is_compiled_again_and_never_run(missing, magic, tmp_path):
    found = run(tmp_path / "cache", DAMAGE, *missing)
    assert found["magic"].startswith(magic)
    assert found["first"] == [found["right"], [], ["cache_misses"]]
    for answer, said, events, next_events in found["outcomes"]:
        assert answer == found["right"]
        assert len(said) == 1 and found["name"] in said[0] and "removed" in said[0]
        assert events == ["cache_misses"]
        assert next_events == ["cache_hits"]  # it was written anew, whole
    assert found["deleted"] == [found["right"], [], ["cache_misses"]]
    # A whole entry, digest and all, under the name of another program.
    assert found["exchanged"][0] == found["other"][0] != found["right"]
    assert len(found["exchanged"][1]) == 1
    assert found["again"] == [found["right"], [], ["cache_hits"]]


def test_an_entry_of_plain_jax_is_a_miss_and_plain_jax_reads_ours(tmp_path):
    plain = """
    jax.config.update("jax_compilation_cache_dir", str(folder))
    print(json.dumps(start()))
    """
    checked = "compilation_cache.keep(str(folder))\nprint(json.dumps([start(), start()]))"
    # The options of XLA are part of an entry's name, and `keep` sets this one.
    option = {"JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none"}
    answer = run(tmp_path, plain, **option)[0]
    first, second = run(tmp_path, checked)
    assert first[0] == second[0] == answer
    assert len(first[1]) == 1 and "not written by anneal" in first[1][0]
    assert second[1:] == [[], ["cache_hits"]]
    assert run(tmp_path, plain, **option) == [answer, [], ["cache_hits"]]


def test_a_cache_that_is_open_already_is_checked_from_then_on(tmp_path):
    script = """
    jax.config.update("jax_compilation_cache_dir", str(folder / "plain"))
    start()
    compilation_cache.keep(str(folder))
    jax.clear_caches()
    jax.jit(program, static_argnums=1)(x, 5)
    compilation_cache.keep(str(folder))  # twice is once: one digest, not two
    print(json.dumps([start(5), len(files())]))
    """
    (_, said, events), count = run(tmp_path, script)
    assert (said, events, count) == ([], ["cache_hits"], 1)


@pytest.mark.parametrize(
    "change",
    [
        "del internals._initialize_cache",
        "internals.get_file_cache = lambda path: (lru_cache.LRUCache(path, max_size=-1), path)",
        "interface.CacheInterface.__abstractmethods__ = frozenset({'get', 'put', 'view'})",
        "sys.modules['jax._src.lru_cache'] = None; del jax._src.lru_cache",
    ],
)
def test_another_jax_means_no_cache_rather_than_an_unchecked_one(change, tmp_path):
    script = f"""
    from jax._src import compilation_cache as internals, compilation_cache_interface as interface
    from jax._src import lru_cache
    {change}
    compilation_cache.keep(str(folder))
    warnings = list(said)
    jax.clear_caches()
    jax.jit(program, static_argnums=1)(x, 4)
    print(json.dumps([warnings, said, [p.name for p in files()]]))
    """
    warnings, said, names = run(tmp_path, script)
    assert len(warnings) == 1 and "no compilation cache" in warnings[0]
    assert said == warnings and names == []


def test_a_folder_that_cannot_be_used_is_one_warning_and_no_cache(tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "closed").mkdir(mode=0o500)
    folders = [tmp_path / "file", tmp_path / "file" / "below", "nowhere://bucket/cache"]
    if os.geteuid():  # root writes anywhere
        folders.append(tmp_path / "closed")
    script = """
    compilation_cache.keep(sys.argv[1])
    print(json.dumps([list(said), start()]))
    """
    for folder in folders:
        said, (answer, more, events) = run(folder, script)
        assert len(said) == 1 and str(folder) in said[0]
        assert (more, events) == ([], []) and answer


def test_the_folder_is_made_for_its_owner_and_one_that_exists_is_left_alone(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs").chmod(0o755)
    script = 'compilation_cache.keep(str(folder)); print("0")'
    for name, mode in (("ours", 0o700), ("theirs", 0o755)):
        run(tmp_path / name, script)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def test_the_size_limit_holds_for_damaged_entries_too(tmp_path):
    script = """
    compilation_cache.keep(str(folder))
    for n in (2, 3, 4, 5, 6):
        start(n)
    sizes = [p.stat().st_size for p in files()]
    jax.config.update("jax_compilation_cache_max_size", int(2.5 * max(sizes)))
    for path in files():
        path.unlink()
    limited = []
    for n in (2, 3, 3, 4, 5, 6):
        if n == 3:
            for path in files():
                path.write_bytes(path.read_bytes()[:-1])
        outcome = start(n)
        limited.append((len(outcome[1]), len(files()), sum(p.stat().st_size for p in files())))
    print(json.dumps([len(sizes), int(2.5 * max(sizes)), limited]))
    """
    count, limit, limited = run(tmp_path, script)
    assert count == 5
    assert all(size <= limit for _, _, size in limited)
    assert [warnings for warnings, _, _ in limited] == [0, 0, 1, 0, 0, 0]
    assert limited[-1][1] >= 2


def test_a_full_disk_leaves_no_torn_entry(tmp_path):
    script = """
    import resource, warnings
    compilation_cache.keep(str(folder))
    start()
    (path,) = files()
    size = path.stat().st_size
    path.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    with warnings.catch_warnings(record=True) as caught:
        full = start()
    left = len(files())
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    print(json.dumps([full, len(caught), left, start(), start()]))
    """
    full, warned, left, again, read = run(tmp_path, script)
    assert (warned, left) == (1, 0)
    assert full[0] == again[0] == read[0]
    assert again[1:] == [[], ["cache_misses"]] and read[1:] == [[], ["cache_hits"]]


def test_a_bucket_holds_checked_entries(tmp_path):
    script = """
    import fsspec
    from etils import epath
    from fsspec.implementations.memory import MemoryFileSystem

    class Bucket(MemoryFileSystem):
        protocol = "gs"

        @classmethod
        def _strip_protocol(cls, path):
            return MemoryFileSystem._strip_protocol(str(path).replace("gs://", "memory://"))

    fsspec.register_implementation("gcs", Bucket, clobber=True)  # what etils asks for
    compilation_cache.keep("gs://bucket/cache")
    first = start()
    (path,) = [p for p in epath.Path("gs://bucket/cache").iterdir() if p.name.endswith("-cache")]
    read = start()
    path.write_bytes(path.read_bytes()[:-1])
    print(json.dumps([first, read, start(), start()]))
    """
    first, read, damaged, again = run(tmp_path / "unused", script, EPATH_USE_TF="0")
    assert first[1:] == [[], ["cache_misses"]]
    assert read == again == [first[0], [], ["cache_hits"]]
    assert damaged[0] == first[0] and damaged[2] == ["cache_misses"]
    assert len(damaged[1]) == 1 and "gs://bucket/cache" in damaged[1][0]
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("variable", ["ANNEAL_CACHE", "JAX_COMPILATION_CACHE_DIR"])
def test_the_command_keeps_checked_entries_where_the_environment_says(variable, tmp_path):
    script = """
    from research.__main__ import _keep_compilations
    _keep_compilations()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    start()
    for path in files():
        path.write_bytes(path.read_bytes()[:-1])
    print(json.dumps([start(), start(), len(files())]))
    """
    folder = tmp_path / "xla" if variable == "ANNEAL_CACHE" else tmp_path
    others = {"JAX_COMPILATION_CACHE_DIR": "", "ANNEAL_CACHE": str(tmp_path / "other")}
    environment = others | {variable: str(tmp_path)}
    if variable == "ANNEAL_CACHE":
        script = 'os.environ.pop("JAX_COMPILATION_CACHE_DIR")\n' + textwrap.dedent(script)
    damaged, again, count = run(folder, script, **environment)
    assert len(damaged[1]) == 1 and str(folder) in damaged[1][0]
    assert again[1:] == [[], ["cache_hits"]] and count == 1
