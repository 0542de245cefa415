"""Linear datamodeling score of attributions: do they foretell what networks trained on halves of the data say?

A convolutional network is trained on 1,000 images of MNIST, again on random halves of them, and every attribution of
the first is asked to rank the halves for each test image by the margin log(p / (1 - p)) of the correct class. What has
settings, ours and TRAK's, has them chosen on other halves and other test images than those compared. TRAK runs in an
environment of its own on the networks that are left in a file (bench/peers/README.md), and is picked up from there.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nftk._files import replacing
from nftk._optional import require
from nftk.attribution import attribute, draw_subsets, leave_one_out, linear_datamodeling_score, retrain
from nftk.experiments.mnist_cnn import EPOCHS, Digits, digits, trained_cnn
from nftk.experiments.networks import Place
from nftk.experiments.record import Record, Request, table
from nftk.experiments.side_by_side import side_by_side
from nftk.surrogate import KernelSurrogate
from nftk.surrogate.bootstrap import bootstrap
from nftk.tangent import LayerKernels, embedding_kernel, loss_gradient_kernel, pntk, trntk0

ALPHA = 0.5
# ridge of leave-one-out in mean diagonals of the kernel, and penalty of surrogates on kernels with a diagonal of 1
SHARES, PENALTIES = (0.3, 1.0, 3.0, 10.0), (1e-1, 1e-2)
# settings that TRAK has in its package, by the name in its file: dimension, ridge
TRAK_DEFAULT = "2048 0"
RESAMPLES = 500
OURS, TRAK = "trNTK, leave-one-out of ridge (ours)", "TRAK"
# the names of a method's candidates are its own and, after a bar, their settings
METHODS = (
    OURS,
    "trNTK, coefficients of ridge",
    "trNTK surrogate, labels",
    "trNTK surrogate, probabilities",
    "pNTK, leave-one-out of ridge",
    "embedding, leave-one-out of ridge",
    "embedding cosine",
    "loss-gradient cosine (uses labels)",
)


class Sizes(NamedTuple):
    """How much of everything: test images and subsets for the comparison, and others for the choice of settings."""

    train: int = 1000
    test: int = 200
    choice_test: int = 200
    subsets: int = 100
    choice_subsets: int = 50
    repeats: int = 1
    epochs: int = EPOCHS


QUICK = Sizes(200, 30, 30, 10, 6, 1, 4)
FULL = Sizes()


class Piece(NamedTuple):
    """One network to train."""

    place: Place
    x: Tensor
    y: Tensor
    seed: int
    epochs: int


class Side(NamedTuple):
    """Subsets, test images as a part of all, and what the networks of the subsets say of these, ``(m, n_test)``."""

    subsets: Tensor
    images: slice
    margin: Tensor
    logit: Tensor


class Network(NamedTuple):
    """A network of all training images, and its kernels of training images, then test images, by name."""

    model: nn.Sequential
    outputs: Tensor
    kernels: dict[str, LayerKernels]


Scores = dict[str, list[Tensor]]


def train(piece: Piece) -> None:
    """Train one network, unless it is there."""
    trained_cnn(piece.place, piece.x, piece.y, seed=piece.seed, epochs=piece.epochs)


def margins(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Margin log(p / (1 - p)) and logit of the correct class, ``(...)``, of outputs ``(..., C)``."""
    at = y.expand(outputs.shape[:-1])[..., None]
    logit = outputs.gather(-1, at)[..., 0]
    return logit - outputs.scatter(-1, at, -math.inf).logsumexp(-1), logit


def margin_weights(outputs: Tensor, y: Tensor) -> Tensor:
    """Derivatives of the margin by the outputs, ``(n, C)``: 1 for the correct class, minus its rivals' shares."""
    own = nn.functional.one_hot(y, outputs.shape[1]).to(outputs)
    return own - outputs.masked_fill(own.bool(), -math.inf).softmax(1)


