"""Several processes of one run on one machine (jax.distributed, gloo): signals, kills, resume."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from research import build, manifest, workdir
from research.checkpoint import Checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


class Job:
    """`count` processes that run the same command."""

    def __init__(self, text, cache, folder, count, *more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        values = {
            "data.reader": "files", "data.path": text, "data.tokenizer": "bytes",
            "eval.batch": 64, "eval.every": None, "checkpoint.every": 20, "log.every": 1,
            "log.tensorboard": False, "steps": 4000,
        }  # fmt: skip
        arguments = [f"--config.{key}={value}" for key, value in values.items()]
        command = [sys.executable, "-m", "research", "train", "--config=configs/nlp/gpt.py:tiny"]
        command += [f"--workdir={folder}", *arguments, *more]
        self.folder, self.logs, self.processes = folder, [], []
        for index in range(count):
            env = os.environ | dict(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1")
            env |= dict(ANNEAL_CACHE=str(cache), JAX_PROCESS_ID=str(index))
            if count > 1:
                env |= dict(JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}")
                env |= dict(JAX_NUM_PROCESSES=str(count))
            self.logs.append(folder.parent / f"{folder.name}-{count}-{index}.log")
            with self.logs[-1].open("w") as log:
                self.processes.append(
                    subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
                )

    def until(self, lines):
        """Waits until metrics.jsonl has so many lines."""
        path, end = self.folder / "metrics.jsonl", time.monotonic() + 180
        while not path.exists() or path.read_text().count("\n") < lines:
            assert time.monotonic() < end and all(p.poll() is None for p in self.processes), (
                self.log()
            )
            time.sleep(0.01)

    def wait(self, seconds=120):
        return [process.wait(seconds) for process in self.processes]

    def log(self):
        return "\n".join(log.read_text()[-3000:] for log in self.logs)

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def job(text, cache):
    jobs = []

    def make(*arguments):
        jobs.append(Job(text, cache, *arguments))
        return jobs[-1]

    yield make
    for each in jobs:
        each.end()


def numbers(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return {line["step"]: line["loss"] for line in numbers(folder) if line["split"] == "train"}


def goes_on_with_one_and_with_four(job, folder, stopped):
    """The values of step `stopped` are restored to the bit, and the batches are the same."""
    run = build.build(workdir.read_config(folder), jax.devices()[:4], with_data=False)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        state = checkpoints.restore(stopped, run.abstract)  # holds every checksum
    assert int(state.step) == stopped
    found = {}
    for count in (1, 4):
        copy = folder.parent / f"on{count}"
        subprocess.run(["cp", "-r", str(folder), str(copy)], check=True)
        again = job(copy, count, f"--stop-after={stopped + 6}")
        assert again.wait(300) == [0] * count, again.log()
        assert f"going on after step {stopped} of 4000" in again.logs[0].read_text()
        found[count] = losses(copy)
        assert manifest.read(copy / "checkpoints" / str(stopped + 6))["step"] == stopped + 6
    after = range(stopped + 1, stopped + 7)
    for step in after:  # equal batches and weights; the order of additions differs
        assert abs(found[1][step] - found[4][step]) < 1e-5


@pytest.mark.fault("SIGTERM to one of two processes")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_saves_the_same_step_on_all_and_any_number_goes_on(
    job, tmp_path, number, record_property
):
    folder = tmp_path / "run"
    two = job(folder, 2)
    two.until(25)
    two.processes[1].send_signal(number)
    assert two.wait() == [75, 75], two.log()
    steps = [
        json.loads(p.read_text())["content"]["step"]
        for p in folder.glob("checkpoints/*/manifest.json")
    ]
    stopped = max(steps)
    assert numbers(folder)[-1]["step"] == stopped and not (folder / "lock").exists()
    record_property("observed", f"{number.name}: both saved step {stopped}, both exit 75")
    if number is signal.SIGINT:
        return
    goes_on_with_one_and_with_four(job, folder, stopped)


@pytest.mark.fault("kill -9 of one of two processes")
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_other_ends_at_once_and_the_run_goes_on(
    job, tmp_path, victim, record_property
):
    folder = tmp_path / "run"
    two = job(folder, 2)
    two.until(25)
    begin = time.monotonic()
    two.processes[victim].kill()
    code = two.processes[1 - victim].wait(60)
    seconds = time.monotonic() - begin
    # When the coordinator dies, its service may end the other before this code can.
    assert code == 70 or (victim == 0 and code == -signal.SIGABRT), two.log()
    assert "another process of this run is gone" in two.logs[1 - victim].read_text() or victim == 0
    if victim == 1:
        goes_on_with_one_and_with_four(job, folder, 20)
    again = job(folder, 2, "--stop-after=41")
    assert again.wait(300) == [0, 0], again.log()
    assert "going on after step 20" in again.logs[0].read_text()
    assert sorted(losses(folder)) == list(range(1, 42))
    record_property(
        "observed", f"process {victim} killed: the other ended {seconds:.1f} s later "
        f"(exit {code}); the next start went on from step 20"
    )  # fmt: skip


@pytest.mark.fault("hung collective")
def test_a_stopped_process_ends_the_others_within_the_deadline(job, tmp_path, record_property):
    folder = tmp_path / "run"
    two = job(folder, 2, "--config.guard.hang_after=20.0")
    two.until(25)
    begin = time.monotonic()
    two.processes[1].send_signal(signal.SIGSTOP)
    assert two.processes[0].wait(60) == 70, two.log()
    assert "no step for" in two.logs[0].read_text()
    seconds = time.monotonic() - begin
    record_property("observed", f"exit 70 with stacks after {seconds:.0f} s (limit 20 s)")


@pytest.mark.fault("two writers on many hosts")
def test_a_refused_lock_ends_every_process_of_the_second_run(job, tmp_path):
    folder = tmp_path / "run"
    first = job(folder, 1)
    first.until(3)
    second = job(folder, 2)
    assert second.wait(120) == [3, 3], second.log()
    assert f"pid {first.processes[0].pid}" in second.logs[0].read_text()


SLOW_HOST = """
import time, sys
from research.data import source
real = source.prefetch
def late(iterator, put, depth=2):
    for item in real(iterator, put, depth):
        time.sleep({seconds})
        yield item
