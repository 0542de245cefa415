"""Which importance to trust: does it agree with ablation, with itself over seeds, and with itself under a rescaling?"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import nftk
from nftk._optional import require
from nftk.experiments.networks import inputs_of, load, train_all
from nftk.experiments.record import Record, Request, seeds_said, spread, table
from nftk.experiments.settings import DEPTHS, TITLES, row
from nftk.interpret import DeletionCurve, deletion_curve, rank_correlation, stability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {
    "omega": "Omega itself",
    "canonical": "Omega after canonicalize",
    "contribution": "contribution",
    "ablation": "ablation, accuracy",
    "ablation_loss": "ablation, loss",
    "refit": "ablation, loss, the rest fitted anew",
}
# test examples: for all kinds, and for those that are fitted anew
EXAMPLES, REFIT_EXAMPLES, QUICK_REFIT_EXAMPLES = 5000, 1000, 40
# a rescaling multiplies Omega's entries by up to this, and divides the readouts
LARGEST_SCALE = 4.0
SHARES = np.linspace(0, 1, 101)


def run(request: Request) -> Record:
    """Measure every importance of Table 1's networks, cross-entropy."""
    require("matplotlib", purpose="drawing stability.png", extra="app")
    recipes = {
        (data, depth): [row(data, depth, seed=seed, quick=request.quick) for seed in range(request.seeds)]
        for data, depths in DEPTHS.items()
        for depth in depths
    }
    train_all([one for some in recipes.values() for one in some], request.place, jobs=request.jobs, say=request.say)
    refit_examples = min(REFIT_EXAMPLES, QUICK_REFIT_EXAMPLES) if request.quick else REFIT_EXAMPLES
    rows: list[dict[str, Any]] = []
    curves: dict[tuple[str, int], dict[str, list[DeletionCurve]]] = {}
    for (data, depth), some in recipes.items():
        found: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        rescaled: dict[str, list[float]] = {kind: [] for kind in KINDS}
        curves[data, depth] = {kind: [] for kind in KINDS}
        for recipe in some:
            model, (x, y) = load(recipe, request.place), inputs_of(recipe, request.place).test
            x, y = _spread_out(x), _spread_out(y)
            ours = measured(model, x, y, refit_examples)
            again = measured(rescale(model, recipe.seed), x, y, refit_examples)
            for kind, values in ours.items():
                found[kind].append(values)
                rescaled[kind].append(rank_correlation(values, again[kind]))
                curves[data, depth][kind].append(deletion_curve(model, x, y, values))
            request.say(f"stability: importances of {recipe.describe()}")
        for kind in KINDS:
            agreement = [rank_correlation(a, b) for a, b in zip(found[kind], found["ablation_loss"], strict=True)]
            rows.append(
                {
                    "data": data,
                    "depth": depth,
                    "kind": kind,
                    "with_ablation": [_known(value) for value in agreement],
                    "area": [curve.area for curve in curves[data, depth][kind]],
                    "over_seeds": _known(stability(found[kind])) if request.seeds > 1 else None,
                    "classes_over_seeds": _known(stability(_within_layers(found[kind]))) if request.seeds > 1 else None,
                    "rescaled": [_known(value) for value in rescaled[kind]],
                    "values": [values.tolist() for values in found[kind]],
                }
            )
    few = {"examples": min(EXAMPLES, len(y)), "refit_examples": min(refit_examples, len(y))}
    record = {**few, "largest_scale": LARGEST_SCALE, "rows": rows}
    return Record("stability", record, _markdown(record, request.seeds), {"stability": _draw(curves)})


def measured(model: nftk.NFTKMLP, x: Tensor, y: Tensor, refit_examples: int) -> dict[str, Tensor]:
    """All importances of a network, by kind; the rest of Omega is fitted anew to the first examples."""
    few = slice(0, refit_examples)
    return {
        "omega": nftk.importance(model, x),
        "canonical": nftk.importance(model.canonicalize(x), x),
        "contribution": nftk.importance(model, x, kind="contribution"),
        "ablation": nftk.importance(model, x, y, "ablation"),
        "ablation_loss": nftk.importance(model, x, y, "ablation", measure="loss"),
        "refit": nftk.importance(model, x[few], y[few], "ablation", measure="loss", refit=True),
    }


