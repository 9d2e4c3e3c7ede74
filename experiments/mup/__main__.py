"""Does the best learning rate stay where it was when the model grows? With muP and without.

    python -m experiments.mup --path=input.txt [--steps=200]

Two measurements on GPTs of widths 64 to 512 (heads fixed, Adam), each with and without muP:
1. the coordinate check (arXiv:2203.03466, appendix D.1): how far logits and hidden states move in
   the first updates, which must not depend on the width;
2. the validation loss over a grid of learning rates, factors of 2, at the smallest and the widest.
Writes results/results.json and results/mup.png.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.short_runs import ShortRuns, versions
from research import build, config

WIDTHS = (64, 128, 256, 512)
BASE = 64
RESULTS = Path(__file__).parent / "results"


def make(path: str, steps: int, width: int, mup: bool) -> ShortRuns:
    """Returns runs of nanoGPT's CPU setting with two layers of `width`."""
    given = [
        f"config.data.path={path}", f"config.steps={steps}", "config.model.num_layers=2",
        "config.model.unroll=2", f"config.model.width={width}", "config.optim.lr.warmup=20",
    ]  # fmt: skip
    if mup:
        given += [f"config.model.base_width={BASE}", "config.optim.chain=clip,adam,mup,decay,lr"]
    else:
        given += ["config.optim.chain=clip,adam,decay,lr"]
    given += ["config.optim.adam.b2=0.99", "config.optim.decay.rate=0.0"]
    return ShortRuns(config.load("configs/nlp/gpt.py:shakespeare", given))


def coordinates(runs: ShortRuns, updates: int, peak: float) -> dict[str, list[float]]:
    """Returns the mean absolute change of logits and hidden states after each update."""
    run, moved = runs.run, {"logits": [], "hidden": []}
    width = run.config.model.width

    @jax.jit
    def look(params: dict, tokens: jax.Array) -> dict[str, jax.Array]:
        variables = {"params": params, "model_state": {}}
        logits, _ = run.model.apply(variables, tokens)
        (hidden, _), _ = run.model.apply(variables, tokens, method="encode")
        # Under muP, hidden states come out times the multiplier of the logits.
        hidden = hidden * (width / (run.config.model.base_width or width))
        return {"logits": logits[..., : run.config.model.vocab_size], "hidden": hidden}

    with jax.set_mesh(run.mesh):
        state = build.init(run)
        batches = build.batches(run, run.source)
        batch = next(batches)
        batches.close()
        start = look(state.params, batch["tokens"])
        for _ in range(updates):
            state, _ = runs.step({"optim.lr.peak": jnp.float32(peak)}, state, batch)
            now = look(state.params, batch["tokens"])
            for name in moved:
                moved[name].append(float(jnp.abs(now[name] - start[name]).mean()))
    return moved


def main() -> None:
    """Measures, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="tinyshakespeare's input.txt")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rates", type=int, default=7, help="grid points, factors of 2")
    parser.add_argument("--top", type=float, default=3.2e-2, help="the highest rate")
    arguments = parser.parse_args()
    found: dict[str, dict] = {"coordinates": {}, "losses": {}}
    for mup in (True, False):
        kind = "muP" if mup else "standard"
        for width in WIDTHS:
            runs = make(arguments.path, arguments.steps, width, mup)
            moved = coordinates(runs, 5, 0.01)
            found["coordinates"].setdefault(kind, {})[width] = moved
            print(kind, width, {n: round(v[-1], 4) for n, v in moved.items()}, flush=True)
    for mup in (True, False):
        kind = "muP" if mup else "standard"
        for width in (WIDTHS[0], WIDTHS[-1]):
            runs = make(arguments.path, arguments.steps, width, mup)
            losses = found["losses"].setdefault(kind, {}).setdefault(width, {})
            for index in range(arguments.rates):
                rate = arguments.top / 2**index
                losses[rate] = runs.train(0, {"optim.lr.peak": rate})["loss"]
                print(kind, width, f"{rate:.2e}", losses[rate], flush=True)
    best = {
        kind: {width: min(losses, key=losses.get) for width, losses in widths.items()}
        for kind, widths in found["losses"].items()
    }
    shift = {kind: rates[WIDTHS[0]] / rates[WIDTHS[-1]] for kind, rates in best.items()}
    print("best at 64 over best at 512:", shift)
    RESULTS.mkdir(exist_ok=True)
    summary = {"steps": arguments.steps, "best": best, "shift": shift, **found, **versions()}
    (RESULTS / "results.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw()


def draw() -> None:
    """Draws results.json: left how far logits and hidden states move, right the loss."""
    from matplotlib.figure import Figure

    found = json.loads((RESULTS / "results.json").read_text())
    figure = Figure(figsize=(10, 6.5), dpi=150, layout="constrained")
    for row, kind in enumerate(("muP", "standard")):
        left, right = figure.add_subplot(2, 2, 2 * row + 1), figure.add_subplot(2, 2, 2 * row + 2)
        for name in ("logits", "hidden"):
            for update in (0, 2, 4):
                moved = [found["coordinates"][kind][str(w)][name][update] for w in WIDTHS]
                style = "-" if name == "logits" else "--"
                left.loglog(WIDTHS, moved, style, marker="o", label=f"{name}, update {update + 1}")
        left.set(title=f"{kind}: mean change of coordinates", xlabel="width")
        left.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
        left.minorticks_off()
        for width, losses in found["losses"][kind].items():
            rates = [float(rate) for rate in losses]
            right.semilogx(rates, list(losses.values()), marker="o", label=f"width {width}")
        right.set(title=f"{kind}: validation loss", xlabel="learning rate", ylim=(None, 3.4))
        for axes in (left, right):
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=7)
    figure.savefig(RESULTS / "mup.png")


if __name__ == "__main__":
    main()