def retrained(place: Place, data: Digits, subsets: Tensor, sizes: Sizes, first_seed: int) -> Tensor:
    """Outputs for all test images of the networks of all subsets, ``(m, n_test, C)``, mean over repeats."""

    def repeat(number: int) -> Tensor:
        seeds = iter(range(first_seed + 2000 * number, first_seed + 2000 * number + len(subsets)))

        def outputs(rows: Tensor) -> Tensor:
            model = trained_cnn(place, data.x[rows], data.y[rows], seed=next(seeds), epochs=sizes.epochs)
            return _outputs(model, data.x_test)

        return retrain(outputs, subsets)

    return torch.stack([repeat(number) for number in range(sizes.repeats)]).mean(0)


def pieces(place: Place, data: Digits, subsets: Tensor, sizes: Sizes, first_seed: int) -> Iterable[Piece]:
    """What :func:`retrained` asks for."""
    for number in range(sizes.repeats):
        for i, subset in enumerate(subsets):
            # a seed of its own, so that f(x; S) is a draw over starts and orders too
            yield Piece(place, data.x[subset], data.y[subset], first_seed + 2000 * number + i, sizes.epochs)


def network(place: Place, data: Digits, seed: int, epochs: int) -> Network:
    """A network of all training images and its kernels, from disk where they have been made."""
    model = trained_cnn(place, data.x, data.y, seed=seed, epochs=epochs)
    x, y = torch.cat((data.x, data.x_test)), torch.cat((data.y, data.y_test))
    key = _digest(model.state_dict().values(), [x, y])
    makers: dict[str, Callable[[], LayerKernels]] = {
        "trntk0": lambda: trntk0(model, x),
        "pntk0": lambda: pntk(model, x, normalize=None),
        "embedding0": lambda: embedding_kernel(model, x, normalize=None),
        "gradient0": lambda: loss_gradient_kernel(model, x, y, normalize=None),
    }
    kernels = {}
    for name, make in makers.items():
        path = place.runs / f"kernel-{name}-seed{seed}-{key}.safetensors"
        if not path.exists():
            make().save(path)
        kernels[name] = LayerKernels.load(path)
        kernels[name.removesuffix("0")] = kernels[name].normalize("cosine")
    return Network(model, _outputs(model, x), kernels)


def candidates(found: Network, data: Digits) -> dict[str, Tensor]:
    """Scores ``(n_test, n)`` of all test images, by method and settings."""
    n, y, y_test = len(data.x), data.y, data.y_test
    targets = nn.functional.one_hot(y, found.outputs.shape[1]).double()
    weights = margin_weights(found.outputs[n:], y_test)
    made: dict[str, Tensor] = {}

    def ridge(title: str, kernel: str, share: float) -> None:
        k = found.kernels[kernel].blocks[0].double()
        rho = share * float(k[:n, :n].diagonal().mean())
        effects = leave_one_out(k[:n, :n], k[n:, :n], targets, rho)
        made[f"{title} | {kernel}, ridge {share:g}, class"] = _of_class(effects, y_test)
        made[f"{title} | {kernel}, ridge {share:g}, margin"] = (effects * weights[:, None]).sum(2)

    for share in SHARES:
        for kernel in ("trntk", "trntk0"):
            ridge(OURS, kernel, share)
        ridge(METHODS[4], "pntk", share)
        ridge(METHODS[5], "embedding", share)
    k = found.kernels["trntk"]
    train_kernel, test_kernel = k[:n, :n], k[n:, :n]

    def surrogate(title: str, told: str, machine: KernelSurrogate, y: Tensor) -> None:
        scores = attribute(machine.fit(train_kernel, y), test_kernel).scores()
        made[f"{title} | {told}, class"] = _of_class(scores, y_test)
        made[f"{title} | {told}, margin"] = (scores * weights[:, None]).sum(2)

    for share in SHARES:
        surrogate(METHODS[1], f"ridge {share:g}", KernelSurrogate("ridge", share / n), y)
    for penalty in PENALTIES:
        told = f"penalty {penalty:g}"
        surrogate(METHODS[2], told, KernelSurrogate(penalty=penalty), y)
        said = found.outputs[:n].softmax(1)
        surrogate(METHODS[3], told, KernelSurrogate(penalty=penalty, target="probabilities"), said)
    made[f"{METHODS[6]} | "] = found.kernels["embedding"].blocks[0, n:, :n].double()
    made[f"{METHODS[7]} | "] = found.kernels["gradient"].blocks[0, n:, :n].double()
    return made


