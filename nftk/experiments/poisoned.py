"""Poisoned MNIST: does attribution blame the poison, and through which modules is the stamp seen?

A tenth of one class is stamped with a white square and relabelled, and a network is trained on that. Suspects are
stamped test images that it gives the label of the poison, against ordinary test images that it gives the same. The
training examples, of which the first CANDIDATES are asked, are ranked by :func:`nftk.attribution.find_poisoned` on the
scores of kernel surrogates and on plain similarities.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from nftk._optional import require
from nftk.attribution import Attribution, Suspicion, attribute, find_poisoned, self_influence, top_k
from nftk.experiments.kept import kept
from nftk.experiments.mnist_cnn import EPOCHS, TEST, TRAIN, Digits, digits, trained_cnn
from nftk.experiments.record import Record, Request, spread, table
from nftk.surrogate import KernelSurrogate
from nftk.tangent import LayerKernels, embedding_kernel, loss_gradient_kernel, pntk, trntk

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE, TARGET, SHARE = 7, 1, 0.1
# the stamp: rows and columns from this one, so many of each, near the lower right corner
CORNER, SIDE = 24, 3
# the first training examples, among which the poison is sought, and the first test examples, which are ordinary
CANDIDATES, ORDINARY = 1000, 200
# all kernels have a diagonal of 1; PENALTY, at which modules are told apart, is the largest at which the trNTK's
# surrogate gives both most suspects and nearly all ordinary images the network's class
PENALTIES, PENALTY = (1e-1, 1e-2, 1e-3, 1e-4), 1e-3
QUICK = {"train": 600, "test": 150, "epochs": 20, "candidates": 600, "ordinary": 60}
FULL = {"train": TRAIN, "test": TEST, "epochs": EPOCHS, "candidates": CANDIDATES, "ordinary": ORDINARY}
TITLES = {"trntk": "trNTK", "pntk": "pNTK", "embedding": "embedding cosine"}
SIMILAR = {
    "trntk": "trNTK alone",
    "pntk": "pNTK alone",
    "embedding": "embedding cosine alone",
    "loss_gradient": "loss-gradient cosine (uses labels)",
}


class Poison(NamedTuple):
    """Training examples with some of them stamped and relabelled; which, boolean ``(n,)``."""

    x: Tensor
    y: Tensor
    rows: Tensor


def stamp(x: Tensor, white: float) -> Tensor:
    """The same images ``(n, 1, 28, 28)`` with a white square."""
    x = x.clone()
    x[..., CORNER : CORNER + SIDE, CORNER : CORNER + SIDE] = white
    return x


def poison(x: Tensor, y: Tensor, *, seed: int) -> Poison:
    """Stamp a share of SOURCE's images, drawn by the seed, and give them the label TARGET."""
    members = (y == SOURCE).nonzero().flatten()
    drawn = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))
    chosen = members[drawn[: max(1, round(SHARE * len(members)))]]
    rows = torch.zeros(len(y), dtype=torch.bool)
    rows[chosen] = True
    x, y = x.clone(), y.clone()
    x[chosen], y[chosen] = stamp(x[chosen], float(x.max())), TARGET
    return Poison(x, y, rows)


def ranks(suspicion: Suspicion, poisoned: Tensor) -> list[int]:
    """Places of the poisoned examples among all, from 1, ascending."""
    return (poisoned[suspicion.order].nonzero().flatten() + 1).tolist()


def precision(places: Sequence[int], k: int) -> float:
    """Share of the first k examples that is poisoned."""
    return sum(place <= k for place in places) / k


def recall(places: Sequence[int], k: int) -> float:
    """Share of the poisoned examples that is among the first k."""
    return sum(place <= k for place in places) / len(places)


def average_precision(places: Sequence[int]) -> float:
    """Mean of the precision at every poisoned example's place."""
    return sum((i + 1) / place for i, place in enumerate(places)) / len(places)


def half(scores: Tensor) -> float:
    """Fewest training examples that carry half of a row's positive scores; mean over rows."""
    falling = scores.clamp(min=0).sort(dim=1, descending=True).values.cumsum(1)
    return float(((falling < falling[:, -1:] / 2).sum(1) + 1).double().mean())


