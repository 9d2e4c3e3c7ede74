"""Whole runs in a bucket: equal to local ones, one writer, and storage that fails for a moment.

The bucket is tests/fake_gcs.py; each run is a process of its own, as gcsfs and tensorstore read
where the store is when they are imported.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.fake_gcs import Server, serving

ROOT = Path(__file__).resolve().parent.parent
WORKDIR = "gs://bucket/run"
FILES = "bucket/run/"


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"document {number} says hello to the world. " * 20)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs, for all runs of this file."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(text, cache, tmp_path_factory):
    """The metrics of an uninterrupted local run."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(None, cache, train(text, folder)).returncode == 0
    return lines((folder / "metrics.jsonl").read_text())


def train(text, workdir, *more, steps=12):
    return [
        "train",
        "--config=configs/nlp/gpt.py:tiny",
        f"--workdir={workdir}",
        "--config.data.reader=files",
        f"--config.data.path={text}",
        f"--config.steps={steps}",
        "--config.eval.batch=64",
        "--config.eval.every=6",
        "--config.checkpoint.every=4",
        "--config.checkpoint.keep=2",
        "--config.log.every=1",
        *more,
    ]


def start(server: Server | None, cache, arguments) -> subprocess.Popen:
    places = {"JAX_PLATFORMS": "cpu", "ANNEAL_CACHE": str(cache)}
    env = {**os.environ, **(server.env if server else {}), **places}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=env, text=True, **pipes)


def run(server: Server | None, cache, arguments, timeout=60) -> subprocess.CompletedProcess:
    process = start(server, cache, ["-m", "research", *arguments])
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def lines(content: str) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in content.splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in found]


def metrics(server) -> list[dict]:
    return lines(server.objects[FILES + "metrics.jsonl"].data.decode())


def steps(server) -> set[str]:
    return {name.split("/")[3] for name in server.names(FILES + "checkpoints/")}


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail("\n".join(process.communicate()))
        time.sleep(0.01)


def is_training(server) -> bool:
    found = server.objects.get(FILES + "metrics.jsonl")
    return found is not None and len(found.data) > 0


@pytest.mark.slow
def test_a_run_that_is_cut_in_a_bucket_equals_a_whole_local_one(server, text, cache, whole):
    first = run(server, cache, train(text, WORKDIR, "--stop-after=7"))
    assert first.returncode == 0, first.stderr
    assert metrics(server)[-1]["step"] == 7 and FILES + "lock" not in server.objects
    again = run(server, cache, train(text, WORKDIR))
    assert again.returncode == 0, again.stderr
    assert "going on after step 7 of 12" in again.stdout
    assert metrics(server) == whole
    assert steps(server) == {"8", "12"} and FILES + "loss.png" in server.objects
    assert FILES + "lock" not in server.objects
    assert not (ROOT / "gs:").exists()  # where absolute() would put it

    result = run(server, cache, ["evaluate", f"--workdir={WORKDIR}"])
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told.pop("step") == 12
    assert told == {k: v for k, v in whole[-1].items() if k in told}


@pytest.mark.slow
def test_a_second_writer_is_refused_with_the_host_and_pid_of_the_first(server, text, cache):
    endless = train(text, WORKDIR, "--config.checkpoint.every=500", steps=100_000)
    first = start(server, cache, ["-m", "research", *endless])
    try:
        wait_for(lambda: FILES + "lock" in server.objects, first)
        second = run(server, cache, endless)
        assert second.returncode == 3, second.stderr
        told = second.stderr.strip().splitlines()[-1]
        assert f"host {socket.gethostname()}, pid {first.pid}" in told
        wait_for(lambda: is_training(server), first)
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 75, first.communicate()
        assert FILES + "lock" not in server.objects and len(steps(server)) >= 1
    finally:
        first.kill()


@pytest.mark.slow
def test_of_two_runs_that_start_at_once_one_trains_and_one_is_refused(server, text, cache, whole):
    both = [start(server, cache, ["-m", "research", *train(text, WORKDIR)]) for _ in range(2)]
    ends = [process.communicate(timeout=60) for process in both]
    assert sorted(process.returncode for process in both) == [0, 3], ends
    assert metrics(server) == whole


@pytest.mark.slow
def test_a_store_that_is_away_for_a_moment_changes_nothing(server, text, cache, whole):
    server.fail(1, 503, "POST .*run/lock", after=True)  # it was made, and the answer was lost
    server.fail(2, 503, "POST .*run/metrics.jsonl")
    server.fail(2, 503, "POST .*uploadType=media.*checkpoints/4/")  # tensorstore's
    server.fail(2, 429, "POST .*checkpoints/8/.*uploadType=resumable")  # orbax's, through gcsfs
    server.fail(1, 503, "GET .*checkpoints/")
    server.fail(1, 500, "DELETE .*checkpoints/4/")
    result = run(server, cache, train(text, WORKDIR))
    assert result.returncode == 0, result.stderr
    assert not server.faults
    assert metrics(server) == whole and steps(server) == {"8", "12"}


