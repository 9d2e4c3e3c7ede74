"""A run in which nothing happens ends, with the stacks of all threads."""

import subprocess
import sys
import time

import pytest

from research.watchdog import Watchdog

HANGS = """
import sys, threading, time
from research.watchdog import Watchdog
def inner_wait():
    time.sleep(600)
with Watchdog(1.0, sys.argv[1]) as watchdog:
    for _ in range(15):
        watchdog.beat()
        time.sleep(0.1)
    print("alive", flush=True)
    inner_wait()
"""
# Code that holds the interpreter keeps the thread from running: only C code can end that.
HOLDS = """
import ctypes, sys, time
from research.watchdog import Watchdog
with Watchdog(1.0, None) as watchdog:
    time.sleep(0.3)
    ctypes.PyDLL(None).sleep(600)
"""


@pytest.mark.fault("hang")
def test_a_hang_dumps_all_stacks_and_exits_with_70(tmp_path, record_property):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 70 and done.stdout == "alive\n"
    assert "no step for 1 s" in done.stderr and "inner_wait" in done.stderr
    (file,) = tmp_path.glob("stacks-*.txt")
    assert "inner_wait" in file.read_text()
    seconds = time.monotonic() - start
    record_property("observed", f"exit 70 with stacks, {seconds:.1f} s after the start (limit 1 s)")


def test_code_that_holds_the_interpreter_is_ended_too():
    done = subprocess.run([sys.executable, "-c", HOLDS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Timeout" in done.stderr


def test_a_run_that_ends_or_has_no_limit_is_left_alone():
    with Watchdog(0.3) as watchdog:
        watchdog.beat()
    with Watchdog(None):
        time.sleep(0.5)
    time.sleep(0.5)