def one(request: Request, data: Digits, seed: int, sizes: dict[str, int]) -> dict[str, Any]:
    """Poison, train, and ask every method: ranks of the poisoned examples, and what each module carries."""
    given = poison(data.x, data.y, seed=seed)
    model = trained_cnn(request.place, given.x, given.y, seed=seed, epochs=sizes["epochs"])
    before = data.x_test[data.y_test == SOURCE]
    after = stamp(before, float(data.x.max()))
    others = stamp(data.x_test[(data.y_test != SOURCE) & (data.y_test != TARGET)], float(data.x.max()))
    hit, said = _classes(model, after) == TARGET, _classes(model, data.x_test)
    if not bool(hit.any()):
        raise RuntimeError(f"nftk: the network of seed {seed} gives no stamped image the label {TARGET}")
    ordinary = sizes["ordinary"]
    # suspects, the same images without the stamp, ordinary images
    asked = torch.cat((after[hit], before[hit], data.x_test[:ordinary]))
    n = int(hit.sum())
    clean = 2 * n + (said[:ordinary] == TARGET).nonzero().flatten()
    count = sizes["candidates"]
    x, y, poisoned = given.x[:count], given.y[:count], given.rows[:count]
    found: dict[str, Any] = {
        "seed": seed,
        "candidates": count,
        "poisoned": int(poisoned.sum()),
        "poisoned_in_training": int(given.rows.sum()),
        "clean_accuracy": float((said == data.y_test).double().mean()),
        "attack_success": float(hit.double().mean()),
        "unstamped_as_target": float((_classes(model, before) == TARGET).double().mean()),
        "other_classes_as_target": float((_classes(model, others) == TARGET).double().mean()),
        "suspects": n,
        "clean": len(clean),
    }  # fmt: skip

    def places(scores: Tensor) -> list[int]:
        return ranks(find_poisoned(scores[:n], scores[clean]), poisoned)

    key = _key(model, x, asked)

    def kernels(name: str, make: Callable[[], LayerKernels]) -> LayerKernels:
        return _computed(request.place.runs / f"poisoned-seed{seed}-{key}-{name}.safetensors", make)

    joint: dict[str, Any] = {"per": "module", "normalize": "joint"}
    pairs = {
        "trntk": (kernels("trntk", lambda: trntk(model, x, **joint)),
                  kernels("trntk-asked", lambda: trntk(model, asked, x, **joint))),
        "pntk": (kernels("pntk", lambda: pntk(model, x)), kernels("pntk-asked", lambda: pntk(model, asked, x))),
        "embedding": (kernels("embedding", lambda: embedding_kernel(model, x)),
                      kernels("embedding-asked", lambda: embedding_kernel(model, asked, x))),
    }  # fmt: skip
    target = torch.full((len(asked),), TARGET)
    gradients = kernels("loss-gradient", lambda: loss_gradient_kernel(model, asked, target, x, y))
    similar = {name: k_asked for name, (_, k_asked) in pairs.items()} | {"loss_gradient": gradients}
    found["similar"] = {name: places(k.blocks.sum(0)) for name, k in similar.items()}
    said_of = torch.cat((target[:n], _classes(model, before[hit]), said[:ordinary]))
    found["surrogates"] = {}
    for name, (k, k_asked) in pairs.items():
        for penalty in PENALTIES:
            surrogate = KernelSurrogate(penalty=penalty).fit(k, y)
            made = attribute(surrogate, k_asked)
            scores = made.scores(TARGET)
            positive = scores[:n].clamp(min=0)
            agrees = made.predicted == said_of
            found["surrogates"][f"{name} {penalty:g}"] = {
                "places": places(scores),
                "without_clean": ranks(find_poisoned(scores[:n]), poisoned),
                "agreement_ordinary": float(agrees[2 * n :].double().mean()),
                "agreement_suspects": float(agrees[:n].double().mean()),
                "half": half(scores[:n]),
                "poison_share": float((positive[:, poisoned].sum(1) / positive.sum(1)).mean()),
                "objective": surrogate.objective_,
                "iterations": surrogate.iterations_,
            }
            if name == "trntk":
                told = found["surrogates"][f"{name} {penalty:g}"]
                told["modules"] = modules(made, n, clean, poisoned, places)
                own = self_influence(surrogate, k, y).sum(0)
                told["self_influence"] = ranks(Suspicion(top_k(own, len(own)).examples, own), poisoned)
            request.say(f"poisoned, seed {seed}, {name}, penalty {penalty:g}: "
                        f"{_told(found['surrogates'][f'{name} {penalty:g}']['places'])}")  # fmt: skip
    return found