def rescale(model: nftk.NFTKMLP, seed: int) -> nftk.NFTKMLP:
    """The same function: every entry of Omega times a number of its own, its row of V divided by it."""
    other = nftk.NFTKMLP(**model.config() | {"constraint": model.constraint})
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    scales = LARGEST_SCALE ** (2 * torch.rand(model.omega.shape, generator=generator) - 1)
    with torch.no_grad():
        other.omega.mul_(scales)
        for v, column in zip(other.readout_weights(), scales.T, strict=True):
            v.div_(column[:, None])
    return other.eval()


def _spread_out(values: Tensor) -> Tensor:
    """So many examples, evenly from all: the reviews come sorted by class."""
    count = min(EXAMPLES, len(values))
    index = torch.linspace(0, len(values) - 1, count).long()
    # any first part of them is spread too
    return values[index[torch.randperm(count, generator=torch.Generator().manual_seed(0))]]


def _within_layers(values: Sequence[Tensor]) -> list[Tensor]:
    """What is left of importances without each layer's mean over classes: what layers say of one class, not of all."""
    apart = [importance - importance.mean(0) for importance in values]
    # what rounding leaves where classes say the same is nothing
    return [x.where(x.abs() > 1e-5 * v.abs().max(), 0.0) for x, v in zip(apart, values, strict=True)]


def _markdown(record: dict[str, Any], seeds: int) -> str:
    parts, rows = ["# Which importance can be believed"], record["rows"]
    for data, depths in DEPTHS.items():
        for depth in depths:
            lines = []
            for entry in (entry for entry in rows if (entry["data"], entry["depth"]) == (data, depth)):
                over, within = entry["over_seeds"], entry["classes_over_seeds"]
                lines.append(
                    [
                        KINDS[entry["kind"]],
                        _told(entry["with_ablation"]),
                        spread(entry["area"], 100, 1),
                        _told([] if over is None else [over]),
                        _told([] if within is None else [within]),
                        _told(entry["rescaled"]),
                    ]
                )
            head = [
                "importance",
                "rank correlation with ablation (loss)",
                "area under deletion, %",
                "rank correlation between seeds",
                "the same, without the mean over classes",
                "with itself, rescaled",
            ]
            parts += [f"## {TITLES[data]}, {depth} hidden layers", table(head, lines)]
    parts.append(
        f"{seeds_said(seeds)}, {record['examples']} test examples ({record['refit_examples']} where the rest of Omega "
        "is fitted anew). Without the mean over classes: each layer's mean is taken away, so that what is left is what "
        "an importance says of single classes; of two classes contribution says the same of both, and nothing is left. "
        f"Rescaled: every entry of Omega times a number between 1/{LARGEST_SCALE:g} and {LARGEST_SCALE:g}, its readout "
        "divided by it: the same function, so that whatever changes was no property of it. Area: mean accuracy while "
        "entries are removed, the least important first."
    )
    return "\n\n".join(parts)


def _known(correlation: float) -> float | None:
    """None for NaN, which JSON has not: a constant importance has no order."""
    return None if math.isnan(correlation) else correlation


def _told(correlations: Sequence[float | None]) -> str:
    known = [value for value in correlations if value is not None]
    return spread(known) if known else "-"


def _draw(curves: dict[tuple[str, int], dict[str, list[DeletionCurve]]]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure((9, 7), dpi=120, layout="constrained")
    for axes, ((data, depth), kinds) in zip(figure.subplots(2, 2).flat, curves.items(), strict=True):
        for kind, some in kinds.items():
            # where entries are closed already, a network's curve has fewer points
            heights = [np.interp(SHARES, curve.shares, curve.accuracy) for curve in some]
            axes.plot(SHARES, 100 * np.mean(heights, 0), label=KINDS[kind], linewidth=1.2)
        axes.set(title=f"{TITLES[data]}, {depth} hidden layers", xlabel="share of Omega removed", ylabel="accuracy, %")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    return figure
