"""nftk explain: what a prediction rests on, by training example and layer."""

import hashlib
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

import nftk
from nftk._files import replacing
from nftk._optional import require
from nftk.cli.progress import Progress
from nftk.cli.runs import TrainedRun, load_run
from nftk.cli.settings import SettingsError
from nftk.cli.train import InterruptedRun
from nftk.regression.solve import KernelWarning

# of the run: by the number of training examples and the seed
CACHE = "surrogate_{count}_{seed}.safetensors"
# test examples on which the surrogate is compared with the network
COMPARED = 200
# characters of a label that a table shows
LABEL = 12
# share of training examples that choose the penalty
HELD = 0.2
# penalties to choose from, as shares of the kernel's mean diagonal: soft targets want little
SHARES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def explain(
    run: Path,
    index: int,
    *,
    data: str | None,
    data_dir: str | None,
    class_: str | None,
    top: int,
    limit: int,
    seed: int,
    out: Path | None,
    overwrite: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Explain one test example's prediction by the network in run, and leave a picture."""
    for option, value in (("--top", top), ("--limit", limit)):
        if value < 1:
            raise SettingsError(f"nftk: {option} must be at least 1, got {value}")
    if not 0 <= seed < 2**63:
        raise SettingsError(f"nftk: --seed must be at least 0 and below 2**63, got {seed}")
    for package in ("matplotlib", "scipy"):
        require(package, purpose="nftk explain", extra="app")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise SettingsError(f"nftk: --out must be a file in a folder that exists, got {out}")
    if out is not None and out.exists() and not overwrite:
        raise SettingsError(f"nftk: --out must not be there yet, got {out}; --overwrite replaces it")
    started = time.monotonic()
    trained = load_run(run, data, data_dir)
    size = len(trained.data.y_test)
    if not 0 <= index < size:
        raise SettingsError(
            f"nftk: --index must be from 0 to {size - 1}, a test example of {trained.data.name}, got {index}"
        )
    chosen = _class(class_, trained.class_names)
    try:
        surrogate, kept, told = _surrogate(trained, limit, seed, progress)
    except KeyboardInterrupt:
        raise InterruptedRun(
            "nftk: interrupted; nothing is saved before the surrogate is fitted, the same command starts from the "
            "beginning"
        ) from None
    x, x_train = trained.inputs("test")[index : index + 1], trained.inputs("train")[kept]
    k = nftk.empirical_ntk(trained.model, x, x_train, reduction="trace")
    with torch.no_grad():
        network = trained.model(x).double().softmax(1)[0]
    attribution = nftk.attribution.attribute(surrogate, k)
    found = nftk.attribution.explain(attribution, 0, int(network.argmax()) if chosen is None else chosen, top=top)
    said, names = surrogate.predict_proba(k)[0], trained.class_names
    labels = trained.data.y_train[kept]
    sides = {
        side: [
            {
                "example": int(kept[i]),
                "label": names[int(labels[i])],
                "score": float(score),
                "by_layer": dict(zip(found.names, layers.tolist(), strict=True)),
            }
            for i, score, layers in zip(ranked.examples.tolist(), ranked.scores, by_layer.T, strict=True)
        ]
        for side, ranked, by_layer in (
            ("supporters", found.supporters, found.supporters_by_layer),
            ("opposers", found.opposers, found.opposers_by_layer),
        )
    }
    folder = run.parent if run.is_file() else run
    # by the class's number: a name may be no file's
    picture = folder / f"explain_{index}_class_{found.class_}.png" if out is None else out
    result = {
        "index": index,
        "data": trained.data.name,
        "label": names[int(trained.data.y_test[index])],
        "prediction": {"network": _said(network, names), "surrogate": _said(said, names)},
        "explained_class": names[found.class_],
        "agree": int(network.argmax()) == int(said.argmax()),
        "surrogate": told,
        "output": found.output,
        "intercept": found.intercept,
        **sides,
        "layers": {
            name: {"for": float(a), "against": float(b)}
            for name, a, b in zip(found.names, found.layers_for, found.layers_against, strict=True)
        },
        "picture": str(picture),
    }
    _draw(result, trained, found, kept, picture)
    return result | {"seconds": time.monotonic() - started}


def show(result: dict[str, Any]) -> None:
    """Print an explanation as tables."""
    console = Console()
    network, surrogate, told = *(result["prediction"][who] for who in ("network", "surrogate")), result["surrogate"]
    title = Text(f"Test example {result['index']} of {result['data']}")
    head = Table(title=title, title_justify="left", show_header=False)
    general = (
        f"the network's class for {told['agreement']:.1%} of {told['compared']} test examples, Kendall tau "
        f"{told['tau']:.3f}; {told['training_examples']} training examples"
    )
    what = f"class {result['explained_class']}: {result['output']:+.4g}, of it {result['intercept']:+.4g} intercept"
    for name, value in (
        ("label", result["label"]),
        ("network says", f"{network['class']} ({network['probability']:.4f})"),
        ("surrogate says", f"{surrogate['class']} ({surrogate['probability']:.4f})"),
        ("surrogate in general", general),
        ("explained", what),
        ("picture", result["picture"]),
    ):
        head.add_row(Text(name), Text(str(value), overflow="fold"))
    console.print(head)
    names = list(result["layers"])
    # layers by their numbers, which leave room for what they say
    rows = [["speaks", "example", "label", "score", *(str(i + 1) for i in range(len(names)))]]
    for side, word in (("supporters", "for"), ("opposers", "against")):
        for row in result[side]:
            label = row["label"] if len(row["label"]) <= LABEL else row["label"][: LABEL - 1] + "…"
            cells = [word, str(row["example"]), label, f"{row['score']:+.3g}"]
            rows.append([*cells, *(f"{row['by_layer'][name]:+.2g}" for name in names)])
    for word in ("for", "against"):
        total = sum(layer[word] for layer in result["layers"].values())
        rows.append([word, "all", "", f"{total:+.3g}", *(f"{result['layers'][name][word]:+.2g}" for name in names)])
    console.print(Text("\nTraining examples, and what each says by layer: " + _numbered(names), style="italic"))
    for columns in _pieces(rows, console.width):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
        for name in (rows[0][i] for i in columns):
            table.add_column(Text(name), justify="left" if name in ("speaks", "label") else "right", no_wrap=True)
        for cells in rows[1:]:
            table.add_row(*(Text(cells[i]) for i in columns))
        console.print(table)


def _numbered(names: list[str]) -> str:
    """Which number is which layer; of readouts in turn the first and the last."""
    if len(names) > 2 and names == [f"readout {i + 1}" for i in range(len(names))]:
        return f"1 to {len(names)} are readout 1 to readout {len(names)}"
    return ", ".join(f"{i + 1} is {name}" for i, name in enumerate(names))


def _pieces(rows: list[list[str]], width: int) -> list[list[int]]:
    """Columns of each table: what begins a row, and as many layers as a line of the terminal has room for."""
    # a column and the space before it
    sizes = [max(map(len, column)) + 1 for column in zip(*rows, strict=True)]
    lead = list(range(4))
    found = [lead.copy()]
    for i in range(4, len(sizes)):
        if len(found[-1]) > 4 and sum(sizes[j] for j in [*found[-1], i]) + 1 > width:
            found.append(lead.copy())
        found[-1].append(i)
    return found


def _class(given: str | None, names: list[str]) -> int | None:
    """Read --class: a name, or a number."""
    if given is None:
        return None
    if given in names:
        return names.index(given)
    if given.isdecimal() and int(given) < len(names):
        return int(given)
    raise SettingsError(
        f"nftk: --class must be one of {', '.join(names)}, or a number below {len(names)}, got {given!r}"
    )


def _surrogate(
    trained: TrainedRun, limit: int, seed: int, progress: Progress
) -> tuple[nftk.surrogate.KernelSurrogate, Tensor, dict[str, Any]]:
    """The surrogate of the network, from the run's folder where it is of this network and these data."""
    from nftk.surrogate.penalty import held_out
    from nftk.surrogate.surrogate_file import load, save

    y = trained.data.y_train
    kept = torch.arange(len(y))
    if limit < len(y):
        kept = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:limit].sort().values
    x = trained.inputs("train")[kept]
    digest = hashlib.sha256(trained.file.read_bytes())
    digest.update(x.numpy().tobytes())
    digest.update(trained.inputs("test")[:COMPARED].numpy().tobytes())
    # it says which examples choose the penalty, where it does not say which are kept
    digest.update(str(seed).encode())
    fingerprint, path = digest.hexdigest(), trained.file.parent / CACHE.format(count=len(x), seed=seed)
    stored = load(path)
    if stored is not None and stored[1].get("of") == fingerprint:
        return stored[0], kept, stored[1]["told"]
    x_test, y_test = trained.inputs("test")[:COMPARED], trained.data.y_test[:COMPARED]
    with torch.no_grad():
        p, p_test = (trained.model(part).double().softmax(1) for part in (x, x_test))
    if not len(held_out(p.argmax(1), HELD, seed)[1]):
        raise SettingsError(
            "nftk: --limit must take training examples enough to hold some out, at least three that the network gives "
            f"one class, got {limit} of {len(y)}"
        )
    progress.line(f"nftk explain: fitting a surrogate to {len(x)} training examples, once for these settings")
    omega = trained.model.omega.detach().double()
    k = nftk.empirical_ntk(trained.model, x, reduction="trace")
    # the kernel of the weighted readouts: Omega enters squared; terms between layers are left out
    weights = omega.square().mean(0)
    mean = float((weights * k.diagonal().double().mean(1)).sum())
    with warnings.catch_warnings():
        # of a penalty at the end of the grid; how good the surrogate is, is told
        warnings.simplefilter("ignore", KernelWarning)
        surrogate = nftk.surrogate.KernelSurrogate(
            target="probabilities",
            weights=weights,
            penalties=[mean * s for s in SHARES],
            validation=HELD,
            seed=seed,
            tolerance=1e-6,
        ).fit(k, p)
    said = surrogate.predict_proba(nftk.empirical_ntk(trained.model, x_test, x, reduction="trace"))
    told = {
        "training_examples": len(x),
        "compared": len(x_test),
        "agreement": float((said.argmax(1) == p_test.argmax(1)).double().mean()),
        "tau": nftk.surrogate.kendall_tau(p_test, said, y_test, resamples=0).value,
        "penalty": surrogate.penalty_,
    }
    save(surrogate, path, {"of": fingerprint, "told": told})
    return surrogate, kept, told


def _said(p: Tensor, names: list[str]) -> dict[str, Any]:
    return {"class": names[int(p.argmax())], "probability": float(p.max())}


def _draw(result: dict[str, Any], trained: TrainedRun, found: Any, kept: Tensor, picture: Path) -> None:
    shape, split = trained.data.image_shape, trained.data
    pictures: dict[str, Tensor] = {}
    if shape is not None:
        images = split.x_train[kept].reshape(-1, *shape)
        pictures = {
            "example": split.x_test[result["index"]].reshape(shape),
            "supporters": images[found.supporters.examples],
            "opposers": images[found.opposers.examples],
        }
    network = result["prediction"]["network"]
    figure = nftk.interpret.plot_explanation(
        found,
        **pictures,
        labels=[[row["label"] for row in result[side]] for side in ("supporters", "opposers")],
        title=f"{result['label']}, taken for {network['class']} ({network['probability']:.3f}); "
        f"what speaks for {result['explained_class']}",
    )
    with replacing(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
