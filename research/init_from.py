"""The state that a new run begins with: its model's own, or parameters from elsewhere
(config.init_from): a Hugging Face folder, `hf:FOLDER`, or the latest checkpoint of a workdir.

    init_from = "hf:llama"
    init_rules = ((r"^head$", "skip"), (r"^layers/([01])/", r"layers/1\\1/"))

Each parameter is taken from the same path there, if there is one. The first rule whose regex
occurs in its path says otherwise: "skip" leaves it as the model makes it, a path (with \\1 as in
re.sub) is where to take it from. Paths are those of single layers, so that a scanned model may come
from an unrolled one. Of a run that kept an average of its weights the average is taken.
"""

import difflib
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research import build, hosts, manifest, tree, workdir
from research.arguments import InputError
from research.checkpoint import Checkpoints
from research.data import tokenizer as tokenizer_lib
from research.models.convolutions import pixel_statistics
from research.step import TrainState
from research.storage import StoreError

# Where variables hold parameters and statistics; what is left are the paths that rules know.
PLACES = re.compile(r"^(params|model_state|frozen/params)/")
AVERAGED = re.compile(r"^(ema/params|ema/model_state|frozen/params)/")
# What a model computes beside its shapes. Nobody changes the first on purpose; the others may be
# part of a plan (a longer context, a head of its own), and are said; the last are free.
FIXED = ("norm", "norm_epsilon", "mlp", "bias")
SAID = ("head", "positions", "rope_theta", "max_distance", "tie_embeddings", "window", "top_k")
SAID += ("capacity", "room", "base_width", "num_layers", "decoder_layers", "mean", "std")
FREE = ("labels", "dropout", "attention", "remat", "scan", "unroll")

Plan = dict[str, tuple[str, str | None]]  # of each path: what happens to it, and its source


class Origin(NamedTuple):
    """Where parameters come from."""

    name: str
    model: dict[str, Any]  # keywords of its config.model
    tokenizer: str | None  # its fingerprint
    shapes: dict[str, tuple[int, ...]]  # of each path
    # (paths, leaf, stacked) -> onto the mesh, with the type and sharding of the leaf, whose first
    # `stacked` axes the paths fill; of some of them the rows, on one axis
    read: Callable[[list[str], jax.ShapeDtypeStruct, int], jax.Array]
    unused: tuple[str, ...] = ()  # what else lies there


def fresh_state(run: build.Run, folder: str) -> TrainState:
    """Returns the state of step 0, says what config.init_from gave to it, and writes that down as
    init_from.json in the workdir `folder`.

    Raises InputError for an origin that cannot be read or is another model, for a rule that matches
    nothing, for a parameter of another shape there, and when nothing at all was taken.
    """
    if run.config.init_from is None:
        return build.init(run)
    abstract = {"params": run.abstract.params, "model_state": run.abstract.model_state}
    if run.abstract.frozen:
        abstract["frozen"] = run.abstract.frozen
    wanted = {PLACES.sub("", path): leaf for path, leaf in tree.flatten(abstract).items()}
    with jax.set_mesh(run.mesh), open_origin(run) as origin:
        plan = choose(run.config.init_rules, wanted, origin)
        notes = compare(run, wanted, plan, origin)
        leaves = {}
        if any(kind != "loaded" for kind, _ in plan.values()):
            shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            draw = jax.jit(
                lambda seed: run.model.init(jax.random.key(seed)), out_shardings=shardings
            )
            leaves = tree.flatten(draw(np.uint32(run.config.seed)))
        for path, leaf in tree.flatten(abstract).items():  # one by one: what was drawn is given up
            name = PLACES.sub("", path)
            sources = [plan[layer][1] for layer in tree.unrolled_paths(name, leaf)]
            if any(sources):
                leaves[path] = _read(
                    leaf, tree.stacked_axes(name), sources, leaves.get(path), origin
                )
    for note in notes:
        hosts.warn(note)
    hosts.say(table(wanted, plan, origin.name))
    unused = sorted(origin.shapes.keys() - {source for _, source in plan.values()})
    unused += origin.unused
    if unused:
        hosts.warn(f"{origin.name} holds {len(unused)} more that nothing takes: {_some(unused)}")
    report = {"from": origin.name, "notes": notes, "parameters": plan, "unused": unused}
    hosts.on_first(lambda: _write(report, workdir.epath.Path(folder)))
    return build.init(run, tree.map_named(lambda path, _: leaves.pop(path), abstract))


