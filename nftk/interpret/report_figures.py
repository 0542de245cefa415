"""The figures of the report, as plotly's JSON; colours of text, lines and ground are set by report.js."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from nftk.interpret.faithfulness import DeletionCurve
from nftk.interpret.plot_omega import BLUE_BLACK_ORANGE, _shorten
from nftk.interpret.report_findings import Case, Findings, Matrix
from nftk.training.history import EpochRecord

# 3:1 or more on the page's white and on its dark ground; also told apart by dashes, symbols or their place
BLUE, ORANGE, GREEN, GREY = "#2f7fc1", "#d55e00", "#009e73", "#808080"
STYLES = {
    "omega": (BLUE, "solid", "circle"),
    "contribution": (ORANGE, "dash", "square"),
    "ablation": (GREEN, "dashdot", "diamond"),
    "random": (GREY, "dot", "cross"),
}
MOST_WRITTEN = 12  # rows or columns with values written in the cells


def labels(names: Sequence[str]) -> list[str]:
    """Names for an axis: short, no two alike, and nothing in them that plotly would take for markup."""
    short = [_shorten(name) for name in names]
    if len(set(short)) < len(short):
        short = [f"{i}: {name}" for i, name in enumerate(short)]
    # between two dollars it would look for MathJax
    return [escape(name, quote=False).replace("$", "&#36;") for name in short]


def layers(depth: int) -> list[str]:
    """Layers from 1, nearest the input."""
    return [str(i + 1) for i in range(depth)]


def heatmap(
    values: Matrix,
    rows: tuple[str, list[str]],
    columns: tuple[str, list[str]],
    told: str,
    *,
    zero: Any = None,
    more: Sequence[tuple[str, Matrix]] = (),
) -> str:
    """One matrix in colours; exact zeros are left uncoloured with a dot; told and more are what hovering says."""
    zero = values == 0 if zero is None else zero
    text = [[""] * values.shape[1] for _ in values]
    for i, j in np.ndindex(values.shape):
        lines = [f"{what} {number(matrix[i, j])}" for what, matrix in ((told, values), *more)]
        text[i][j] = "<br>".join([*lines, *(["exactly zero"] if zero[i, j] else [])])
    high = float(np.abs(values).max()) or 1.0
    signed = bool((values < 0).any())
    steps = np.linspace(0, 1, len(BLUE_BLACK_ORANGE)).tolist()
    trace = {
        "type": "heatmap",
        "x": columns[1],
        "y": rows[1],
        "z": np.where(zero, np.nan, values).tolist(),
        "text": text,
        "hovertemplate": f"{rows[0]} %{{y}}, {columns[0]} %{{x}}<br>%{{text}}<extra></extra>",
        "colorscale": list(zip(steps, BLUE_BLACK_ORANGE, strict=True)) if signed else "Viridis",
        "zmin": -high if signed else 0.0,
        "zmax": high,
        "colorbar": {"thickness": 9, "outlinewidth": 0, "xpad": 6, "nticks": 6},
        "xgap": 1,
        "ygap": 1,
    }
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": [columns[1][j] for _, j in np.argwhere(zero)],
        "y": [rows[1][i] for i, _ in np.argwhere(zero)],
        "marker": {"color": GREY, "size": 4},
        "hoverinfo": "skip",
    }
    return _figure([trace, *([dots] if np.any(zero) else [])], **_matrix_layout(rows, columns))


def confusion(findings: Findings, names: list[str]) -> str:
    """Errors in colours; what is right stands on the diagonal, uncoloured."""
    counts = findings.confusion
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.where(totals == 0, 1, totals)
    off = ~np.eye(len(counts), dtype=bool)
    text = [[f"{n} examples" for n in row] for row in counts.tolist()]
    for i, j in np.ndindex(counts.shape):
        text[i][j] += f", {percent(float(shares[i, j]))} of the class"
    written = len(counts) <= MOST_WRITTEN
    most = int((counts * off).max())
    trace = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": np.where(off & (counts > 0), counts, np.nan).tolist(),
        "text": text,
        "customdata": counts.tolist(),
        "hovertemplate": "true class %{y}, answer %{x}<br>%{text}<extra></extra>",
        "texttemplate": "%{z}" if written else "",
        "colorscale": "Viridis",
        "zmin": 0,
        "zmax": max(most, 1),
        "showscale": most > 0,
        "colorbar": {"thickness": 9, "outlinewidth": 0, "xpad": 6, "nticks": 6},
        "xgap": 1,
        "ygap": 1,
    }
    right = {
        "type": "scatter",
        "mode": "text",
        "x": names,
        "y": names,
        "text": [str(n) for n in np.diag(counts)],
        "hoverinfo": "skip",
    }
    rows, columns = ("true class", names), ("answer", names)
    return _figure([trace, *([right] if written else [])], **_matrix_layout(rows, columns))


def deletion(curves: Mapping[str, DeletionCurve]) -> str:
    """Accuracy while entries of Omega are removed, a line for each order."""
    traces = []
    for name, curve in curves.items():
        color, dash, symbol = STYLES[name]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"{name} {curve.area:.3f}",
                "x": curve.shares.tolist(),
                "y": curve.accuracy.tolist(),
                "line": {"color": color, "dash": dash, "width": 2},
                "marker": {"color": color, "symbol": symbol, "size": 6},
                "hovertemplate": f"{name}<br>%{{x:.0%}} of the open entries gone<br>accuracy %{{y:.2%}}<extra></extra>",
            }
        )
    x = {"title": {"text": "share of Omega's open entries set to 0"}, "tickformat": ".0%", "range": [-0.02, 1.02]}
    y = {"title": {"text": "accuracy"}, "tickformat": ".0%", "rangemode": "tozero"}
    return _figure(traces, height=380, xaxis=x, yaxis=y)


def over_training(
    field: str, test_field: str | None, history: Sequence[EpochRecord], baseline: Sequence[EpochRecord]
) -> str:
    """One quantity over the epochs: test data solid, training data dotted, the plain MLP in orange."""
    traces = []
    for records, name, color in ((history, "NFT-K", BLUE), (baseline, "plain MLP", ORANGE)):
        parts = [("test", test_field, "solid"), ("training", field, "dot")] if test_field else [("", field, "solid")]
        for part, of, dash in parts:
            values = [getattr(record, of) for record in records]
            if all(value is None for value in values):
                continue
            whose = f"{name}, {part}" if part else name
            shown = "%{y:.2%}" if "accuracy" in field else "%{y:.4~r}"
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": whose,
                    "x": [record.epoch for record in records],
                    "y": values,
                    "line": {"color": color, "dash": dash, "width": 2},
                    "marker": {"color": color, "size": 5, "symbol": "circle" if name == "NFT-K" else "square"},
                    "hovertemplate": f"{whose}<br>epoch %{{x}}: {shown}<extra></extra>",
                }
            )
    y: dict[str, Any] = {"title": {"text": {"zeros": "entries that are exactly 0"}.get(field, field.split("_")[-1])}}
    if "accuracy" in field:
        y["tickformat"] = ".1~%"
    elif field == "zeros":
        most = max([record.zeros for record in history if record.zeros is not None], default=0)
        y |= {"tickformat": "d", "range": [-0.04 * max(most, 2), 1.04 * max(most, 2)]}
        # plotly would put ticks between whole numbers
        y |= {"dtick": 1} if most < 6 else {}
    x = {"title": {"text": "epoch"}, "tickformat": "d", "nticks": 8}
    return _figure(traces, height=320, xaxis=x, yaxis=y, showlegend=len(traces) > 1)


def said_by_layers(case: Case, names: list[str]) -> str:
    """What each layer added to the true class's output and to that of the class beside it."""
    depth = layers(len(case.parts))
    traces = []
    for i, color in ((case.label, BLUE), (case.other, ORANGE)):
        if i is None:
            continue
        traces.append(
            {
                "type": "bar",
                "name": names[i],
                "x": depth,
                "y": case.parts[:, i].tolist(),
                "marker": {"color": color},
                "text": [f"{names[i]}: {number(v)}" for v in case.parts[:, i]],
                "textposition": "none",
                "hovertemplate": "layer %{x}<br>%{text}<extra></extra>",
            }
        )
    x = {"title": {"text": "layer"}, "type": "category"} | _numbered(len(depth))
    layout = {"barmode": "group", "bargap": 0.3, "showlegend": False, "margin": {"l": 8, "r": 4, "t": 6, "b": 8}}
    return _figure(traces, height=170, xaxis=x, yaxis={"nticks": 5}, **layout)


