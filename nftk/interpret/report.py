"""report: what a trained network's layers say about its classes, as one HTML file for people."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal

import torch
from torch import Tensor

import nftk
from nftk._checks import check_choice, check_integer
from nftk._optional import require
from nftk.interpret import report_figures as figures
from nftk.interpret.logit_parts import check_labels, check_network
from nftk.interpret.plot_omega import figure2_matrices
from nftk.interpret.report_figures import number, percent
from nftk.interpret.report_findings import KINDS, Case, Findings, find
from nftk.interpret.report_page import Page, facts, image, of, section, table
from nftk.training.history import EpochRecord

_OP = "interpret.report"
SEED = 0  # of the examples that importances are computed on, and of the random order
CASES = 12
_LOSSES = {"cross_entropy": "cross-entropy", "mse": "squared error"}
FEATURES = 5  # told of an example that is no image


def report(
    model: Any,
    x: Tensor,
    y: Tensor,
    *,
    class_names: Sequence[str] | None = None,
    title: str = "",
    images: Tensor | None = None,
    history: Sequence[EpochRecord] = (),
    baseline_history: Sequence[EpochRecord] = (),
    about: Mapping[str, str] | None = None,
    loss: Literal["cross_entropy", "mse"] = "cross_entropy",
    limit: int = 2000,
) -> str:
    """One self-contained HTML page about a trained network: what its layers do for its classes, and its worst errors.

    Figure 2 of the paper with values on hover, three importances and how far they agree, accuracy and zeros over
    training, each class, and the test examples with the largest loss with what each layer added for them. The page
    loads nothing, and its Content-Security-Policy sees to it.

    Args:
        model: An :class:`nftk.NFTKMLP`; taken in eval mode, and left as it was.
        x: Test inputs as the model takes them, shape ``(n, m)``.
        y: Their labels, int64 ``(n,)``.
        class_names: One name a class; the default is the labels.
        title: What the data are called.
        images: What to show of the examples, shape ``(n, height, width)``; None: a table of their largest inputs.
        history: Records of the training, as :func:`nftk.fit` returns them.
        baseline_history: Those of a plain network trained beside it.
        about: Further facts for the head of the page, name and value.
        loss: What the model was trained with: which examples are the worst, and what ablation measures.
        limit: Importances and deletion curves, which take long, are computed on at most so many rows, drawn with a
            fixed seed; the rest on all.

    Returns:
        The text of the file. Equal inputs give equal text.

    Raises:
        TypeError: If ``model`` is no NFT-K network, or data or labels are not tensors of the right dtype.
        ValueError: If shapes, names or labels do not fit, an input or an output is not finite, or ``limit`` is below 1.
        ImportError: If plotly, matplotlib or scipy is missing; the message has the command that installs it.

    Example:
        >>> import torch, nftk
        >>> from nftk.interpret import report
        >>> x = torch.randn(60, 4)
        >>> page = report(nftk.NFTKMLP(4, [8] * 3, 2), x, (x[:, 0] > 0).long(), title="signs")
        >>> page[:15], "https://cdn" in page.split("<script>")[0]
        ('<!DOCTYPE html>', False)
    """
    for package in ("plotly", "matplotlib", "scipy"):
        require(package, purpose="report", extra="app")
    check_network(_OP, model, x)
    y = check_labels(_OP, y, len(x), model.out_features)
    check_choice(_OP, "loss", loss, _LOSSES)
    limit = check_integer(_OP, "limit", limit, 1)
    names = [str(name) for name in (range(model.out_features) if class_names is None else class_names)]
    if len(names) != model.out_features:
        raise ValueError(
            f"nftk.{_OP}: class_names must have one name for each of {model.out_features} classes, got {len(names)}"
        )
    if images is not None and (not isinstance(images, Tensor) or images.ndim != 3 or len(images) != len(x)):
        found = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"nftk.{_OP}: images must have shape [{len(x)}, height, width], got {found}")

    findings = find(model, x, y, loss, limit, SEED, CASES)
    page = Page(" ".join(["NFT-K report:", title or "a network"]))
    page.add(_head(model, findings, title, history, about or {}, loss), "<main>")
    page.add(_figure2(page, findings, names), _importances(page, findings, names, loss))
    page.add(_training(page, history, baseline_history), _classes(page, findings, names))
    bias = "" if model.output_bias is None else ", with the output's bias"
    page.add(_worst(page, findings, names, x, images, loss, bias), "</main>", _foot())
    return page.text()


def _head(
    model: Any,
    found: Findings,
    title: str,
    history: Sequence[EpochRecord],
    about: Mapping[str, str],
    loss: str,
) -> str:
    zeros, entries = int((found.omega == 0).sum()), found.omega.size
    share = history[-1].zeros_from_start if history else None
    from_start = "" if share is None else f"; {round(share * zeros):,} of them from the start"
    pairs = [
        ("Test accuracy", of(found.right, found.examples)),
        (f"Test loss ({_LOSSES[loss]})", number(found.loss)),
        ("Zeros in Omega", f"{zeros:,} of {entries:,}{from_start}"),
        ("Parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        *about.items(),
    ]
    anchors = {
        "figure2": "Layers and classes",
        "importance": "Importance",
        "training": "Training",
        "classes": "Classes",
        "worst": "Worst errors",
    }
    links = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in anchors.items())
    data = f" on {escape(title)}" if title else ""
    return (
        f"<header><h1>NFT-K network {_shape(model)}{data}</h1>"
        "<p>A multilayer perceptron whose every hidden layer has its own readout; Omega weighs what each layer says "
        "about each class.</p>"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>{facts(pairs)}'
        "<noscript><p><strong>The figures are drawn by JavaScript, which is off here.</strong></p></noscript></header>"
    )


def _shape(model: Any) -> str:
    """Its sizes, as 784 - 10 x 256 - 10."""
    widths = model.hidden_features
    alike = len(set(widths)) == 1 and len(widths) > 1
    hidden = f"{len(widths)} \u00d7 {widths[0]}" if alike else " \u2013 ".join(map(str, widths))
    return f"{model.in_features} \u2013 {hidden} \u2013 {model.out_features}"


def _figure2(page: Page, found: Findings, names: list[str]) -> str:
    similar, cosines, omega = figure2_matrices(found.omega, "l2", "product")
    layer, class_ = ("layer", figures.layers(len(similar))), ("class", figures.labels(names))
    panels = [
        ("layers", "Layers", "Inner products of the columns of Omega: which layers serve the same classes.",
         figures.heatmap(similar, layer, layer, "inner product")),
        ("cosines", "Classes", "Cosines between the rows: which classes are served by the same layers.",
         figures.heatmap(cosines, class_, class_, "cosine")),
        ("omega", "Omega", "The weights, each class's row divided by its length.",
         figures.heatmap(omega, class_, layer, "weight", zero=found.omega == 0, more=[("before that", found.omega)])),
    ]  # fmt: skip
    drawn = [page.figure(f"figure2-{name}", json, title, text) for name, title, text, json in panels]
    return section(
        "figure2",
        "Which layers serve which classes",
        "<p>Figure 2 of the paper, for this network. Layer 1 is nearest the input. A dot marks what is exactly zero. "
        "Omega alone is not identifiable, since a readout can be scaled up and its weight down without any change to "
        "the function: take this picture as a start and no proof.</p>",
        f'<div class="grid level">{"".join(drawn)}</div>',
    )


def _importances(page: Page, found: Findings, names: list[str], loss: str) -> str:
    layer, class_ = ("layer", figures.layers(found.omega.shape[1])), ("class", figures.labels(names))
    what = _LOSSES[loss]
    told = {
        "omega": "The trained weights themselves, the paper's measure. It does not say what the function does: other "
        "weights, with other readouts, give the same function.",
        "contribution": "The share of a logit's variance that the layer brings, logits taken less their mean over "
        "classes; a class's shares add up to 1. It says what varies with the answer, not what would be lost without "
        "the layer.",
        "ablation": f"By how much the mean {what} rises when that one weight is set to 0. It does not say what entries "
        "do together: two that can stand in for each other each look unimportant.",
    }
    units = {"omega": "weight", "contribution": "share of variance", "ablation": f"{what} gained"}
    drawn = []
    for kind in KINDS:
        if kind in found.missing:
            reason = escape(found.missing[kind])
            drawn.append(
                f"<figure><figcaption><h3>{kind}</h3><p>{told[kind]}</p></figcaption><p>Not here: {reason}</p></figure>"
            )
            continue
        values = found.importances[kind]
        more = [("omega", found.omega)] if kind != "omega" else []
        if kind == "ablation":
            more.append(("accuracy lost without it", found.accuracy_lost))
        json = figures.heatmap(values, class_, layer, units[kind], more=more)
        drawn.append(page.figure(f"importance-{kind}", json, kind, told[kind]))
    here = [kind for kind in KINDS if kind in found.importances]
    rows = [[a, *(_correlation(found.correlations[a, b]) for b in here)] for a in here]
    every = len(found.sample) == found.examples
    sample = (
        f"all {found.examples:,} test examples"
        if every
        else f"{len(found.sample):,} of the {found.examples:,} test examples, drawn with seed {SEED}"
    )
    return section(
        "importance",
        "How important each layer is for each class",
        f"<p>Three answers side by side, computed on {sample}. Where they agree there is something to believe.</p>",
        f'<div class="grid level">{"".join(drawn)}</div>',
        '<div class="grid"><div><h3>Do they agree?</h3>',
        f'<p class="quiet">Spearman\'s rank correlation over {found.omega.size:,} entries; 1 is the same order.</p>',
        table("Rank correlation of the importances", ["", *here], rows) + "</div>",
        page.figure(
            "deletion",
            figures.deletion(found.curves),
            "Which order is right?",
            "Accuracy while Omega's entries are set to 0, the least important first: the better the order, the longer "
            f"the curve stays high. Numbers are mean heights; the random order is one draw with seed {SEED}.",
        )
        + "</div>",
    )


def _correlation(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


def _training(page: Page, history: Sequence[EpochRecord], baseline: Sequence[EpochRecord]) -> str:
    if not history:
        return section("training", "Training", "<p>There is no record of an epoch.</p>")
    panels = [
        ("accuracy", "Accuracy", "train_accuracy", "test_accuracy"),
        ("loss", "Loss", "loss", "test_loss"),
        ("zeros", "Zeros in Omega", "zeros", None),
    ]
    drawn = []
    for name, title, field, test_field in panels:
        shown = [r for r in (*history, *baseline) if None not in (getattr(r, field), getattr(r, test_field or field))]
        if shown or field == "loss":
            json = figures.over_training(field, test_field, history, baseline)
            drawn.append(page.figure(f"training-{name}", json, title, ""))
    return section(
        "training",
        "Training",
        '<p class="quiet">Training values are means over the epoch, taken before each step; test values are of its '
        "end.</p>",
        f'<div class="grid">{"".join(drawn)}</div>',
    )


def _classes(page: Page, found: Findings, names: list[str]) -> str:
    shares = found.importances.get("contribution")
    rows = []
    for i, counts in enumerate(found.confusion):
        total, errors = int(counts.sum()), counts.copy()
        errors[i] = 0
        worst = int(errors.argmax())
        confused = f"{names[worst]} ({errors[worst]:,})" if errors[worst] else "-"
        if shares is None:
            layer = "-"
        else:
            layer = f"{int(shares[i].argmax()) + 1} ({percent(float(shares[i].max()))})"
        accuracy = percent(counts[i] / total) if total else "-"
        rows.append([names[i], f"{total:,}", accuracy, confused, layer])
    head = ["class", "examples", "accuracy", "most often taken for", "layer with most contribution"]
    return section(
        "classes",
        "Each class",
        '<div class="grid">',
        "<div>" + table(f"By class, all {found.examples:,} test examples", head, rows, names=(3,)) + "</div>",
        page.figure(
            "confusion",
            figures.confusion(found, figures.labels(names)),
            "Confusions",
            "Only errors are coloured; the diagonal counts right answers.",
        ),
        "</div>",
    )


def _worst(
    page: Page, found: Findings, names: list[str], x: Tensor, images: Tensor | None, loss: str, bias: str
) -> str:
    low, high = (0.0, 1.0) if images is None else (float(images.min()), float(images.max()))
    items = []
    for place, case in enumerate(found.worst, 1):
        label, told = escape(names[case.label]), _told(case, names, loss)
        picture = ""
        if images is not None:
            address = image(images[case.row].cpu().numpy(), low, high)
            picture = f'<img src="{address}" alt="Test example {case.row}, of class {label}">'
        features = "" if images is not None else _features(x, case.row)
        json = figures.said_by_layers(case, figures.labels(names))
        said = f"What each layer added to the outputs for test example {case.row}"
        items.append(
            f'<li class="case"><h3>{place}. Test example {case.row}</h3>'
            f'<div class="who">{picture}<div>{told}</div></div>'
            f"{features}{page.plot(f'case-{place}', json, said)}</li>"
        )
    return section(
        "worst",
        "The worst-classified test examples",
        f"<p>Those with the largest {_LOSSES[loss]}, of all {found.examples:,}; rows of the test part are "
        "counted from 0. The bars are what each layer added to the output of a class, its readout times its weight in "
        f"Omega; they add up to the output{bias}. What counts is the difference between the two classes.</p>",
        f'<ol class="cases">{"".join(items)}</ol>',
    )


def _told(case: Case, names: list[str], loss: str) -> str:
    """Which class an example is, which it was taken for, and how sure the network was."""
    outputs = torch.from_numpy(case.outputs)
    sure = outputs.softmax(0)
    lines = [("true", "True class", case.label)]
    if case.other is not None:
        lines.append(("answer", "Runner-up" if case.answer == case.label else "Answer", case.other))
    told = ""
    for mark, what, i in lines:
        size = f"output {number(float(outputs[i]))}" if loss == "mse" else f"probability {_probability(float(sure[i]))}"
        told += f'<p><span class="swatch {mark}"></span>{what}: <strong>{escape(names[i])}</strong>, {size}</p>'
    return told + f'<p class="quiet">Loss {number(case.loss)}</p>'


def _probability(value: float) -> str:
    return percent(value) if value >= 0.001 else f"{value:.1e}"


def _features(x: Tensor, row: int) -> str:
    """The features of one example that are farthest from 0, as the network takes them."""
    order = x[row].abs().sort(descending=True, stable=True).indices[:FEATURES].tolist()
    rows = [[f"feature {i}", number(float(x[row, i]))] for i in order]
    return (
        '<div class="features">'
        + table("Largest inputs, as the network takes them", ["input", "value"], rows)
        + "</div>"
    )


def _foot() -> str:
    import plotly

    return (
        f"<footer><p>Written by nftk {escape(nftk.__version__)}; figures by plotly {escape(plotly.__version__)}, which "
        "stands in this file. Nothing is loaded from anywhere.</p></footer>"
    )
