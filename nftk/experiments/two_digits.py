"""The trNTK paper's smallest experiment by its own recipe: a network that tells 0 from 1, and kernel machines for it.

Recipe: 784-100-100-100-1 with normal weights, each hidden layer divided by 10, sigmoid and MSE, SGD at 1e-3, batches of
4, 100 epochs; 5,000 images of each digit, pixels in [0, 1]; 980 of each for the test; trNTK with cosines;
scikit-learn's SGDClassifier on the columns of the kernel. Beside it, nftk's surrogates on the same kernels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

import nftk
from nftk._optional import require
from nftk.data import load_data
from nftk.experiments.kept import kept
from nftk.experiments.networks import SUBSET_SEED, Place
from nftk.experiments.record import Record, Request, spread, table
from nftk.experiments.side_by_side import side_by_side

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, EPOCHS, BATCH_SIZE, LR = 100, 100, 4, 1e-3
TRAIN, TEST = 5000, 980
SEEDS = 20
# four examples do not keep a core busy: so many networks a step take a quarter of the time each
AT_ONCE = 5
# nftk's logistic surrogates: the kernel's diagonal is 1; it takes eigenvalues, so not of all the training images
PENALTY = 1e-5
EXAMPLES = 2000
# the paper's over 100 seeds; of tau also the standard error of its mean
PAPER_ACCURACY = {"network": 0.9964, "paper": 0.9967, "svm": 0.9992}
PAPER_TAU = {"paper": (0.7077, 0.0034), "svm": (0.7320, 0.0023)}
SURROGATES = {
    "paper": "the paper's: SGDClassifier on the kernel's columns, labels",
    "svm": "support vector machine, labels",
    "labels": f"KernelSurrogate on {EXAMPLES} of the images, labels",
    "probabilities": f"KernelSurrogate on {EXAMPLES} of the images, the network's probabilities",
}


class Pair(NamedTuple):
    """Images of two digits, pixels in [0, 1] ``(n, 784)``, and labels int64 ``(n,)``."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


class Group(NamedTuple):
    """Networks of the experiment that are trained together."""

    seeds: tuple[int, ...]
    place: Place
    quick: bool


class TwoDigits(nn.Module):
    """784-100-100-100-1, relu, every weight and bias drawn from N(0, 1), hidden layers divided by 10."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        sizes = 784, WIDTH, WIDTH, WIDTH, 1
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the digit 1, ``(n, 1)``."""
        *hidden, readout = self.layers
        for layer in hidden:
            x = torch.relu(layer(x) / WIDTH**0.5)
        logits: Tensor = readout(x)
        return logits


def digits(place: Place, quick: bool) -> Pair:
    """The first images of each of the two digits, as the paper's scripts take them."""
    split = load_data("mnist", place.data_dir)
    found: list[Tensor] = []
    for x, y, count in ((split.x_train, split.y_train, TRAIN), (split.x_test, split.y_test, TEST)):
        rows = torch.cat([(y == digit).nonzero().flatten()[: 100 if quick else count] for digit in (0, 1)])
        found += [x[rows], y[rows]]
    return Pair(*found)