def agreement(scores: Sequence[Tensor], side: Side, output: str = "margin") -> np.ndarray[Any, np.dtype[np.float64]]:
    """Spearman's correlation of every test image, ``(n_test,)``: mean over so many scores of all test images."""
    truth = getattr(side, output)
    each = [
        linear_datamodeling_score(values[side.images].double(), side.subsets, truth, resamples=0).correlations
        for values in scores
    ]
    mean: np.ndarray[Any, np.dtype[np.float64]] = torch.stack(each).nanmean(0).numpy()
    return mean


def choose(made: Scores, method: str, side: Side, groups: Sequence[Sequence[int]]) -> str:
    """The candidate of a method whose largest ensemble has the best score on a side."""
    names = [name for name in made if name.startswith(f"{method} | ")]
    scores = {name: float(np.nanmean(agreement([_together(made[name], groups[-1])], side))) for name in names}
    return max(scores, key=lambda name: scores[name])


def trak_scores(path: Path, groups: int, shape: tuple[int, int]) -> dict[str, Any]:
    """TRAK's scores from its file, by setting: those of each group, ``(groups, n_test, n)``."""
    found: dict[str, Any] = torch.load(path, weights_only=True)
    want = (groups, *shape)
    for name, scores in found.items():
        if tuple(scores.shape) != want:
            raise ValueError(
                f"nftk.experiments.counterfactual: {path}: TRAK's scores must have shape {list(want)}, got "
                f"{list(scores.shape)} for {name!r}"
            )
    return found


