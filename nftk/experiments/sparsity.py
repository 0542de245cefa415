"""Where the zeros of Omega come from, what zeros that are earned cost, and how many layers can go."""

import dataclasses
import statistics
import time
from typing import TYPE_CHECKING, Any, Literal

import torch

from nftk import constraints
from nftk._optional import require
from nftk.experiments.networks import inputs_of, load, train_all
from nftk.experiments.recipe import Recipe
from nftk.experiments.record import Record, Request, spread, table
from nftk.experiments.settings import BASES, DEPTHS, row
from nftk.experiments.table1 import last

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMS: dict[str, dict[str, Any]] = {
    "(a) projected, from a positive start": {},
    "(b) projected, from Xavier's normal": {"omega_start": "xavier"},
    "(c) relu of free weights, from Xavier's normal": {"omega_start": "xavier", "omega_form": "relu"},
}
# prices of an entry, and of a layer; a stage begins where the one before ended
PRICES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)
STAGE_EPOCHS = 2
KINDS: tuple[Literal["l1", "group"], ...] = ("l1", "group")
DEPTH = 20
# each of their networks is trained from the start: no more than so many
SET_SEEDS = 3
SETS: dict[str, constraints.Constraint] = {
    "Simplex(1)": constraints.Simplex(1.0),
    "L1Ball(1)": constraints.L1Ball(1.0),
    "GroupSparse(sqrt(d))": constraints.GroupSparse(),
    "GroupSparse(max_layers=10)": constraints.GroupSparse(max_layers=10),
}


def run(request: Request) -> Record:
    """Train all the networks, and count."""
    require("matplotlib", purpose="drawing sparsity.png", extra="app")
    forms = {
        (name, depth): [row("mnist", depth, seed=seed, quick=request.quick, **changed) for seed in range(request.seeds)]
        for name, changed in FORMS.items()
        for depth in DEPTHS["mnist"]
    }
    paths = {kind: [path(kind, seed, quick=request.quick) for seed in range(request.seeds)] for kind in KINDS}
    sets = {
        name: [
            row("mnist", DEPTH, seed=seed, quick=request.quick, omega_start="uniform", constraint=held)
            for seed in range(min(request.seeds, SET_SEEDS))
        ]
        for name, held in SETS.items()
    }
    every = [one for some in (*forms.values(), *sets.values()) for one in some]
    every += [one for some in paths.values() for stages in some for one in stages]
    train_all(every, request.place, jobs=request.jobs, say=request.say)

    starts = [_start(name, depth, train_all(some, request.place)) for (name, depth), some in forms.items()]
    points = [
        _point(kind, f"{PRICES[stage]:g}", [stages[stage] for stages in some], request)
        for kind, some in paths.items()
        for stage in range(len(PRICES))
    ]
    points += [_point("constraint", name, some, request) for name, some in sets.items()]
    dense = statistics.fmean(points[0]["accuracies"])
    found = {
        "seeds": request.seeds,
        "base": BASES["mnist"].to_dict(),
        "stage_epochs": STAGE_EPOCHS,
        "starts": starts,
        "points": points,
        "dense": dense,
        "earned": {
            "half of Omega zero": _best(points, dense, lambda point: point["zeros_share"] >= 0.5),
            "two layers closed": _best(points, dense, lambda point: min(point["closed_layers"]) >= 2),
        },
    }
    return Record("sparsity", found, _markdown(found), {"sparsity": _draw(points)})


def path(kind: Literal["l1", "group"], seed: int, *, quick: bool = False) -> list[Recipe]:
    """Recipes of a penalty path: a dense network, and stages at a growing price, each from the one before."""
    dense = row("mnist", DEPTH, seed=seed, quick=quick)
    stages: list[Recipe] = []
    for price in PRICES:
        before = stages[-1] if stages else dense
        # the first stage costs nothing: what more epochs do without any penalty, once for both paths
        changes: dict[str, Any] = {"epochs": min(STAGE_EPOCHS, dense.epochs), "after": before, kind: price}
        stages.append(dataclasses.replace(dense, **changes))
    return stages


