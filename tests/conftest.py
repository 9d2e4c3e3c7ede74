"""Eight CPU devices for every test, and one compilation for each program of the session."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
# Many tests build the same tiny run again: the second time it is read, as a user's second start is.
CACHE = tempfile.mkdtemp(prefix="anneal-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A folder of small text files, the same every time. Tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "far", "away", "\n"]
    for number in range(60):
        (folder / f"{number}.txt").write_text(" ".join(rng.choice(words, 200)))
    return folder


@pytest.fixture(scope="session")
def whole(text, tmp_path_factory):
    """A run of tests/faulty_runs.py that nothing happened to. Tests damage copies of it."""
    from research.train import train
    from tests.faulty_runs import load

    folder = tmp_path_factory.mktemp("whole") / "run"
    train(load(text), str(folder))
    return folder


@pytest.fixture(autouse=True)
def nothing_left_running():
    yield
    from tests.faulty_runs import STARTED

    while STARTED:
        with STARTED.pop() as process:
            process.kill()