def modules(
    made: Attribution, n: int, clean: Tensor, poisoned: Tensor, places: Callable[[Tensor], list[int]]
) -> dict[str, dict[str, Any]]:
    """What each module alone says: the first n test examples are suspects, the next n the same without a stamp."""
    scores = made.by_layer(TARGET)
    positive = scores.clamp(min=0)
    totals = positive.sum(2)
    shares = totals / totals.sum(0)
    of_source = made.by_layer(SOURCE).sum(2)
    margin = scores.sum(2) - of_source
    return {
        name: {
            "places": places(scores[i]),
            "share_suspects": float(shares[i, :n].mean()),
            "share_clean": float(shares[i, clean].mean()),
            "poison_share": float((positive[i, :n][:, poisoned].sum(1) / totals[i, :n]).mean()),
            "margin_moved": float((margin[i, :n] - margin[i, n : 2 * n]).mean()),
        }
        for i, name in enumerate(made.names)
    }


def _classes(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(x).argmax(1))


def _key(model: nn.Module, *inputs: Tensor) -> str:
    """A name for what kernels of these inputs are computed from."""
    made = hashlib.sha256()
    for tensor in (*model.state_dict().values(), *inputs):
        made.update(tensor.contiguous().numpy().tobytes())
    return made.hexdigest()[:10]


def _computed(path: Path, make: Callable[[], LayerKernels]) -> LayerKernels:
    """What make returns, from disk where it has been."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        make().save(path)
    return LayerKernels.load(path)


def _found(request: Request, data: Digits, seed: int, sizes: dict[str, int]) -> dict[str, Any]:
    """What was found with one seed, from disk where it has been."""
    images = hashlib.sha256(data.x.numpy().tobytes() + data.x_test.numpy().tobytes()).hexdigest()
    settings = f"2 {sizes} {SOURCE} {TARGET} {SHARE} {CORNER} {SIDE} {PENALTIES} {PENALTY} {images}"
    return kept(request.place.runs, f"poisoned-seed{seed}", settings, lambda: one(request, data, seed, sizes))


def run(request: Request) -> Record:
    """Poison MNIST with every seed, and say what finds the poison and where the stamp is seen."""
    require("matplotlib", purpose="drawing poisoned.png", extra="app")
    require("scipy", purpose="fitting surrogates", extra="app")
    sizes = QUICK if request.quick else FULL
    data = digits(request.place, sizes["train"], sizes["test"])
    runs = [_found(request, data, seed, sizes) for seed in range(request.seeds)]
    rows = methods(runs)
    found = {
        "settings": sizes | {"source": SOURCE, "target": TARGET, "share": SHARE, "corner": CORNER, "side": SIDE},
        "rows": [{"method": name, **numbers(places)} for name, places in rows.items()],
        "runs": runs,
    }
    shown = stamp(data.x_test[data.y_test == SOURCE][:1], float(data.x.max()))[0, 0]
    return Record("poisoned", found, text(runs, rows, sizes), {"poisoned": plot(runs, rows, shown)})


def methods(runs: Sequence[dict[str, Any]]) -> dict[str, list[list[int]]]:
    """Ranks of the poisoned examples, by method and seed."""
    rows = {surrogate_title(key): [run["surrogates"][key]["places"] for run in runs] for key in runs[0]["surrogates"]}
    for name, what in SIMILAR.items():
        rows[what] = [run["similar"][name] for run in runs]
    for penalty in PENALTIES:
        own = [run["surrogates"][f"trntk {penalty:g}"]["self_influence"] for run in runs]
        rows[f"self-influence, penalty {penalty:g}"] = own
    return rows


def numbers(seeds: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """Precision at as many as are poisoned (which is the recall there), recall at twice that, average precision."""
    return {
        "precision": [precision(places, len(places)) for places in seeds],
        "recall_at_twice": [recall(places, 2 * len(places)) for places in seeds],
        "average_precision": [average_precision(places) for places in seeds],
    }


def _chosen(run: dict[str, Any]) -> dict[str, Any]:
    """The trNTK's surrogate at PENALTY."""
    found: dict[str, Any] = run["surrogates"][f"trntk {PENALTY:g}"]
    return found


def _told(places: Sequence[int]) -> str:
    return f"precision {precision(places, len(places)):.2f}, average precision {average_precision(places):.3f}"