def _write(report: dict, folder: workdir.epath.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "init_from.json").write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise StoreError(f"{folder / 'init_from.json'} cannot be written: {error}") from error


def choose(rules: tree.Rules, wanted: dict[str, Any], origin: Origin) -> Plan:
    """Returns for each path what happens to it, "loaded", "skipped" or "fresh" (the origin has
    none), and the path it comes from. Raises InputError as `fresh_state`."""
    tree.check_patterns((pattern for pattern, _ in rules), "config.init_rules")
    plan: Plan = {}
    for path in (n for whole, leaf in wanted.items() for n in tree.unrolled_paths(whole, leaf)):
        pattern, action = next((rule for rule in rules if re.search(rule[0], path)), (None, None))
        source = path if action is None else _source(pattern, action, path)
        if source is None:
            plan[path] = ("skipped", None)
        elif source in origin.shapes:
            plan[path] = ("loaded", source)
        elif action is None:
            plan[path] = ("fresh", None)
        else:
            raise InputError(
                f"config.init_rules: ({pattern!r}, {action!r}) takes {path} from {source}, which "
                f"{origin.name} does not have; there are {_some(_like(source, origin.shapes))}"
            )
    for pattern, action in rules:
        if not any(re.search(pattern, path) for path in plan):
            raise InputError(
                f"config.init_rules: ({pattern!r}, {action!r}) matches no parameter; there are "
                f"{_some(_like(pattern, plan))}"
            )
    if not any(kind == "loaded" for kind, _ in plan.values()):
        raise InputError(
            f"config.init_from={origin.name} gave nothing: it has {_some(origin.shapes)}, wanted "
            f"are {_some(plan)}; name paths in config.init_rules, or leave init_from out"
        )
    return plan


def _source(pattern: str, action: str, path: str) -> str | None:
    try:
        return None if action == "skip" else re.search(pattern, path).expand(action)
    except (re.error, IndexError) as error:
        raise InputError(
            f"config.init_rules: {action!r} is no path for {pattern!r}: {error}"
        ) from None