def run(request: Request) -> Record:
    """Train networks on all and on halves, score the training images, and compare."""
    require("scipy", purpose="fitting surrogates", extra="app")
    sizes = QUICK if request.quick else FULL
    place = Place(request.place.runs / "counterfactual", request.place.data_dir)
    place.runs.mkdir(parents=True, exist_ok=True)
    data = digits(place, sizes.train, sizes.test + sizes.choice_test)
    drawn = {
        "compared": (draw_subsets(sizes.train, sizes.subsets, alpha=ALPHA, seed=0), 1000, slice(0, sizes.test)),
        "choice": (draw_subsets(sizes.train, sizes.choice_subsets, alpha=ALPHA, seed=1), 2000, slice(sizes.test, None)),
    }
    wanted = [Piece(place, data.x, data.y, seed, sizes.epochs) for seed in range(request.seeds)]
    for subsets, first, _ in drawn.values():
        wanted += pieces(place, data, subsets, sizes, first)
    for done, _ in enumerate(side_by_side(train, wanted, jobs=request.jobs), 1):
        if not done % 10:
            request.say(f"counterfactual: {done} of {len(wanted)} networks")
    sides = {}
    for name, (subsets, first, images) in drawn.items():
        outputs = retrained(place, data, subsets, sizes, first)[:, images]
        sides[name] = Side(subsets, images, *margins(outputs, data.y_test[images]))
    groups = [*([seed] for seed in range(request.seeds)), *(list(range(k)) for k in ensembles(request.seeds)[1:])]
    models = [trained_cnn(place, data.x, data.y, seed=seed, epochs=sizes.epochs) for seed in range(request.seeds)]
    given = exchanged(place, models, groups, data)
    theirs = given.with_name(f"{given.stem}-trak.pt")
    accuracy: list[float] = []
    made: Scores = {}
    for seed in range(request.seeds):
        found = network(place, data, seed, sizes.epochs)
        accuracy.append(float((found.outputs[sizes.train :].argmax(1) == data.y_test).double().mean()))
        key = _digest(found.model.state_dict().values(), [data.x, data.x_test, torch.tensor(SHARES + PENALTIES)])
        path = place.runs / f"scores-seed{seed}-{key}.pt"
        if not path.exists():
            with replacing(path) as temporary:
                torch.save({name: scores.float() for name, scores in candidates(found, data).items()}, temporary)
        for name, scores in torch.load(path, weights_only=True).items():
            made.setdefault(name, []).append(scores)
        request.say(f"counterfactual: attributions of network {seed + 1} of {request.seeds}")
    chosen = {choose(made, method, sides["choice"], groups): method for method in METHODS}
    trak = {}
    if theirs.exists():
        trak = trak_scores(theirs, len(groups), (len(data.x_test), len(data.x)))
    else:
        request.say(
            f"counterfactual: no TRAK; bench/peers/peer_traker.py {given} makes its scores, then run this again"
        )
    by_group = {name: [_together(made[name], group) for group in groups] for name in chosen}
    if trak:
        last = {name: float(np.nanmean(agreement([scores[-1]], sides["choice"]))) for name, scores in trak.items()}
        best = max(last, key=lambda name: last[name])
        for name in dict.fromkeys((best, TRAK_DEFAULT if TRAK_DEFAULT in trak else best)):
            title = TRAK if name == best else f"{TRAK}, its package's defaults"
            chosen[f"{title} | projected to {name.replace(' ', ', ridge ')}"] = title
            by_group[f"{title} | projected to {name.replace(' ', ', ridge ')}"] = list(trak[name])
    rows = [
        {
            "method": method,
            "settings": name.partition(" | ")[2],
            "networks": size,
            "output": output,
            **_measured(agreement(scores, sides["compared"], output)),
            "choice": float(np.nanmean(agreement(scores, sides["choice"], output))),
        }
        for name, method in chosen.items()
        for size, scores in _by_size(by_group[name], request.seeds).items()
        for output in ("margin", "logit")
    ]
    found_rows: dict[str, Any] = {
        "sizes": sizes._asdict(),
        "alpha": ALPHA,
        "accuracy": accuracy,
        "rows": rows,
        "on_choice": {
            name: float(np.nanmean(agreement([_together(scores, groups[-1])], sides["choice"])))
            for name, scores in made.items()
        },
    }
    if trak:
        found_rows["trak_on_choice"] = last
        titles = {title: name for name, title in chosen.items()}
        found_rows["ours_less_trak"] = [
            {
                "networks": size,
                **difference(scores, _by_size(by_group[titles[TRAK]], request.seeds)[size], sides["compared"]),
            }
            for size, scores in _by_size(by_group[titles[OURS]], request.seeds).items()
        ]
    return Record("counterfactual", found_rows, markdown(found_rows, request.seeds))


