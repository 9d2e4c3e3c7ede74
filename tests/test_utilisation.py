"""What limited a run, on faked loops whose truth is known."""

import re
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from research import utilisation
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


def shares(sentence):
    """Returns the percentages (device, input, host) that the sentence tells."""
    return [int(number) for number in re.findall(r"(\d+)%", sentence)]


@pytest.mark.core
@pytest.mark.parametrize("runs_in_call", [False, True])
def test_every_second_of_a_known_timeline_goes_to_its_part(watch, monkeypatch, runs_in_call):
    class Clock:
        now = 0.0
        perf_counter = staticmethod(lambda: Clock.now)

    class Output:
        def __init__(self, done):
            self.done = done

        def block_until_ready(self):
            Clock.now = self.done

    monkeypatch.setattr(utilisation, "time", Clock)
    watch._runs_in_call = runs_in_call
    # from when to when the batch was waited for, when the call had returned, when it was done
    timeline = [
        (0.0, 0.5, 0.9, 1.0),  # starts the clock
        (1.0, 1.5, 1.75, 2.75),  # idle from 1.0: half a second of input, a quarter of host
        (1.75, 2.0, 2.25, 3.25),  # dispatched while the device was busy
        (2.25, 3.75, 3.75, 4.25),  # the wait counts from 3.25 only
        (4.5, 4.5, 4.75, 5.0),  # no wait: the host's half second
    ]
    for wait_start, wait_end, called, done in timeline:
        watch._waited, Clock.now = (wait_start, wait_end), called
        watch.dispatched(Output(done))
        watch._queue.join()
    numbers = watch.summary()
    expected = {"device": 2.25, "input": 1.0, "host": 0.75}
    if runs_in_call:  # the call of the second and of the last step is the device's
        expected = {"device": 2.75, "input": 1.0, "host": 0.25}
    assert {part: numbers[f"time/{part}"] for part in expected} == {
        part: seconds / 4 for part, seconds in expected.items()
    }
    assert numbers["time/step"] == 1.0 and numbers["time/duty_cycle"] == expected["device"] / 4
    assert all(key.startswith("time/") for key in numbers)
    assert "time/step" not in watch.summary()  # each step is told once
    percent = [25 * seconds for seconds in expected.values()]
    assert shares(watch.sentence()) == pytest.approx(percent, abs=0.5)


def test_a_slow_loader_is_named(watch):
    run(watch, device=0.005, loading=0.02)
    assert watch.sentence().startswith(
        "Limited by input; more loader workers (config.data.workers)"
    )
    assert shares(watch.sentence())[1] > 50


def test_slow_python_is_named(watch):
    run(watch, device=0.005, python=0.02)
    assert watch.sentence().startswith("Limited by the host")
    assert shares(watch.sentence())[2] > 50


def test_a_busy_device_is_named_although_the_loop_sleeps_too(watch):
    run(watch, device=0.04, loading=0.01, python=0.01)  # both hidden behind the device
    assert watch.sentence().startswith("Limited by the device.")
    assert shares(watch.sentence())[0] >= 90


@pytest.mark.core
def test_a_heavy_jitted_function_is_named():
    heavy = jax.jit(lambda x: jax.lax.fori_loop(0, 60, lambda i, x: jnp.tanh(x @ x), x).sum())
    x, watch = jnp.ones((200, 200)), Stopwatch()
    for _ in watch.inputs(range(6)):
        watch.dispatched(heavy(x))
    sentence = watch.sentence()
    watch.close()
    assert sentence.startswith("Limited by the device"), sentence


def test_pauses_are_no_part_of_a_step_and_are_summed_by_name(watch):
    for step in watch.inputs(range(12)):
        watch.dispatched(Step(0.01))
        if step % 4 == 0:
            with watch.pause("evaluate"):
                time.sleep(0.1)
    watch._queue.join()
    numbers = watch.summary()
    assert 0.01 <= numbers["time/step"] < 0.03  # with the pauses it would be 0.035
    assert numbers["time/duty_cycle"] > 0.9
    assert 0.3 <= numbers["time/evaluate"] < 0.4
    assert "time/evaluate" not in watch.summary()


def test_a_step_under_way_at_a_pause_counts_whole(watch):
    watch.dispatched(Step(0.01))
    watch.dispatched(Step(0.2))
    with watch.pause("save"):
        time.sleep(0.15)
    watch._queue.join()
    assert watch.summary()["time/device"] > 0.15  # 0.05 if the pause cut it short


def test_the_first_step_only_starts_the_clock(watch):
    watch.dispatched(Step(0.3))
    assert watch.sentence().startswith("No step was timed")
    watch.dispatched(Step(0.01))
    watch._queue.join()
    assert watch.summary()["time/step"] < 0.15


def test_a_failing_step_does_not_stop_the_watch(watch):
    class Broken:
        def block_until_ready(self):
            raise RuntimeError("out of memory")

    watch.dispatched(Broken())
    watch.dispatched(Step(0.01))
    watch._queue.join()
    assert watch.summary()["time/step"] > 0


def test_the_loop_is_not_held_up_by_the_device(watch):
    start = time.perf_counter()
    run(watch, steps=10, device=0.1)
    watch.summary()
    assert time.perf_counter() - start < 0.5


def test_the_thread_ends_and_memory_is_told(watch):
    numbers = watch.summary()
    assert 0.01 < numbers["time/host_memory_gb"] <= numbers["time/host_memory_peak_gb"] < 1000
    other = Stopwatch()
    other.close()
    assert not other._thread.is_alive()
    assert sum(thread.name == "stopwatch" for thread in threading.enumerate()) == 1
    other.sentence()  # still answers


def test_the_loop_thread_pays_little(watch):
    x, steps = jnp.float32(0), 500
    start = time.perf_counter()
    for _ in watch.inputs(range(steps)):
        watch.dispatched(x)
    cost = (time.perf_counter() - start) / steps
    print(f"{cost * 1e6:.1f} us a step")
    assert cost < 200e-6  # 1 to 3 us on an idle machine