@pytest.mark.slow
def test_a_run_killed_while_it_saves_goes_on_to_the_same_numbers(server, text, cache, whole):
    process = start(server, cache, ["-m", "research", *train(text, WORKDIR)])
    torn = FILES + "checkpoints/8/state/"
    wait_for(lambda: server.names(torn), process)
    process.kill()
    process.communicate()
    assert FILES + "lock" in server.objects and FILES + "checkpoints/8" not in server.objects
    again = run(server, cache, train(text, WORKDIR))
    assert again.returncode == 0, again.stderr
    assert metrics(server) == whole and steps(server) == {"8", "12"}


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(server, text, cache, whole):
    assert run(server, cache, train(text, WORKDIR, "--stop-after=8")).returncode == 0
    manifest, metadata, arrays = (
        "manifest.json.alt=",
        "state/_METADATA.alt=",
        "state/.*&tensorstore=",
    )
    for match in (manifest, metadata, arrays):
        server.fail(1, 403, f"GET .*/8/{match}")
        result = run(server, cache, train(text, WORKDIR))
        assert not server.faults and result.returncode == 74, result.stderr
        assert result.stderr.strip().splitlines()[-1].startswith("anneal: ")
        assert steps(server) == {"4", "8"}
    assert run(server, cache, train(text, WORKDIR)).returncode == 0
    assert metrics(server) == whole


@pytest.mark.slow
def test_metrics_wait_for_a_store_that_refuses_them(server, text, cache, whole):
    server.fail(2, 400, "POST .*name=run/metrics.jsonl&")
    result = run(server, cache, train(text, WORKDIR))
    assert result.returncode == 0, result.stderr
    assert not server.faults and "metrics are not written for now" in result.stderr
    assert metrics(server) == whole


@pytest.mark.slow
def test_a_run_whose_folder_could_not_be_made_ends_at_once(server, text, cache, whole):
    server.fail(1, 400, r"GET .*prefix=run/checkpoints/4/state/&maxResults=1$")
    result = run(server, cache, train(text, WORKDIR))
    assert result.returncode == 0, result.stderr
    assert not server.faults and "was not saved" in result.stdout
    assert metrics(server) == whole


LOCK = """
import time
from research import lock
lock.HEARTBEAT = 0.3
held = lock.Lock("gs://bucket/run")
held.acquire()
print("held", flush=True)
try:
    while True:
        time.sleep(0.1)
        held.check()
except lock.LockedError as error:
    print(error, flush=True)
"""


@pytest.mark.parametrize("answer", ["", "lost"])
def test_a_lock_lives_through_an_outage_and_notices_when_it_is_taken(answer, server, cache):
    if answer == "lost":
        server.fail(1, 503, "POST .*run/lock", after=True)
    process = start(server, cache, ["-c", LOCK])
    try:
        assert process.stdout.readline() == "held\n", process.communicate()
        generation = server.objects[FILES + "lock"].generation
        server.fail(8, 400, "run/lock")
        wait_for(lambda: not server.faults, process, 20)
        wait_for(lambda: server.objects[FILES + "lock"].generation > generation, process, 20)
        taken = {"token": "other", "host": "far", "pid": 7}
        server.put(FILES + "lock", json.dumps(taken).encode(), {})
        assert "taken over by another run (host far, pid 7)" in process.communicate(timeout=20)[0]
    finally:
        process.kill()


LISTINGS = """
from etils import epath
from research import lock
folder = epath.Path("gs://bucket/run/folder")
(folder / "a").write_text("1")
print(sorted(path.name for path in folder.iterdir()), flush=True)
input()
print(sorted(path.name for path in folder.iterdir()), (folder / "b").read_text(), flush=True)
"""


def test_what_another_process_writes_is_seen_at_once(server, cache):
    process = start(server, cache, ["-c", LISTINGS])
    try:
        assert process.stdout.readline() == "['a']\n", process.communicate()
        server.put(FILES + "folder/b", b"2", {})
        assert process.communicate("\n", timeout=20)[0] == "['a', 'b'] 2\n"
    finally:
        process.kill()


def test_of_sixteen_who_create_an_object_one_succeeds(server):
    url = f"{server.url}/upload/storage/v1/b/bucket/o?uploadType=media&name=a&ifGenerationMatch=0"
    answers = []

    def create(number: int) -> None:
        request = urllib.request.Request(url, data=str(number).encode(), method="POST")
        try:
            with urllib.request.urlopen(request) as answer:
                answers.append(answer.status)
        except urllib.error.HTTPError as error:
            answers.append(error.code)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200] + [412] * 15 and server.counts[412] == 15