@torch.no_grad()
def train(models: Sequence[TwoDigits], x: Tensor, y: Tensor, *, epochs: int, seeds: Sequence[int]) -> None:
    """Plain gradient steps on (sigmoid(f) - y)^2, written out, of several networks, each with its own order."""
    layers = list(zip(*(model.layers for model in models), strict=True))
    weights = [torch.stack([layer.weight for layer in same]) for same in layers]
    biases = [torch.stack([layer.bias for layer in same])[:, None] for same in layers]
    target, generators = y.to(x.dtype)[:, None], [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(epochs):
        order = torch.stack([torch.randperm(len(x), generator=generator) for generator in generators])
        for rows in order.split(BATCH_SIZE, dim=1):
            states = [x[rows]]
            for w, b in zip(weights[:-1], biases[:-1], strict=True):
                states.append(torch.baddbmm(b, states[-1], w.mT).div_(WIDTH**0.5).relu_())
            p = torch.baddbmm(biases[-1], states[-1], weights[-1].mT).sigmoid_()
            delta = (p - target[rows]) * p * (1 - p) * (2 / rows.shape[1])
            for layer in reversed(range(len(weights))):
                before = delta @ weights[layer] * (states[layer] > 0) / WIDTH**0.5 if layer else delta
                weights[layer].baddbmm_(delta.mT, states[layer], alpha=-LR)
                biases[layer].sub_(delta.sum(1, keepdim=True), alpha=LR)
                delta = before
    for same, weight, bias in zip(layers, weights, biases, strict=True):
        for layer, own_weight, own_bias in zip(same, weight, bias[:, 0], strict=True):
            layer.weight.copy_(own_weight)
            layer.bias.copy_(own_bias)


def tau(outputs: Tensor, probabilities: Tensor) -> float:
    """The paper's: Kendall's tau-b of all test examples, without those where the network says exactly 0 or 1."""
    kept = (probabilities > 0) & (probabilities < 1)
    return float(kendalltau(outputs[kept].numpy(), probabilities[kept].numpy()).statistic)


def one(group: Group) -> list[dict[str, Any]]:
    """Train a group of networks, make their kernels, fit the surrogates; what was found once is read again."""
    settings = f"2 {WIDTH} {EPOCHS} {BATCH_SIZE} {LR} {TRAIN} {TEST} {PENALTY} {EXAMPLES} {group.seeds} {group.quick}"
    name = f"two-digits-seeds{group.seeds[0]}-{group.seeds[-1]}"
    found: list[dict[str, Any]] = kept(group.place.runs, name, settings, lambda: _one(group))["networks"]
    return found


def _one(group: Group) -> dict[str, Any]:
    data = digits(group.place, group.quick)
    models = [TwoDigits(seed) for seed in group.seeds]
    train(models, data.x, data.y, epochs=2 if group.quick else EPOCHS, seeds=group.seeds)
    return {"networks": [_network(model, seed, data) for model, seed in zip(models, group.seeds, strict=True)]}


def _network(model: TwoDigits, seed: int, data: Pair) -> dict[str, Any]:
    with torch.no_grad():
        p, p_test = (torch.sigmoid(model(x)[:, 0]) for x in (data.x, data.x_test))
    found: dict[str, Any] = {
        "seed": seed,
        "train_accuracy": float(((p > 0.5) == data.y).double().mean()),
        "test_accuracy": float(((p_test > 0.5) == data.y_test).double().mean()),
        "saturated": int(((p_test == 0) | (p_test == 1)).sum()),
    }
    k = nftk.tangent.trntk(model, data.x).blocks[0]
    k_test = nftk.tangent.trntk(model, data.x_test, data.x).blocks[0]
    found["surrogates"] = {
        name: _measured(outputs, surrogate_p, p_test, data.y_test)
        for name, (outputs, surrogate_p) in _surrogates(k, k_test, data.y, p, seed).items()
    }
    return found


def _surrogates(k: Tensor, k_test: Tensor, y: Tensor, p: Tensor, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Outputs of each surrogate for the digit 1, and its probabilities."""
    from sklearn.linear_model import SGDClassifier

    theirs = SGDClassifier(
        loss="log_loss", penalty="l2", alpha=1e-4, fit_intercept=True, class_weight="balanced", random_state=seed
    ).fit(k.numpy(), y.numpy())
    found = {"paper": torch.from_numpy(theirs.decision_function(k_test.numpy())).double()}
    # C = 1, as there
    machine = nftk.surrogate.KernelSurrogate("svm", 1 / len(k)).fit(k, y)
    found["svm"] = machine.decision_function(k_test)
    rows = torch.randperm(len(k), generator=torch.Generator().manual_seed(SUBSET_SEED))[:EXAMPLES]
    for target, given in (("labels", y), ("probabilities", p.double())):
        ours = nftk.surrogate.KernelSurrogate("logistic", PENALTY, target=target, tolerance=1e-6)  # type: ignore[arg-type]
        found[target] = ours.fit(k[rows][:, rows], given[rows]).decision_function(k_test[:, rows])
    return {name: (outputs, torch.sigmoid(outputs)) for name, outputs in found.items()}


def _measured(outputs: Tensor, surrogate_p: Tensor, p: Tensor, y: Tensor) -> dict[str, float]:
    faithful = nftk.surrogate.faithfulness(p, surrogate_p, y, resamples=0)
    return {
        "accuracy": faithful.accuracy,
        "tau": tau(outputs, p),
        "tau_correct": faithful.tau_correct.value,
        "r_miss": faithful.r_miss.value,
        "r2": faithful.r2.value,
    }


def run(request: Request) -> Record:
    """Train the networks, fit their surrogates, and put both beside the paper's numbers."""
    require("sklearn", purpose="the paper's surrogate", extra="app")
    require("matplotlib", purpose="drawing two-digits.png", extra="app")
    seeds = tuple(range(request.seeds))
    groups = [Group(seeds[i : i + AT_ONCE], request.place, request.quick) for i in range(0, len(seeds), AT_ONCE)]
    networks: list[dict[str, Any]] = []
    for _, found in side_by_side(one, groups, jobs=request.jobs):
        networks += found
        taus = spread([network["surrogates"]["paper"]["tau"] for network in found], 1, 3)
        accuracies = spread([network["test_accuracy"] for network in found], 100)
        request.say(
            f"{len(networks)} of {len(seeds)}: test accuracy {accuracies} %, tau of the paper's surrogate {taus}"
        )
    networks.sort(key=lambda network: network["seed"])
    settings = {
        "width": WIDTH, "epochs": EPOCHS, "batch_size": BATCH_SIZE, "lr": LR, "train": 2 * TRAIN, "test": 2 * TEST,
        "penalty": PENALTY, "examples": EXAMPLES,
    }  # fmt: skip
    paper = {"accuracy": PAPER_ACCURACY, "tau": PAPER_TAU}
    record = {"settings": settings, "paper": paper, "networks": networks}
    return Record("two-digits", record, _markdown(networks), {"two-digits": _draw(networks)})


def _markdown(networks: list[dict[str, Any]]) -> str:
    accuracies = [network["test_accuracy"] for network in networks]
    rows = []
    for name, title in SURROGATES.items():
        found = [network["surrogates"][name] for network in networks]
        rows.append(
            [
                title,
                f"{spread([f['accuracy'] for f in found], 100)} %",
                spread([f["tau"] for f in found], 1, 3),
                f"{100 * PAPER_ACCURACY[name]:.2f} %" if name in PAPER_ACCURACY else "-",
                f"{PAPER_TAU[name][0]:.3f}" if name in PAPER_TAU else "-",
                spread([f["tau_correct"] for f in found], 1, 3),
                spread([f["r_miss"] for f in found], 1, 2),
                spread([f["r2"] for f in found], 1, 2),
            ]
        )
    head = [
        "surrogate", "test accuracy", "tau", "accuracy, paper", "tau, paper", "tau, correct class", "R_Miss",
        "R^2 of logits",
    ]  # fmt: skip
    return "\n\n".join(
        [
            "# 0 and 1: the trNTK paper's recipe",
            f"{len(networks)} networks; test accuracy {spread(accuracies, 100)} % "
            f"(paper: {100 * PAPER_ACCURACY['network']:.2f} %). Mean and standard deviation over seeds. The paper's "
            f"{PAPER_TAU['paper'][0]:.3f} is a mean over 100 seeds, with a standard error of "
            f"{PAPER_TAU['paper'][1]:.3f}, a standard deviation of {10 * PAPER_TAU['paper'][1]:.3f}.",
            table(head, rows),
            "tau is taken as there: over all test images, of the surrogate's output and the network's probability of "
            "the digit 1, without images where that is exactly 0 or 1 in float32 (here "
            f"{spread([network['saturated'] for network in networks], 1, 1)} of them). tau of the correct class, "
            "R_Miss and R^2 are those of nftk.surrogate.faithfulness.",
        ]
    )


def _draw(networks: list[dict[str, Any]]) -> "Figure":
    """Every network a point; the paper's mean with its standard deviation."""
    from matplotlib.figure import Figure

    figure = Figure((6, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(SURROGATES):
        values = [network["surrogates"][name]["tau"] for network in networks]
        axes.plot(values, [place] * len(values), "o", alpha=0.5, markersize=5)
    for place, (mean, error) in enumerate(PAPER_TAU.values()):
        axes.errorbar(mean, place - 0.25, xerr=10 * error, fmt="k|", label=None if place else "paper, ± one deviation")
    axes.set_yticks(range(len(SURROGATES)), list(SURROGATES))
    axes.set(xlabel="Kendall's tau, surrogate and network")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8)
    return figure