def number(value: float) -> str:
    """Three digits, and "0" for zero alone."""
    return "0" if value == 0 else f"{value:.3g}"


def percent(share: float, digits: int = 1) -> str:
    """A share in 0..1 as percent; never 100 for less than all, nor 0 for more than nothing. No line breaks in it."""
    shown = round(100 * share, digits)
    step = 10.0**-digits
    if 0 < share < 1:
        shown = min(max(shown, step), 100 - step)
    return f"{shown:.{digits}f}\u00a0%"


def _matrix_layout(rows: tuple[str, list[str]], columns: tuple[str, list[str]]) -> dict[str, Any]:
    side = min(max(25 * len(rows[1]), 150), 520)
    axis = {"type": "category", "showgrid": False, "zeroline": False, "ticks": ""}
    across, down = len(columns[1]) - 0.5, len(rows[1]) - 0.5
    x = axis | {"title": {"text": columns[0]}, "range": [-0.5, across]}
    return {
        "height": side + 80,
        # numbers are thinned, names may be turned
        "xaxis": x | _numbered(len(columns[1])) if columns[0] == "layer" else x,
        # a range of its own: plotly would leave room around the dots
        "yaxis": axis | {"title": {"text": rows[0], "standoff": 6}, "range": [down, -0.5]},
        "showlegend": False,
    }


def _numbered(count: int) -> dict[str, Any]:
    """Ticks at every number, or as many as have room on a narrow screen."""
    return {"tickangle": 0, "tick0": 0, "dtick": -(-count // 10)}


def _figure(traces: list[dict[str, Any]], **layout: Any) -> str:
    import plotly.graph_objects as go

    fixed = {"automargin": True, "fixedrange": True}
    base = {
        "template": "none",
        "autosize": True,
        # without it a finger that scrolls the page would draw a rectangle
        "dragmode": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "margin": {"l": 8, "r": 8, "t": 12, "b": 8},
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "entrywidthmode": "fraction",
            "entrywidth": 0.5,
        },
    }
    layout = layout | {name: fixed | layout[name] for name in ("xaxis", "yaxis")}
    text: str = go.Figure(data=traces, layout=base | layout).to_json()
    return text
