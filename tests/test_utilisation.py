"""What limited a run, on faked loops whose truth is known."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from research.utilisation import Stopwatch


class Step:
    """A fake step of a device that runs `seconds`, one after the other, beside the loop."""

    free = 0.0

    def __init__(self, seconds):
        Step.free = max(time.perf_counter(), Step.free) + seconds
        self._done = Step.free

    def block_until_ready(self):
        time.sleep(max(0.0, self._done - time.perf_counter()))


def slow(count, seconds):
    for _ in range(count):
        time.sleep(seconds)
        yield None


@pytest.fixture
def watch():
    watch = Stopwatch()
    watch._runs_in_call = False  # the fake device is asynchronous
    yield watch
    watch.close()


def run(watch, *, steps=12, device=0.0, loading=0.0, python=0.0):
    for _ in watch.inputs(slow(steps, loading)):
        watch.dispatched(Step(device))
        time.sleep(python)


def test_a_slow_loader_is_named(watch):
    run(watch, device=0.005, loading=0.02)
    assert watch.sentence().startswith("Limited by input; more loader workers (config.data")
    assert "waited 7" in watch.sentence()


def test_slow_python_is_named(watch):
    run(watch, device=0.005, python=0.02)
    sentence = watch.sentence()
    assert sentence.startswith("Limited by the host") and "0% for batches and 7" in sentence


def test_a_busy_device_is_named_although_the_loop_sleeps_too(watch):
    run(watch, device=0.03, loading=0.01, python=0.01)  # both hidden behind the device
    sentence = watch.sentence()
    assert sentence.startswith("Limited by the device. The device was busy"), sentence


@pytest.mark.core
def test_a_heavy_jitted_function_is_named():
    heavy = jax.jit(lambda x: jax.lax.fori_loop(0, 60, lambda i, x: jnp.tanh(x @ x), x).sum())
    x, watch = jnp.ones((200, 200)), Stopwatch()
    for _ in watch.inputs(range(6)):
        watch.dispatched(heavy(x))
    sentence = watch.sentence()
    watch.close()
    assert sentence.startswith("Limited by the device"), sentence


def test_the_parts_of_a_step_are_those_of_the_loop_and_add_up(watch):
    run(watch, steps=11, device=0.010, loading=0.015, python=0.005)
    watch._queue.join()
    numbers = watch.summary()
    assert numbers["time/device"] == pytest.approx(0.010, abs=0.003)
    assert numbers["time/input"] + numbers["time/host"] == pytest.approx(0.010, abs=0.003)
    parts = numbers["time/device"] + numbers["time/input"] + numbers["time/host"]
    assert numbers["time/step"] == pytest.approx(parts)
    assert numbers["time/step"] == pytest.approx(0.020, abs=0.004)
    assert numbers["time/duty_cycle"] == pytest.approx(0.5, abs=0.1)
    assert all(key.startswith("time/") for key in numbers)
    assert "time/step" not in watch.summary()  # each step is told once


def test_pauses_are_no_part_of_a_step_and_are_summed_by_name(watch):
    for step in watch.inputs(range(12)):
        watch.dispatched(Step(0.005))
        if step % 4 == 0:
            with watch.pause("eval"):
                time.sleep(0.08)
    watch._queue.join()
    numbers = watch.summary()
    assert numbers["time/step"] == pytest.approx(0.005, abs=0.002)
    assert numbers["time/duty_cycle"] > 0.9
    assert numbers["time/eval"] == pytest.approx(0.24, abs=0.03)


def test_the_first_step_only_starts_the_clock(watch):
    watch.dispatched(Step(0.2))
    assert watch.sentence().startswith("No step was timed")
    watch.dispatched(Step(0.01))
    watch._queue.join()
    assert watch.summary()["time/step"] < 0.05


def test_a_failing_step_neither_stops_nor_hides_in_the_watch(watch):
    class Broken:
        def block_until_ready(self):
            raise RuntimeError("out of memory")

    watch.dispatched(Broken())
    watch.dispatched(Step(0.01))
    watch._queue.join()
    assert watch.summary()["time/step"] > 0


def test_a_run_is_not_held_up_by_the_device(watch):
    start = time.perf_counter()
    run(watch, steps=10, device=0.05)
    watch.summary()
    assert time.perf_counter() - start < 0.2


def test_the_thread_ends_and_memory_is_told(watch):
    numbers = watch.summary()
    assert 0 < numbers["time/host_memory_gb"] <= numbers["time/host_memory_peak_gb"] < 1000
    other = Stopwatch()
    other.close()
    assert not other._thread.is_alive()
    assert sum(thread.name == "stopwatch" for thread in threading.enumerate()) == 1
    other.sentence()  # still answers


def test_the_loop_thread_pays_little(watch):
    x, steps = jnp.float32(0), 500
    start = time.perf_counter()
    for _ in range(steps):
        pass
    empty = time.perf_counter() - start
    start = time.perf_counter()
    for _ in watch.inputs(range(steps)):
        watch.dispatched(x)
    cost = (time.perf_counter() - start - empty) / steps
    print(f"{cost * 1e6:.1f} us a step")
    assert cost < 200e-6  # measured 5 to 15; the bound leaves room for a busy machine
