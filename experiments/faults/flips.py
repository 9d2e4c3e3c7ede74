"""Random bit flips over every kind of checkpoint file: is any restored silently wrong?

    python -m experiments.faults.flips --count=1000

A state with float32, bfloat16, int8, bool and int32 leaves is saved once. Each trial copies the
step, flips one random bit of one file (half of them in the arrays' own bytes, the others in equal
shares over the kinds of files), truncates, empties, zeroes or deletes it, and restores. Outcomes:

    refused          the file is named, nothing is restored
    benign           restored, and every array has its bits
    SILENTLY WRONG   restored with other bits

Each damage is then restored without looking at the digests of the files (`arrays alone`), which
shows what the checksums of the arrays hold by themselves, and with orbax alone, as it would be
without this project's checks.
"""

import argparse
import collections
import json
import random
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from research import manifest
from research.checkpoint import Checkpoints
from research.manifest import DamagedError

RESULTS = Path(__file__).parent / "results"
HARMS = ("truncated", "emptied", "first page zeroed", "deleted")


def make_state() -> dict:
    """Returns leaves of every width, as training, compression and masks have them."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, dtype=np.float32))

    return {
        "params": {"w": normal(256, 256), "half": normal(256, 256).astype(jnp.bfloat16)},
        "quantised": {"w": (50 * normal(256, 256)).astype(jnp.int8), "scale": normal(256)},
        "mask": normal(64, 64) > 0,
        "step": jnp.int32(7),
    }


def bits(state: dict) -> list[bytes]:
    """Returns the bytes of every leaf."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def kind(name: str) -> str:
    """Returns what a file of the step is: its name, or what its folder holds."""
    parent = Path(name).parent.name
    return f"{parent}/*" if parent in ("d", "array_metadatas") else name


def damage(path: Path, harm: str, rng: random.Random) -> str:
    """Damages a file; returns how."""
    size = path.stat().st_size
    if harm == "bit flipped":
        data, place, bit = bytearray(path.read_bytes()), rng.randrange(size), rng.randrange(8)
        data[place] ^= 1 << bit
        path.write_bytes(data)
        return f"bit {bit} of byte {place}"
    if harm == "first page zeroed":
        data = path.read_bytes()
        path.write_bytes(b"\0" * min(size, 4096) + data[4096:])
    elif harm == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: size // 2 if harm == "truncated" else 0])
    return harm


def restored(folder: Path, abstract: dict, truth: list[bytes], look: str) -> tuple[str, str]:
    """Returns the outcome of a restore, and the message of a refusal."""
    try:
        if look == "orbax":
            state = _with_orbax(folder, abstract)
        else:
            with Checkpoints(folder) as checkpoints:
                if look == "arrays alone":
                    checkpoints._notes[1] = manifest.read(folder / "1")
                    checkpoints._sound.add(1)
                state = checkpoints.restore(1, abstract)
    except DamagedError as error:
        return "refused", str(error)
    except Exception as error:  # orbax raises what it likes; this project's own must be typed
        outcome = "refused" if look == "orbax" else "UNTYPED ERROR"
        return outcome, f"{type(error).__name__}: {error}"
    return ("benign" if bits(state) == truth else "SILENTLY WRONG"), ""


def _with_orbax(folder: Path, abstract: dict) -> dict:
    from research import tree

    leaves = tree.flatten(abstract)
    args = ocp.args.PyTreeRestore(leaves, ocp.checkpoint_utils.construct_restore_args(leaves))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(folder / "1" / "state", args=args)
    return tree.map_named(lambda path, _: found[path], abstract)


def main() -> None:
    """Measures, prints and writes results/flips.jsonl."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    rng, state = random.Random(0), make_state()
    truth, counts = bits(state), collections.defaultdict(collections.Counter)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state)
    with tempfile.TemporaryDirectory() as temporary, (RESULTS / "flips.jsonl").open("w") as file:
        source, copy = Path(temporary, "source"), Path(temporary, "copy")
        with Checkpoints(source) as checkpoints:
            checkpoints.save(1, state)
        kinds = collections.defaultdict(list)
        for name in manifest.names(source / "1"):
            kinds[kind(name)].append(name)
        others = sorted(kinds.keys() - {"d/*"})  # every second flip hits the arrays' own bytes
        flips = ["d/*" if i % 2 else others[i // 2 % len(others)] for i in range(arguments.count)]
        trials = [("bit flipped", which) for which in flips]
        trials += [(harm, which) for which in sorted(kinds) for harm in HARMS]
        for harm, which in trials:
            line, seed = {"file": rng.choice(kinds[which]), "harm": harm}, rng.random()
            for look in ("all checks", "arrays alone", "orbax"):
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(source, copy)
                line["how"] = damage(copy / "1" / line["file"], harm, random.Random(seed))
                outcome, message = restored(copy, abstract, truth, look)
                name = Path(line["file"]).name
                if look == "all checks" and outcome == "refused" and name not in message:
                    outcome = "refused, file not named"
                line[look] = outcome if outcome != "UNTYPED ERROR" else f"{outcome}: {message}"
            for look in ("all checks", "arrays alone", "orbax"):
                what = "flips" if harm == "bit flipped" else "other damage"
                counts[look][f"{what}: {line[look]}"] += 1
            print(json.dumps(line), file=file, flush=True)
        summary = {look: dict(sorted(found.items())) for look, found in counts.items()}
        print(json.dumps({"kinds": sorted(kinds), "summary": summary}), file=file)
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