def surrogate_title(key: str) -> str:
    """A surrogate as a person calls it."""
    name, penalty = key.split()
    return f"{TITLES[name]} attribution, penalty {penalty}"


def title(name: str) -> str:
    """A module of the network as a person calls it."""
    return {"0": "conv 1", "3": "conv 2", "6": "conv 3", "10": "linear 1", "12": "linear 2"}.get(name, name)


def text(runs: Sequence[dict[str, Any]], rows: dict[str, list[list[int]]], sizes: dict[str, int]) -> str:
    """The record as Markdown."""

    def over(*path: str, scale: float = 1.0, digits: int = 2) -> str:
        values = []
        for found in runs:
            value: Any = found
            for part in path:
                value = value[part]
            values.append(float(value))
        return spread(values, scale, digits)

    lines = [
        [name, *(spread(values, digits=2) for values in numbers(places).values())] for name, places in rows.items()
    ]
    chance = [run["poisoned"] / run["candidates"] for run in runs]
    lines.append(["chance", spread(chance), spread([2 * share for share in chance]), spread(chance)])
    keys = list(runs[0]["surrogates"])
    how = [
        [surrogate_title(key).replace(" attribution", ""),
         over("surrogates", key, "agreement_ordinary", scale=100, digits=1),
         over("surrogates", key, "agreement_suspects", scale=100, digits=1), over("surrogates", key, "half", digits=1),
         over("surrogates", key, "poison_share", scale=100, digits=1)]
        for key in keys
    ]  # fmt: skip
    names, chosen = list(_chosen(runs[0])["modules"]), ("surrogates", f"trntk {PENALTY:g}", "modules")
    by_module = [
        [title(name), over(*chosen, name, "margin_moved"), over(*chosen, name, "share_suspects", scale=100, digits=1),
         over(*chosen, name, "share_clean", scale=100, digits=1),
         over(*chosen, name, "poison_share", scale=100, digits=1),
         *(spread(values) for values in by_penalty(runs, name))]
        for name in names
    ]  # fmt: skip
    poisoned = ", ".join(f"{run['poisoned_in_training']} ({run['poisoned']})" for run in runs)
    networks = f"{len(runs)} networks, each with its own poison" if len(runs) > 1 else "One network with poison"
    head = (
        f"# Poisoned MNIST\n\n{sizes['train']} training images; of the {SOURCE}s {100 * SHARE:g} % carry a white "
        f"square of {SIDE} x {SIDE} pixels and the label {TARGET}. {networks}: {poisoned} images (in brackets those "
        f"among the first {sizes['candidates']}, in which they are sought). Stamped test {SOURCE}s classified "
        f"{TARGET}: {over('attack_success', scale=100, digits=1)} % (without the stamp "
        f"{over('unstamped_as_target', scale=100, digits=1)} %; other classes with it "
        f"{over('other_classes_as_target', scale=100, digits=1)} %). Accuracy on clean test images: "
        f"{over('clean_accuracy', scale=100, digits=1)} %.\n\n"
    )
    found = (
        "Mean and standard deviation over the networks. k is the number of poisoned images, so that precision at k is "
        f"recall at k. {', '.join(str(run['suspects']) for run in runs)} suspects against "
        f"{', '.join(str(run['clean']) for run in runs)} ordinary images that are classified {TARGET}. "
        "Penalties are shares of the kernels' diagonal, which is 1.\n\n"
        f"{table(['ranked by', 'precision and recall at k', 'recall at 2k', 'average precision'], lines)}\n\n"
    )
    surrogates = (
        "How near each surrogate is to its network, and how its scores are spread: the fewest training images that "
        f"carry half of a suspect's positive score for {TARGET}, and the share of it that the poison carries.\n\n"
        + table(["surrogate", "same class, ordinary, %", "suspects, %", "images for half", "poison, %"], how)
        + "\n\n"
    )
    where = (
        f"By module, trNTK attribution, penalty {PENALTY:g}: by how much it moves {TARGET}'s output over {SOURCE}'s "
        f"when the stamp is put on; its share of the positive score for {TARGET} of suspects and of ordinary images; "
        "the share of its own that the poison carries; and the precision at k of its scores alone, by penalty.\n\n"
        + table(
            ["module", f"{TARGET} over {SOURCE}", "share, suspects, %", "share, ordinary, %", "poison, %",
             *(f"precision, {penalty:g}" for penalty in PENALTIES)],
            by_module,
        )
        + f"\n\n{sentence(runs)}\n"
    )  # fmt: skip
    return head + found + surrogates + where


