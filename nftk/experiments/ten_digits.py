"""Which kernel stands in best for a convolutional network of ten digits: the trNTK paper's comparison, on MNIST."""

import functools
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

import nftk
from nftk._optional import require
from nftk.experiments.kept import kept
from nftk.experiments.mnist_cnn import EPOCHS, TEST, TRAIN, Digits, digits, trained_cnn
from nftk.experiments.networks import Place
from nftk.experiments.record import Record, Request, spread, table
from nftk.experiments.side_by_side import side_by_side
from nftk.tangent import LayerKernels, project_tangents

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEDS = 3
# of the training images, those that surrogates are fitted on
EXAMPLES = 2000
PROJECTED, RESAMPLES = 1024, 1000
# of the mean of the kernel's diagonal
PENALTIES, TOLERANCE = tuple(10.0**-power for power in range(2, 11)), 1e-4
TARGETS = {"labels": "labels", "probabilities": "the network's probabilities"}
# kernel of all pairs of given images, training and test
Kernel = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Piece(NamedTuple):
    """One network of the experiment."""

    seed: int
    place: Place
    quick: bool


def _exact(kernel: Callable[..., LayerKernels], model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return kernel(model, x).blocks[0]


def _loss_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nftk.tangent.loss_gradient_kernel(model, x, y).blocks[0]


def _projected(reduction: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    k = project_tangents(model, x, PROJECTED, per="model", reduction=reduction).kernel().blocks[0]
    length = k.diagonal().sqrt()
    return k / length[:, None] / length


KERNELS: dict[str, Kernel] = {
    "trNTK": functools.partial(_exact, nftk.tangent.trntk),
    f"projected trNTK, K = {PROJECTED}": functools.partial(_projected, "trace"),
    "trNTK0, no cosine": functools.partial(_exact, nftk.tangent.trntk0),
    "pNTK": functools.partial(_exact, nftk.tangent.pntk),
    f"projected pNTK, K = {PROJECTED}": functools.partial(_projected, "sum_logits"),
    "embedding": functools.partial(_exact, nftk.tangent.embedding_kernel),
    "conjugate": functools.partial(_exact, nftk.tangent.conjugate_kernel),
    "loss gradients (knows test labels)": _loss_gradients,
}
FIRST = "trNTK"


def one(piece: Piece) -> dict[str, Any]:
    """Train a network, and measure surrogates on every kernel; what was found once is read again."""
    settings = f"1 {TRAIN} {TEST} {EPOCHS} {EXAMPLES} {PROJECTED} {PENALTIES} {TOLERANCE} {piece.quick}"
    return kept(piece.place.runs, f"ten-digits-seed{piece.seed}", settings, lambda: _one(piece))


def _one(piece: Piece) -> dict[str, Any]:
    data = digits(piece.place, 600, 200) if piece.quick else digits(piece.place)
    model = trained_cnn(piece.place, data.x, data.y, seed=piece.seed, epochs=2 if piece.quick else EPOCHS)
    n = 200 if piece.quick else EXAMPLES
    accuracy = nftk.evaluate(model, (data.x_test, data.y_test)).accuracy
    measured = {name: _measured(kernel, model, data, n) for name, kernel in KERNELS.items()}
    return {"seed": piece.seed, "test_accuracy": accuracy, "kernels": measured}


def _measured(kernel: Kernel, model: nn.Module, data: Digits, n: int) -> dict[str, Any]:
    """Faithfulness of the surrogates on one kernel."""
    # of all pairs at once: what is normalised by lengths, and projected, has both sides' in it
    k = kernel(model, torch.cat((data.x[:n], data.x_test)), torch.cat((data.y[:n], data.y_test)))
    k, k_test = k[:n, :n], k[n:, :n]
    with torch.no_grad():
        p, p_test = (model(x).double().softmax(1) for x in (data.x[:n], data.x_test))
    found, size = {}, float(k.diagonal().mean())
    for target in TARGETS:
        surrogate = nftk.surrogate.KernelSurrogate(
            target=target,  # type: ignore[arg-type]
            penalties=[size * share for share in PENALTIES],
            tolerance=TOLERANCE,
        )
        surrogate.fit(k, data.y[:n] if target == "labels" else p)
        faithful = nftk.surrogate.faithfulness(
            p_test, surrogate.predict_proba(k_test), data.y_test, resamples=RESAMPLES
        )
        found[target] = {"penalty": surrogate.penalty_, **faithful.to_dict()}
    return found


def run(request: Request) -> Record:
    """Train the networks, and compare the kernels."""
    require("scipy", purpose="KernelSurrogate", extra="app")
    require("matplotlib", purpose="drawing ten-digits.png", extra="app")
    pieces = [Piece(seed, request.place, request.quick) for seed in range(request.seeds)]
    networks: list[dict[str, Any]] = []
    for piece, found in side_by_side(one, pieces, jobs=request.jobs):
        networks.append(found)
        request.say(
            f"{len(networks)} of {len(pieces)}: seed {piece.seed}: accuracy {100 * found['test_accuracy']:.2f} %"
        )
    networks.sort(key=lambda network: network["seed"])
    settings = {"train": TRAIN, "test": TEST, "epochs": EPOCHS, "examples": EXAMPLES, "projected": PROJECTED}
    record = {"settings": settings, "networks": networks}
    return Record("ten-digits", record, _markdown(networks), {"ten-digits": _draw(networks)})


def _values(networks: list[dict[str, Any]], kernel: str, target: str, measure: str) -> list[float]:
    found = [network["kernels"][kernel][target][measure] for network in networks]
    return [value["value"] if isinstance(value, dict) else value for value in found]


def _markdown(networks: list[dict[str, Any]]) -> str:
    parts = [
        "# Ten digits: which kernel stands in best",
        f"{len(networks)} convolutional networks, {TRAIN} training images, test accuracy "
        f"{spread([network['test_accuracy'] for network in networks], 100)} %. KernelSurrogate (logistic, penalty "
        f"chosen on examples held out) on {EXAMPLES} of the training images; {TEST} test images. Mean and standard "
        "deviation over networks; bootstrap intervals over test images are in the record.",
    ]
    for target, said in TARGETS.items():
        rows = []
        for kernel in KERNELS:
            columns = {m: _values(networks, kernel, target, m) for m in ("tau_correct", "tau_all", "r2", "r_miss")}
            difference = _values(networks, kernel, target, "accuracy_difference")
            agreement = _values(networks, kernel, target, "agreement")
            rows.append(
                [
                    kernel,
                    *(spread(values, 1, 3) for values in columns.values()),
                    spread(difference, 100),
                    f"{spread(agreement, 100)} %",
                ]
            )
        measures = ["tau, correct class", "tau, all classes", "R^2 of logits", "R_Miss"]
        head = ["kernel", *measures, "accuracy difference, points", "same class"]
        parts += [f"## Fitted to {said}", table(head, rows), _order(networks, target)]
    return "\n\n".join(parts)


def _order(networks: list[dict[str, Any]], target: str) -> str:
    """Whether trNTK comes first, as the paper finds; the kernel that knows labels is no rival."""
    means = {
        kernel: statistics.fmean(_values(networks, kernel, target, "tau_correct"))
        for kernel in KERNELS
        if "labels" not in kernel
    }
    ranked = sorted(means, key=lambda kernel: -means[kernel])
    place = ranked.index(FIRST) + 1
    listed = ", ".join(f"{kernel} ({means[kernel]:.3f})" for kernel in ranked)
    said = f"{FIRST} is first" if place == 1 else f"{FIRST} is not first, but number {place}"
    return f"By tau of the correct class {said}: {listed}."


def _draw(networks: list[dict[str, Any]]) -> "Figure":
    """Every network a point."""
    from matplotlib.figure import Figure

    figure = Figure((8, 3.6), dpi=120, layout="constrained")
    for axes, (target, said) in zip(figure.subplots(1, 2, sharey=True), TARGETS.items(), strict=True):
        for place, kernel in enumerate(KERNELS):
            values = _values(networks, kernel, target, "tau_correct")
            axes.plot(values, [place] * len(values), "o", color="C0", alpha=0.6, markersize=5)
        axes.set(title=f"fitted to {said}", xlabel="Kendall's tau, correct class")
        axes.grid(axis="x", alpha=0.3)
    figure.axes[0].set_yticks(range(len(KERNELS)), list(KERNELS), fontsize=8)
    figure.axes[0].invert_yaxis()
    return figure
