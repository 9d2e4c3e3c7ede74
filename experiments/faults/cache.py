"""What one flipped bit in the compilation cache does, with our check and with jax alone.

    python -m experiments.faults.cache --trials=40

A small program is compiled once into a cache. Then, trial by trial, one random bit of its entry is
flipped and a fresh process runs the program on that cache: compressed by zlib or by zstandard,
checked (research/compilation_cache.py) or plain. Each of the four meets `--trials` flips. What the
process did is one of

    recompiled   refused the entry, compiled anew, right answer
    unnoticed    ran the damaged entry, right answer all the same
    wrong        ran the damaged entry, another answer
    crashed      died of a signal or an error, or hung

One JSON line per trial and a summary: results/cache.jsonl, written anew by each run. That of
jax 0.12 (20 trials) is kept beside it as cache-jax-0.12.jsonl.
"""

import argparse
import collections
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "cache.jsonl"
DIGEST = 32  # the bytes that our check appends to an entry of plain jax
MISSING = ("zstandard", "compression")  # jax falls back to zlib where neither can be imported
TIMEOUT_S = 60


def run_program(folder: str, compression: str, checked: bool) -> dict:
    """Runs the program on the cache in `folder`; returns its answer and whether it was compiled."""
    if compression == "zlib":
        sys.modules.update(dict.fromkeys(MISSING))
    import jax
    import jax.numpy as jnp
    import numpy as np

    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if checked:
        from research import compilation_cache

        compilation_cache.keep(folder)
    else:
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # as `keep` sets it
        jax.config.update("jax_compilation_cache_dir", folder)

    @jax.jit
    def loss(w, x):
        for layer in w:
            x = jnp.tanh(x @ layer) + 0.1 * x / (1 + jnp.linalg.norm(x, axis=-1, keepdims=True))
        return jnp.sum(jax.nn.log_softmax(x)[:, 0])

    rng = np.random.default_rng(0)
    w, x = (rng.normal(size=s).astype(np.float32) for s in ((4, 64, 64), (32, 64)))
    answer = np.asarray(loss(w, x))
    is_read = any(event.endswith("/cache_hits") for event in events)
    return {"answer": answer.tobytes().hex(), "value": float(answer), "read": is_read}


def start(folder: Path, compression: str, checked: bool) -> tuple[dict | None, str, float]:
    """Returns what the process found (None: it died), how it ended or what it said, seconds."""
    command = [sys.executable, "-m", "experiments.faults.cache", f"--folder={folder}"]
    command += [f"--compression={compression}"] + ["--checked"] * checked
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONFAULTHANDLER": ""}
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return None, "hung", time.perf_counter() - begin
    seconds = time.perf_counter() - begin
    if done.returncode:
        dead = done.returncode < 0
        end = signal.Signals(-done.returncode).name if dead else done.stderr.strip()[-200:]
        return None, end, seconds
    said = re.findall("Error reading .*|[^/]* is damaged .*", done.stderr)
    return json.loads(done.stdout.splitlines()[-1]), " ".join(said), seconds


def outcome(found: dict | None, right: str) -> str:
    """Names what a trial did, in the words of the module's docstring."""
    if found is None:
        return "crashed"
    if found["answer"] != right:
        return "wrong"
    return "unnoticed" if found["read"] else "recompiled"


def main() -> None:
    """Runs the trials, prints and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=40, help="flips for each of the four")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="run the program once, on this cache")
    parser.add_argument("--compression", choices=("zlib", "zstandard"), default="zstandard")
    parser.add_argument("--checked", action="store_true")
    a = parser.parse_args()
    if a.folder:
        print(json.dumps(run_program(a.folder, a.compression, a.checked)))
        return
    import jax

    RESULTS.parent.mkdir(exist_ok=True)
    counts, seconds, sizes = (collections.defaultdict(dict) for _ in range(3))
    with open(RESULTS, "w") as file, tempfile.TemporaryDirectory() as top:

        def write(line: dict) -> None:
            print(json.dumps(line), flush=True)
            print(json.dumps(line), file=file, flush=True)

        for compression in ("zlib", "zstandard"):
            for checked in (True, False):
                name = f"{compression}, {'checked' if checked else 'plain jax'}"
                folder = Path(top, name.replace(", ", "-").replace(" ", "-"))
                right = start(folder, compression, checked)[0]["answer"]
                (path,) = folder.glob("*-cache")
                whole = path.read_bytes()
                sizes[name] = len(whole)
                rng = random.Random(a.seed)
                times, kinds = [], collections.Counter()
                for trial in range(a.trials):
                    bit = rng.randrange(8 * (len(whole) - DIGEST * checked))
                    path.write_bytes(flip(whole, bit))
                    found, said, took = start(folder, compression, checked)
                    kind = outcome(found, right)
                    kinds[kind] += 1
                    times.append(took)
                    value = found and found["value"]
                    line = {"cache": name, "trial": trial, "bit": bit, "outcome": kind}
                    write(line | {"value": str(value), "said": said})
                counts[name], seconds[name] = dict(kinds), statistics.median(times)
        summary = {"outcomes": counts, "entry_bytes": sizes, "median_process_s": seconds}
        versions = {"python": sys.version.split()[0], "jax": jax.__version__}
        write({"summary": summary, "trials_each": a.trials, "seed": a.seed} | versions)


def flip(data: bytes, bit: int) -> bytes:
    """Returns `data` with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


if __name__ == "__main__":
    main()
