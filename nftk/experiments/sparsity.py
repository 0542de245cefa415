"""Where the zeros of Omega come from, what zeros that are earned cost, and how many layers can go."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch

from nftk import constraints
from nftk._optional import require
from nftk.experiments.networks import inputs_of, load, train_all
from nftk.experiments.recipe import Recipe
from nftk.experiments.record import Record, Request, seeds_said, spread, table
from nftk.experiments.settings import row
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
# where zeros are set against the initial mask
FORM_DEPTHS = (10, 20)
# a path is a dozen networks and more, and each in a set is trained from the start: no more seeds than so many
PATH_SEEDS, SET_SEEDS = 3, 3
SETS: dict[str, constraints.Constraint] = {
    # the paper's own set: what the others are to be compared with
    "NonNegative()": constraints.NonNegative(),
    "Simplex(1)": constraints.Simplex(1.0),
    "L1Ball(1)": constraints.L1Ball(1.0),
    "GroupSparse(sqrt(d))": constraints.GroupSparse(),
    "GroupSparse(max_layers=10)": constraints.GroupSparse(max_layers=10),
}


def run(request: Request) -> Record:
    """Train all the networks, and count."""
    require("matplotlib", purpose="drawing sparsity.png", extra="app")
    forms = {
        (depth, name): [row("mnist", depth, seed=seed, quick=request.quick, **changed) for seed in range(request.seeds)]
        for depth in FORM_DEPTHS
        for name, changed in FORMS.items()
    }
    path_seeds = range(min(request.seeds, PATH_SEEDS))
    paths = {kind: [path(kind, seed, quick=request.quick) for seed in path_seeds] for kind in KINDS}
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

    # a price shrinks what it leaves: what is left is trained on without it, the zeros held
    stages_of = {
        (kind, stage): [stages[stage] for stages in some]
        for kind, some in paths.items()
        for stage in range(len(PRICES))
    }
    ends = {
        place: [held(one) if _zeros(result) else one for one, result in zip(some, _found(some, request), strict=True)]
        for place, some in stages_of.items()
    }
    last_ones = [one for some in ends.values() for one in some]
    train_all(last_ones, request.place, jobs=request.jobs, say=request.say)

    starts = [_start(depth, name, _found(some, request)) for (depth, name), some in forms.items()]
    points = [
        _point(kind, f"{PRICES[stage]:g}", stages_of[kind, stage], some, request)
        for (kind, stage), some in ends.items()
    ]
    points += [_point("constraint", name, some, some, request) for name, some in sets.items()]
    dense = statistics.fmean(points[0]["accuracies"])
    found = {
        "seeds": request.seeds,
        "base": row("mnist", DEPTH, quick=request.quick).to_dict(),
        "form_depths": list(FORM_DEPTHS),
        "depth": DEPTH,
        "path_seeds": len(path_seeds),
        "set_seeds": min(request.seeds, SET_SEEDS),
        "stage_epochs": min(STAGE_EPOCHS, row("mnist", DEPTH, quick=request.quick).epochs),
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


def held(stage: Recipe) -> Recipe:
    """The recipe of a stage's network trained on without the price, its zeros held."""
    return dataclasses.replace(stage, l1=0.0, group=0.0, omega_form="held", after=stage)


def _found(recipes: list[Recipe], request: Request) -> list[dict[str, Any]]:
    """Results of networks that are trained already."""
    return train_all(recipes, request.place)


def _zeros(result: dict[str, Any]) -> int:
    return sum(value == 0 for entries in result["omega"] for value in entries)


def _start(depth: int, name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Zeros at the end against zeros at the start."""
    entries = 10 * depth
    at_start = [len(result["zeros_at_start"]) for result in results]
    at_end, kept = [], []
    for result in results:
        omega = torch.tensor(result["omega"])
        at_end.append(int((omega == 0).sum()))
        kept.append(sum(int(omega[i, layer] == 0) for i, layer in result["zeros_at_start"]))
    return {
        "depth": depth,
        "form": name,
        "start": [count / entries for count in at_start],
        "end": [count / entries for count in at_end],
        # of the zeros at the end, how many were there before a single step
        "from_start": [k / max(e, 1) for k, e in zip(kept, at_end, strict=True)],
        "accuracies": [result["test_accuracy"] for result in results],
    }


def _point(kind: str, name: str, stage: list[Recipe], recipes: list[Recipe], request: Request) -> dict[str, Any]:
    """What a price, or a constraint set, leaves of Omega and of the accuracy; and what pruning makes of it."""
    results = _found(recipes, request)
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
        "accuracies_at_price": [result["test_accuracy"] for result in _found(stage, request)],
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


def _best(points: list[dict[str, Any]], dense: float, enough: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Of each penalty's points that are sparse enough, that at the lowest price: the accuracy has no part in it."""
    found = []
    for kind in KINDS:
        of = [point for point in points if point["kind"] == kind and enough(point)]
        if of:
            least = min(of, key=lambda point: float(point["name"]))
            lost = 100 * (dense - statistics.fmean(least["accuracies"]))
            found.append({"kind": kind, "price": least["name"], "points_lost": lost})
    return found


def _markdown(found: dict[str, Any]) -> str:
    starts = [
        [
            str(entry["depth"]),
            entry["form"],
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
            f"{spread(point['accuracies_at_price'], 100)} %",
            f"{spread(point['accuracies'], 100)} %",
            "-" if point["pruned_speed"] is None else f"{point['pruned_speed']:.2f}x",
        ]
        for point in found["points"]
    ]
    earned = []
    for name, best in found["earned"].items():
        what = "; ".join(
            f"{one['kind']} penalty at {one['price']}, {one['points_lost']:+.2f} points of test accuracy lost"
            for one in best
        )
        earned.append(f"- {name}, at the lowest price that does it: {what or 'reached by no price'}.")
    return "\n\n".join(
        [
            "# Zeros in Omega",
            "## Zeros against the initial mask: MNIST",
            f"{seeds_said(found['seeds'])}.",
            table(
                ["layers", "Omega", "zero at the start", "zero at the end", "of those, zero at the start",
                 "test accuracy"], starts,
            ),
            f"## Zeros that are earned: MNIST, {found['depth']} hidden layers",
            f"Penalties, {seeds_said(found['path_seeds'])}: stages follow one another, {found['stage_epochs']} epochs "
            "each, from the dense network on; price 0 is the dense network after as many epochs more. Where entries "
            "have closed, the network is then trained as long again without the price, its zeros held: the last "
            f"accuracy. Networks in a constraint set, {seeds_said(found['set_seeds'])}, are trained in it from the "
            "start, Omega from 1/L.",
            table(
                ["by", "price or set", "zeros", "layers closed", "test accuracy at the price", "test accuracy",
                 "pruned network, speed"], points,
            ),
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