def _like(text: str, paths: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(text, list(paths), cutoff=0)


def _some(paths: Iterable[str]) -> str:
    return ", ".join(list(paths)[:3]) + " ..."


def compare(run: build.Run, wanted: dict[str, Any], plan: Plan, origin: Origin) -> list[str]:
    """Returns what differs and may, in sentences. Raises InputError for a parameter of another
    shape there, and for a model that would compute something else with the same parameters."""
    here, there = run.config.model.to_dict(), dict(origin.model)
    same = here["name"] == there["name"]
    for model in (here, there):
        if "mean" in model and model.get("channels"):  # None is a choice there
            pixels = pixel_statistics(model["channels"], model["mean"], model["std"])
            model["mean"], model["std"] = pixels
    differs = [key for key in there if there[key] != here.get(key) and key not in FREE and same]
    advice = " ".join(f"--config.model.{k}={there[k]}" for k in differs if there[k] is not None)
    advice = f"set {advice}" if advice else "change config.model"
    if odd := [key for key in differs if key in FIXED]:
        raise InputError(
            f"config.init_from={origin.name} has {odd[0]}={there[odd[0]]}, this model "
            f"{here.get(odd[0])}: the same parameters would mean something else; {advice}"
        )
    axes = jax.tree_util.tree_leaves_with_path(run.model.axes, is_leaf=lambda x: type(x) is tuple)
    of_tokens = {tree.path_name(path) for path, names in axes if "vocab" in names}
    takes_tokens = False
    for whole, leaf in wanted.items():
        shape = tuple(leaf.shape[tree.stacked_axes(whole) :])
        for path in tree.unrolled_paths(whole, leaf):
            if (source := plan[path][1]) is None:
                continue
            own, other = shape, origin.shapes[source]
            if whole in of_tokens:  # padded: equal shapes may still be other vocabularies
                takes_tokens = True
                own = (f"{here.get('vocab_size')} tokens", *own)
                other = (f"{there.get('vocab_size')} tokens", *other)
            if own != other:
                raise InputError(
                    f"parameter {path} is {_shape(own)}, in {origin.name} {source} is "
                    f"{_shape(other)}; {advice}, or skip it: --config.init_rules="
                    f"\"(('^{path}$', 'skip'),)\""
                )
    notes = [
        f"config.model.{key}={here.get(key)}, but {origin.name} was trained with {there[key]}"
        for key in differs
        if key in SAID
    ]
    if same and "mean" in here and "mean" not in there:
        notes.append(
            f"{origin.name} does not say how its pixels are scaled; they are by "
            f"config.model.mean={here['mean']} and std={here['std']}"
        )
    mine = run.source.info.get("tokenizer_fingerprint") if run.source is not None else None
    if takes_tokens and mine and origin.tokenizer not in (None, mine):
        notes.append(
            f"the tokenizer is not that of {origin.name}, whose embedding is taken over; set "
            "config.data.tokenizer_path to its tokenizer.json, or skip the embedding"
        )
    return notes


def _shape(sizes: tuple) -> str:
    return "x".join(map(str, sizes))


def _read(
    leaf: jax.ShapeDtypeStruct,
    stacked: int,
    sources: list[str | None],
    drawn: jax.Array | None,
    origin: Origin,
) -> jax.Array:
    """Returns a leaf with what `sources` names for each of its layers; None: as it was drawn."""
    rows = [row for row, source in enumerate(sources) if source is not None]
    value = origin.read([sources[row] for row in rows], leaf, stacked)
    if len(rows) == len(sources):
        return value
    places = np.unravel_index(np.array(rows), leaf.shape[:stacked])
    put = lambda drawn, value: drawn.at[places].set(value)  # noqa: E731
    return jax.jit(put, out_shardings=leaf.sharding, donate_argnums=0)(drawn, value)


def _target(
    paths: list[str], leaf: jax.ShapeDtypeStruct, stacked: int
) -> tuple[tuple[int, ...], NamedSharding]:
    """Returns the shape and the sharding of what Origin.read gives."""
    if len(paths) == np.prod(leaf.shape[:stacked]):
        return leaf.shape, leaf.sharding
    axes = P(None, *leaf.sharding.spec[stacked:])
    return (len(paths), *leaf.shape[stacked:]), NamedSharding(leaf.sharding.mesh, axes)


def table(wanted: dict[str, Any], plan: Plan, name: str) -> str:
    """Returns what happened to each parameter, a line for each kind of layer, and the sums."""
    lines = []
    for whole, leaf in wanted.items():
        kinds: dict[str, list[int]] = {}
        paths = tree.unrolled_paths(whole, leaf)
        for layer, path in enumerate(paths):
            kind, source = plan[path]
            kinds.setdefault(kind if source in (None, path) else f"{kind} *", []).append(layer)
        several = len(kinds) > 1
        where = lambda layers: f" ({', '.join(map(str, layers))})" if several else ""  # noqa: E731, B023
        what = "; ".join(f"{kind}{where(layers)}" for kind, layers in kinds.items())
        lines.append((whole, what))
    width = max(len(path) for path, _ in lines)
    kinds = [kind for kind, _ in plan.values()]
    sums = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("loaded", "skipped", "fresh"))
    renamed = any(source not in (None, path) for path, (_, source) in plan.items())
    lines = [f"{path:{width}}  {what}" for path, what in lines]
    return "\n".join([*lines, f"{name}: {sums}" + ("; *: from another path" if renamed else "")])