def _start(name: str, depth: int, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Zeros at the end against zeros at the start."""
    entries = 10 * depth
    at_start = [len(result["zeros_at_start"]) for result in results]
    at_end, kept = [], []
    for result in results:
        omega = torch.tensor(result["omega"])
        at_end.append(int((omega == 0).sum()))
        kept.append(sum(int(omega[i, layer] == 0) for i, layer in result["zeros_at_start"]))
    return {
        "form": name,
        "depth": depth,
        "start": [count / entries for count in at_start],
        "end": [count / entries for count in at_end],
        # of the zeros at the end, how many were there before a single step
        "from_start": [k / max(e, 1) for k, e in zip(kept, at_end, strict=True)],
        "accuracies": [result["test_accuracy"] for result in results],
    }


def _point(kind: str, name: str, recipes: list[Recipe], request: Request) -> dict[str, Any]:
    """What one price, or one constraint set, leaves of Omega and of the accuracy; and what pruning makes of it."""
    results = train_all(recipes, request.place)
    closed, speed, off = [], [], []
    for recipe in recipes:
        model = load(recipe, request.place)
        closed.append(int((model.omega == 0).all(0).sum()))
        if closed[-1]:
            x = inputs_of(recipe, request.place).test[0][:1000]
            small = model.prune().eval()
            with torch.no_grad():
                off.append(float((small(x) - model(x)).abs().max()))
                speed.append(_seconds(model, x) / _seconds(small, x))
    return {
        "kind": kind,
        "name": name,
        "zeros_share": statistics.fmean(last(result)["zeros_share"] for result in results),
        "zeros_shares": [last(result)["zeros_share"] for result in results],
        "closed_layers": closed,
        "accuracies": [result["test_accuracy"] for result in results],
        "pruned_speed": statistics.median(speed) if speed else None,
        "pruned_difference": max(off) if off else None,
    }


def _seconds(model: torch.nn.Module, x: torch.Tensor) -> float:
    times = []
    for _ in range(15):
        start = time.perf_counter()
        model(x)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _best(points: list[dict[str, Any]], dense: float, enough: Any) -> dict[str, Any] | None:
    """Of the points that are sparse enough, the one at the lowest price: the choice does not look at the accuracy."""
    for point in points:
        if point["kind"] in KINDS and enough(point):
            lost = 100 * (dense - statistics.fmean(point["accuracies"]))
            return {"kind": point["kind"], "price": point["name"], "points_lost": lost}
    return None


def _markdown(found: dict[str, Any]) -> str:
    starts = [
        [
            entry["form"],
            str(entry["depth"]),
            *(f"{spread(entry[name], 100, 1)} %" for name in ("start", "end", "from_start")),
            f"{spread(entry['accuracies'], 100)} %",
        ]
        for entry in found["starts"]
    ]
    points = [
        [
            {"l1": "l1 penalty", "group": "group penalty", "constraint": "set"}[point["kind"]],
            point["name"],
            f"{spread(point['zeros_shares'], 100, 1)} %",
            spread(point["closed_layers"], 1, 1),
            f"{spread(point['accuracies'], 100)} %",
            "-" if point["pruned_speed"] is None else f"{point['pruned_speed']:.2f}x",
        ]
        for point in found["points"]
    ]
    earned = []
    for name, best in found["earned"].items():
        what = (
            "reached by no price"
            if best is None
            else (f"{best['kind']} at {best['price']}, {best['points_lost']:+.2f} points of test accuracy lost")
        )
        earned.append(f"- {name}, at the lowest price that does it: {what}.")
    return "\n\n".join(
        [
            "# Zeros in Omega",
            "## Zeros against the initial mask",
            table(
                ["Omega", "hidden layers", "zero at the start", "zero at the end", "of those, zero at the start",
                 "test accuracy"], starts,
            ),
            f"## Zeros that are earned: MNIST, {DEPTH} hidden layers",
            "A penalty's stages follow one another, "
            f"{found['stage_epochs']} epochs each, from the dense network on; price 0 is the dense network "
            "after as many epochs more. Networks in a constraint set are trained in it from the start, Omega from 1/L, "
            f"{min(SET_SEEDS, found['seeds'])} seeds.",
            table(["by", "price or set", "zeros", "layers closed", "test accuracy", "pruned network, speed"], points),
            "\n".join(earned),
        ]
    )  # fmt: skip


def _draw(points: list[dict[str, Any]]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure((9, 4), dpi=120, layout="constrained")
    for axes, across, label in zip(
        figure.subplots(1, 2, sharey=True), ("zeros_shares", "closed_layers"),
        ("share of Omega that is zero", "layers closed for every class"), strict=True,
    ):  # fmt: skip
        for kind, marker in (("l1", "o-"), ("group", "s--"), ("constraint", "x")):
            some = [point for point in points if point["kind"] == kind]
            x = [statistics.fmean(point[across]) for point in some]
            y = [100 * statistics.fmean(point["accuracies"]) for point in some]
            axes.plot(x, y, marker, label={"l1": "l1 penalty", "group": "group penalty"}.get(kind, "constraint sets"))
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel="test accuracy, %")
    figure.axes[0].legend(fontsize=8)
    return figure