def ensembles(networks: int) -> list[int]:
    """Sizes of ensembles: one, three where there are more, and all."""
    return sorted({1, min(3, networks), networks})


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor], side: Side) -> dict[str, float]:
    """Mean score of ours less theirs, with 95 % intervals: over test images, and over these and subsets."""

    def apart(part: Side) -> np.ndarray[Any, np.dtype[np.float64]]:
        return agreement(ours, part) - agreement(theirs, part)

    found = _measured(apart(side))
    random = np.random.default_rng(0)
    m, n = side.margin.shape
    means = []
    for _ in range(RESAMPLES // 5):
        kept = torch.from_numpy(random.integers(m, size=m))
        again = apart(Side(side.subsets[kept], side.images, side.margin[kept], side.logit[kept]))
        means.append(float(np.nanmean(again[random.integers(n, size=n)])))
    low, high = np.quantile(means, [0.025, 0.975])
    return found | {"low_subsets": float(low), "high_subsets": float(high)}


def markdown(found: dict[str, Any], networks: int) -> str:
    """The record as Markdown."""
    sizes, rows, counts = found["sizes"], found["rows"], ensembles(networks)

    def told(row: dict[str, Any]) -> str:
        return f"{row['lds']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"

    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = {(row["networks"], row["output"]): row for row in rows if row["method"] == method}
        cells = [told(own[k, "margin"]) for k in counts]
        lines.append([method, own[counts[-1], "margin"]["settings"], *cells, told(own[counts[-1], "logit"])])
    head = [f"{k} network{'s' if k > 1 else ''}" for k in counts]
    accuracy = ", ".join(f"{100 * value:.1f}" for value in found["accuracy"])
    parts = [
        "# What networks without half of their data say",
        f"Linear datamodeling score: for each of {sizes['test']} test images, Spearman's correlation over "
        f"{sizes['subsets']} random subsets ({100 * ALPHA:g} % of {sizes['train']} training images of MNIST) between "
        f"the subset's summed scores and the margin log(p / (1 - p)) of the correct class after training on it "
        f"({sizes['repeats']} network{'s' if sizes['repeats'] > 1 else ''} a subset); mean and 95 % bootstrap interval "
        f"over test images. Networks on all images have test accuracies of {accuracy} %; with more than one, scores "
        "are averaged, and of one it is the mean over all. Settings are those with the best score of all networks on "
        f"{sizes['choice_subsets']} other subsets and {sizes['choice_test']} other test images.",
        table(["attribution", "settings", *head, f"{head[-1]}, correct logit"], lines),
    ]
    for row in found.get("ours_less_trak", []):
        parts.append(
            f"Ours less TRAK, {row['networks']} network{'s' if row['networks'] > 1 else ''}: {row['lds']:+.3f}, "
            f"[{row['low']:+.3f}, {row['high']:+.3f}] over test images, [{row['low_subsets']:+.3f}, "
            f"{row['high_subsets']:+.3f}] over test images and subsets."
        )
    if "ours_less_trak" not in found:
        parts.append("TRAK was not run: bench/peers/README.md.")
    return "\n\n".join(parts)


def exchanged(place: Place, models: list[nn.Sequential], groups: list[list[int]], data: Digits) -> Path:
    """Leave networks, images and groups in the file that bench/peers/peer_traker.py takes."""
    train, test = (data.x, data.y), (data.x_test, data.y_test)
    states = [value for model in models for value in model.state_dict().values()]
    path = place.runs / f"networks-{_digest(states, [*train, *test, torch.tensor([len(g) for g in groups])])}.pt"
    if not path.exists():
        with replacing(path) as temporary:
            torch.save({"models": models, "train": train, "test": test, "groups": groups}, temporary)
    return path


def _of_class(scores: Tensor, y: Tensor) -> Tensor:
    return scores.gather(2, y[:, None, None].expand(-1, scores.shape[1], 1))[..., 0]


def _together(scores: Sequence[Tensor], group: Sequence[int]) -> Tensor:
    return torch.stack([scores[number] for number in group]).mean(0)


def _by_size(scores: Sequence[Tensor], networks: int) -> dict[int, list[Tensor]]:
    """Scores of groups, those of single networks together."""
    return {1: list(scores[:networks])} | {
        size: [scores[networks + i]] for i, size in enumerate(ensembles(networks)[1:])
    }


def _measured(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    values = values[np.isfinite(values)]
    found = bootstrap("counterfactual", lambda counts: counts @ values / counts.sum(1), len(values))
    return {"lds": found.value, "low": found.low, "high": found.high}


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(x)).double()


def _digest(*tensors: Iterable[Tensor]) -> str:
    made = hashlib.sha256()
    for some in tensors:
        for tensor in some:
            made.update(tensor.contiguous().numpy().tobytes())
    return made.hexdigest()[:10]
