"""Table 1 of the paper: test accuracy of NFT-K networks and of the plain MLP beside each, and the same with MSE."""

from typing import TYPE_CHECKING, Any, Literal

from nftk._optional import require
from nftk.experiments.networks import train_all
from nftk.experiments.record import Record, Request, mean_and_deviation, seeds_said, spread, table
from nftk.experiments.settings import BASES, DEPTHS, PAPER, TITLES, row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSES: tuple[Literal["cross_entropy", "mse"], ...] = ("cross_entropy", "mse")
MODELS: tuple[Literal["nftk", "mlp"], ...] = ("nftk", "mlp")


def run(request: Request) -> Record:
    """Train all rows with all seeds, and make the tables."""
    require("matplotlib", purpose="drawing table1.png", extra="app")
    keys = [
        (loss, data, depth, model) for loss in LOSSES for data in BASES for depth in DEPTHS[data] for model in MODELS
    ]
    recipes = {
        key: [
            row(key[1], key[2], model=key[3], seed=seed, quick=request.quick, loss=key[0])
            for seed in range(request.seeds)
        ]
        for key in keys
    }
    train_all([one for some in recipes.values() for one in some], request.place, jobs=request.jobs, say=request.say)
    # each is there now, and read again
    found = {key: train_all(some, request.place) for key, some in recipes.items()}
    rows: list[dict[str, Any]] = []
    for loss, data, depth, model in keys:
        results = found[loss, data, depth, model]
        accuracies = [result["test_accuracy"] for result in results]
        mean, deviation = mean_and_deviation(accuracies)
        without = [result.get("test_accuracy_without_duplicates") for result in results]
        duplicates = results[0].get("duplicates")
        rows.append(
            {
                "loss": loss,
                "data": data,
                "depth": depth,
                "model": model,
                "mean": mean,
                "deviation": deviation,
                "accuracies": accuracies,
                "paper": PAPER[data, depth][MODELS.index(model)],
                "without_duplicates": None if None in without else without,
                "duplicates": duplicates,
                "zeros": [last(result)["zeros"] for result in results],
                "seconds": sum(result["seconds"] for result in results),
            }
        )
    settings = {data: row(data, DEPTHS[data][0], quick=request.quick).to_dict() for data in BASES}
    found_here = {"settings": settings, "rows": rows}
    return Record("table1", found_here, _markdown(rows, request), {"table1": _draw(rows)})


def last(result: dict[str, Any]) -> dict[str, Any]:
    """The record of a network's last epoch."""
    record: dict[str, Any] = result["history"][-1]
    return record


def _markdown(rows: list[dict[str, Any]], request: Request) -> str:
    parts = ["# Table 1\n"]
    for loss in LOSSES:
        title = "Cross-entropy" if loss == "cross_entropy" else "MSE, the loss of the paper's theory"
        lines = []
        for entry in (entry for entry in rows if entry["loss"] == loss):
            name = "NFT-K" if entry["model"] == "nftk" else "MLP"
            # the paper does not name its loss
            paper = "-" if entry["paper"] is None else f"{entry['paper']:.2f}"
            without = entry["without_duplicates"]
            cells = [TITLES[entry["data"]], str(entry["depth"]), name, spread(entry["accuracies"], 100), paper]
            lines.append([*cells, "-" if without is None else spread(without, 100)])
        head = ["data", "hidden layers", "network", "test accuracy, %", "paper", "without reviews seen in training"]
        parts.append(f"## {title}\n\n{table(head, lines)}\n")
    parts.append(
        f"Mean and standard deviation, {seeds_said(request.seeds)}; the last epoch's accuracy, no early stopping.\n"
    )
    repeated = next((entry["duplicates"] for entry in rows if entry["duplicates"]), None)
    if repeated is not None:
        parts.append(
            f"{repeated} test reviews are training reviews too, word for word; the last column leaves them out.\n"
        )
    parts += [f"- {TITLES[data]}: {settings_said(data, request.quick)}" for data in BASES]
    parts.append("- With MSE, Omega starts from 1/L: from 1, these learning rates diverge.")
    return "\n".join(parts)


def _draw(rows: list[dict[str, Any]]) -> "Figure":
    """Every network a point, beside the paper's number."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.6), dpi=120, layout="constrained")
    for axes, data in zip(figure.subplots(1, 2), BASES, strict=True):
        labels = []
        for place, (depth, model) in enumerate((depth, model) for depth in DEPTHS[data] for model in MODELS):
            labels.append(f"{'NFT-K' if model == 'nftk' else 'MLP'}\n{depth} layers")
            for loss, shift, colour in zip(LOSSES, (-0.12, 0.12), ("C0", "C1"), strict=True):
                row = next(
                    r for r in rows if (r["loss"], r["data"], r["depth"], r["model"]) == (loss, data, depth, model)
                )
                values = [100 * value for value in row["accuracies"]]
                name = {"cross_entropy": "cross-entropy", "mse": "MSE"}[loss] if not place else None
                axes.plot([place + shift] * len(values), values, "o", color=colour, alpha=0.6, markersize=4, label=name)
                if loss == "cross_entropy" and row["paper"] is not None:
                    axes.plot(place, row["paper"], "_", color="black", markersize=22, label=None if place else "paper")
        axes.set_xticks(range(len(labels)), labels)
        axes.set(title=TITLES[data], ylabel="test accuracy, %")
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def settings_said(data: str, quick: bool) -> str:
    """Every setting that the rows of a data set share, as a sentence."""
    base = row(data, DEPTHS[data][0], quick=quick)
    start = "1/L" if base.omega_start == "uniform" else f"{base.omega_start}"
    limit = f", {base.train_limit} training examples" if base.train_limit else ""
    return (
        f"width {base.width}, batch {base.batch_size}, {base.epochs} epochs, SGD with {base.lr} for theta and "
        f"{base.lr_omega} for Omega, weight decay {base.weight_decay:g}, Omega >= 0 from {start}{limit}."
    )
