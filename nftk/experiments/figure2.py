"""Figure 2 of the paper: Omega of the MNIST networks of both depths."""

import torch

import nftk
from nftk._optional import require
from nftk.experiments.networks import load, train_all
from nftk.experiments.record import Record, Request, table
from nftk.experiments.settings import DEPTHS, row


def run(request: Request) -> Record:
    """Train (or find) the first seed's networks, and draw them."""
    require("matplotlib", purpose="drawing figure2", extra="app")
    recipes = [row("mnist", depth, quick=request.quick) for depth in DEPTHS["mnist"]]
    results = train_all(recipes, request.place, jobs=request.jobs, say=request.say)
    figures, networks, lines = {}, [], []
    for recipe, result in zip(recipes, results, strict=True):
        figures[f"figure2-{recipe.depth}"] = nftk.plot_omega(
            load(recipe, request.place), title=f"MNIST, {recipe.depth} hidden layers of {recipe.width}"
        )
        omega = torch.tensor(result["omega"])
        zeros = int((omega == 0).sum())
        heaviest = (omega.argmax(1) + 1).tolist()
        networks.append({"recipe": recipe.to_dict(), "omega": result["omega"], "zeros": zeros})
        shares = omega / omega.sum(1, keepdim=True).clamp(min=1e-30)
        top = ", ".join(map(str, heaviest))
        lines.append([str(recipe.depth), f"{zeros} of {omega.numel()}", top, f"{float(shares.max()):.2f}"])
    head = ["hidden layers", "zeros in Omega", "heaviest layer of classes 0 to 9", "largest share of a class's row"]
    text = f"# Figure 2\n\nThe networks of Table 1, cross-entropy, seed 0.\n\n{table(head, lines)}\n"
    return Record("figure2", {"networks": networks}, text, figures)
