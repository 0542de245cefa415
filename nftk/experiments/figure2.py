"""Figure 2 of the paper: Omega of the MNIST networks of both depths, from the table's start and from 1 / L."""

import torch

import nftk
from nftk._optional import require
from nftk.experiments.networks import load, train_all
from nftk.experiments.record import Record, Request, table
from nftk.experiments.settings import BASES, DEPTHS, row


def run(request: Request) -> Record:
    """Train (or find) the first seed's networks, and draw them."""
    require("matplotlib", purpose="drawing figure2", extra="app")
    recipes = [
        row("mnist", depth, quick=request.quick, omega_start=start)
        for start in (BASES["mnist"].omega_start, "uniform")
        for depth in DEPTHS["mnist"]
    ]
    results = train_all(recipes, request.place, jobs=request.jobs, say=request.say)
    figures, networks, lines = {}, [], []
    for recipe, result in zip(recipes, results, strict=True):
        start = "1/L" if recipe.omega_start == "uniform" else f"{recipe.omega_start:g}"
        figures[f"figure2-{recipe.depth}-from-{start.replace('1/L', 'uniform')}"] = nftk.plot_omega(
            load(recipe, request.place),
            title=f"MNIST, {recipe.depth} hidden layers of {recipe.width}, Omega from {start}",
        )
        omega = torch.tensor(result["omega"])
        zeros = int((omega == 0).sum())
        heaviest = (omega.argmax(1) + 1).tolist()
        networks.append(
            {
                "recipe": recipe.to_dict(),
                "omega": result["omega"],
                "zeros": zeros,
                "test_accuracy": result["test_accuracy"],
            }
        )
        shares = omega / omega.sum(1, keepdim=True).clamp(min=1e-30)
        top = ", ".join(map(str, heaviest))
        accuracy = f"{100 * result['test_accuracy']:.2f} %"
        lines.append(
            [str(recipe.depth), start, accuracy, f"{zeros} of {omega.numel()}", top, f"{float(shares.max()):.2f}"]
        )
    head = [
        "hidden layers",
        "Omega from",
        "test accuracy",
        "zeros in Omega",
        "heaviest layer of classes 0 to 9",
        "largest share of a class's row",
    ]
    said = "The networks of Table 1, cross-entropy, seed 0; and the same from another start."
    text = f"# Figure 2\n\n{said}\n\n{table(head, lines)}\n"
    return Record("figure2", {"networks": networks}, text, figures)