from research import build
build.prefetch = late
from research.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.fault("straggler")
def test_a_slow_host_is_named(job, tmp_path, monkeypatch, record_property):
    real, started = subprocess.Popen, []

    def popen(command, **options):  # the second process is slow
        seconds = 0.3 if started else 0.0
        started.append(command)
        return real([command[0], "-c", SLOW_HOST.format(seconds=seconds), *command[3:]], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    two = job(tmp_path / "run", 2, "--config.steps=12")
    assert two.wait(180) == [0, 0], two.log()
    said = [line for line in two.logs[0].read_text().splitlines() if "is slow" in line]
    assert said and all("host 1 is slow" in line for line in said), two.log()
    record_property("observed", said[0])


FAILING = """
import sys, jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from research import checkpoint, hosts, manifest, saver
hosts.join()
saver.RETRY = 0.0
folder, where = sys.argv[1:]
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
make = jax.jit(lambda x: jnp.arange(64.0) + x, out_shardings=NamedSharding(mesh, P("data")))
checkpoints = checkpoint.Checkpoints(folder, keep=9)
keeper, host = saver.Saver(checkpoints, every=2), jax.process_index()
if where == "manifest":  # on the first process only, which alone writes it
    write = manifest.write
    def fails(to, content):
        if content["step"] in (4, 5):
            raise OSError("No space left on device")
        write(to, content)
    manifest.write = fails
elif where == "folder":  # looked at by the first one for all
    place = checkpoints._make_place
    def fails(step):
        if step in (4, 5):
            raise OSError("No space left on device")
        return place(step)
    checkpoints._make_place = fails
else:
    save = checkpoints._orbax.save
    def fails(to, **options):
        if int(to.name) == 4 and host == int(where):
            raise OSError("No space left on device")
        save(to, **options)
    checkpoints._orbax.save = fails
try:
    for step in range(1, 11):
        state = {"params": {"w": make(step)}}
        jax.block_until_ready(state)
        if keeper.wants(step):
            keeper.save(step, state, {}, {})
    keeper.finish(11, state, {}, {})
    print("ended", checkpoints.steps(), keeper.failed, flush=True)
except hosts.PeerError as error:
    print("ended", error, flush=True)
import os; os._exit(0)
"""


@pytest.mark.parametrize("where", ["folder", "manifest", "0", "1"])
def test_storage_that_fails_is_handled_alike_on_all_processes(tmp_path, where):
    """What the first process finds out is tried again by all. What fails on one only ends it, and
    so the run: the others wait for it where there is no way back."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for index in range(2):
        env = os.environ | dict(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1")
        env |= dict(JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}", JAX_NUM_PROCESSES="2")
        env |= dict(JAX_PROCESS_ID=str(index))
        command = [sys.executable, "-c", FAILING, str(tmp_path / "checkpoints"), where]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        processes.append(subprocess.Popen(command, env=env, **pipes))
    try:
        if where.isdecimal():
            told = processes[int(where)].communicate(timeout=100)[0]
            assert "ended" in told and "No space left on device; start again" in told
            return
        outputs = [process.communicate(timeout=100)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    told = [[line for line in o.splitlines() if line.startswith("ended")] for o in outputs]
    assert told[0] and told[0] == told[1], outputs
    failed = {"folder": 2, "manifest": 1}[where]
    assert f"ended [2, 6, 8, 10, 11] {failed}" in told[0][0]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["10", "11", "2", "6", "8"]