@contextmanager
def open_origin(run: build.Run) -> Iterator[Origin]:
    """Opens what config.init_from names. Raises InputError for what is not there."""
    name = run.config.init_from
    if name.startswith("hf:"):
        from research import interop  # here, as most runs do without

        folder = name.removeprefix("hf:")
        weights = interop.load(folder)

        def read(paths: list[str], leaf: jax.ShapeDtypeStruct, stacked: int) -> jax.Array:
            rows = np.empty((len(paths), *weights.shapes[paths[0]]), leaf.dtype)  # of one leaf
            for row, path in zip(rows, paths, strict=True):
                row[...] = weights.read(path)
            shape, sharding = _target(paths, leaf, stacked)
            value = rows.reshape(shape)
            return jax.make_array_from_callback(shape, sharding, lambda part: value[part])

        tokenizer, unused = _fingerprint(folder), tuple(weights.unused)
        yield Origin(name, weights.model, tokenizer, weights.shapes, read, unused)
        return
    workdir.existing_config(name)
    with Checkpoints(f"{name}/checkpoints", verify=run.config.checkpoint.verify) as checkpoints:
        step = checkpoints.newest()
        if step is None:
            raise InputError(f"config.init_from={name} has no checkpoint; train there first")
        content = checkpoints.notes(step)
        model = content["extra"]["config"]["model"]
        tokenizer = content["extra"]["data"].get("tokenizer_fingerprint")
        shapes, read = _of_checkpoint(checkpoints, step, content["leaves"])
        yield Origin(f"{name} (step {step})", model, tokenizer, shapes, read)


def _fingerprint(folder: str) -> str | None:
    file = f"{folder}/tokenizer.json"  # many folders hold weights alone
    return tokenizer_lib.load(file).fingerprint if workdir.epath.Path(file).exists() else None


def _of_checkpoint(
    checkpoints: Checkpoints, step: int, leaves: dict[str, list]
) -> tuple[dict[str, tuple[int, ...]], Callable]:
    """Returns the shapes and the reader of a checkpoint: the average, where it holds one."""
    places = AVERAGED if any(path.startswith("ema/") for path in leaves) else PLACES
    found: dict[str, tuple[str, tuple[int, ...]]] = {}  # the leaf, and the layer (and expert) of it
    shapes = {}
    for stored in filter(places.match, leaves):
        path, (dtype, shape) = places.sub("", stored), manifest.parse(leaves[stored][0])
        leaf = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
        for name, index in tree.unrolled_places(path, leaf):
            found[name], shapes[name] = (stored, index), tuple(shape[len(index) :])

    def load(path: str, sharding: NamedSharding) -> jax.Array:
        dtype, shape = manifest.parse(leaves[path][0])
        leaf = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)
        return checkpoints.load(step, {path: leaf})[path]

    # The layers of a leaf are asked for one after the other, where they lie apart here.
    again = functools.lru_cache(maxsize=1)(load)

    def read(paths: list[str], leaf: jax.ShapeDtypeStruct, stacked: int) -> jax.Array:
        places = [found[path] for path in paths]
        stored = places[0][0]
        dtype, shape = manifest.parse(leaves[stored][0])
        alike = (tuple(shape), jnp.dtype(dtype)) == (leaf.shape, leaf.dtype)
        whole = [(stored, index) for index in np.ndindex(leaf.shape[:stacked])]
        if alike and places == whole:
            return load(stored, leaf.sharding)
        spec = leaf.sharding.spec

        def lies(index: tuple[int, ...]) -> NamedSharding:  # as the leaf, where it has the axis
            more = len(index) - stacked
            axes = (*[None] * more, *spec) if more >= 0 else spec[-more:]
            return NamedSharding(leaf.sharding.mesh, P(*axes))

        arrays = {
            path: again(stored, lies(index))
            for path, (stored, index) in zip(paths, places, strict=True)
        }
        shape, sharding = _target(paths, leaf, stacked)

        def choose(arrays: dict[str, jax.Array]) -> jax.Array:
            rows = [arrays[path][index] for path, (_, index) in zip(paths, places, strict=True)]
            return jnp.stack(rows).reshape(shape).astype(leaf.dtype)

        return jax.jit(choose, out_shardings=sharding)(arrays)

    return shapes, read