def by_penalty(runs: Sequence[dict[str, Any]], name: str) -> list[list[float]]:
    """Precision at k of a module's scores alone, by penalty and network."""
    return [
        numbers([run["surrogates"][f"trntk {penalty:g}"]["modules"][name]["places"] for run in runs])["precision"]
        for penalty in PENALTIES
    ]


def sentence(runs: Sequence[dict[str, Any]]) -> str:
    """Where the stamp is seen."""
    names = list(_chosen(runs[0])["modules"])

    def mean(name: str, what: str) -> float:
        return float(sum(_chosen(run)["modules"][name][what] for run in runs) / len(runs))

    moved = {name: mean(name, "margin_moved") for name in names}
    total = sum(moved.values())
    falling = sorted(names, key=lambda name: moved[name], reverse=True)
    told = ", ".join(f"{title(name)} {100 * moved[name] / total:.0f} %" for name in falling)
    blames = max(names, key=lambda name: mean(name, "poison_share"))
    risen = max(names, key=lambda name: mean(name, "share_suspects") - mean(name, "share_clean"))
    rise = 100 * (mean(risen, "share_suspects") - mean(risen, "share_clean"))
    return (
        f"The stamp moves the output for {TARGET} over that for {SOURCE} by {total:.2f} on the mean: {told}. The share "
        f"of positive score rises most, against ordinary images, in {title(risen)} (by {rise:.1f} points); the poison "
        f"has the largest share of a module's own in {title(blames)} ({100 * mean(blames, 'poison_share'):.0f} %)."
    )


def _networks(runs: Sequence[dict[str, Any]]) -> str:
    return "one network" if len(runs) == 1 else f"mean of {len(runs)} networks"


def plot(runs: Sequence[dict[str, Any]], rows: dict[str, list[list[int]]], shown: Tensor) -> "Figure":
    """A stamped image, the modules' precision, and precision over recall."""
    from matplotlib.figure import Figure

    figure = Figure((14, 4), dpi=120, layout="constrained")
    image, bars, curves = figure.subplots(1, 3, width_ratios=[1, 1.4, 2])
    image.imshow(shown.numpy(), cmap="gray")
    image.set_axis_off()
    image.set_title(f"a {SOURCE} with the stamp;\nin the training set it is called {TARGET}", size=9)
    names = list(_chosen(runs[0])["modules"])
    width = 0.8 / len(PENALTIES)
    for i, penalty in enumerate(PENALTIES):
        heights = [by_penalty(runs, name)[i] for name in names]
        at = [place + (i - (len(PENALTIES) - 1) / 2) * width for place in range(len(names))]
        bars.bar(at, [sum(v) / len(v) for v in heights], width, color=str(0.3 + 0.15 * i), label=f"{penalty:g}")
        for place, values in zip(at, heights, strict=True):
            bars.plot([place] * len(values), values, ".", color="#cc3311", markersize=4)
    bars.set_xticks(range(len(names)), [title(name) for name in names], size=8)
    bars.set(ylim=(0, 1.05), ylabel="precision at k, by the module's scores alone")
    bars.set_title(f"trNTK attribution, by penalty;\n{_networks(runs)}, each a point", size=9)
    bars.legend(fontsize=7, loc="lower right")
    count = min(run["candidates"] for run in runs)
    # of what comes at several penalties one, and every one of trNTK's attribution
    drawn = [name for name in rows if name.endswith(f" {PENALTY:g}") or "penalty" not in name or "trNTK" in name]
    for i, name in enumerate(drawn):
        seeds = rows[name]
        pairs = [
            [sum(of(places, k) for places in seeds) / len(seeds) for of in (recall, precision)]
            for k in range(1, count + 1)
        ]
        style = "-" if "trNTK attr" in name else "--" if "attribution" in name else ":"
        curves.plot(*zip(*pairs, strict=True), style, color=f"C{i}" if i < 10 else "black", linewidth=1.3, label=name)
    curves.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.05))
    curves.set_title(f"first k of the ranking; {_networks(runs)}", size=9)
    figure.legend(*curves.get_legend_handles_labels(), fontsize=7, loc="outside right center", frameon=False)
    return figure
