"""plot_explanation: a test example beside the training examples that speak for and against its class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from nftk._optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    # not when this is run: it needs scipy and scikit-learn, which a network's importances do not
    from nftk.attribution import Explanation

FOR, AGAINST = "#1f6fb2", "#c96f1d"
# inches: a picture, and a bar with its name
CELL, BAR = 1.15, 0.26


def plot_explanation(
    explanation: "Explanation",
    *,
    example: Tensor | None = None,
    supporters: Tensor | None = None,
    opposers: Tensor | None = None,
    labels: Sequence[Sequence[str]] = ((), ()),
    title: str | None = None,
) -> "Figure":
    """Draw an explanation: pictures above, what each layer says below.

    Args:
        explanation: As :func:`nftk.attribution.explain` gives it.
        example: The test example's picture ``(h, w)``; None where examples are none: then bars stand for them.
        supporters: Pictures of its supporters, ``(k, h, w)``.
        opposers: Pictures of its opposers, alike.
        labels: A word on each supporter and each opposer.
        title: A line above.

    Returns:
        A figure unknown to pyplot.

    Raises:
        ImportError: If matplotlib is missing; the message has the command that installs it.
    """
    require("matplotlib", purpose="plot_explanation", extra="app")
    from matplotlib.figure import Figure

    rows = [
        ("for", FOR, explanation.supporters, supporters, list(labels[0])),
        ("against", AGAINST, explanation.opposers, opposers, list(labels[1])),
    ]
    most = max(1, *(len(ranked.examples) for _, _, ranked, _, _ in rows))
    layers = len(explanation.names)
    height = 2 * (CELL + 0.45) + BAR * layers + 1.3
    figure = Figure((CELL * (most + 1) + 1.2, height), dpi=150, layout="constrained")
    # in matplotlib's types an array, or one alone
    parts: Any = figure.subfigures(2, 1, height_ratios=[2 * (CELL + 0.45), BAR * layers + 0.9])
    above, below = parts
    if title:
        figure.suptitle(title, size=10, parse_math=False)
    if example is None:
        _bars(above.subplots(1, 2), rows)
    else:
        axes = above.subplots(2, most + 1, squeeze=False)
        for each in axes.flat:
            each.set_axis_off()
        axes[0, 0].imshow(example.cpu().numpy(), cmap="gray")
        axes[0, 0].set_title("the example", size=7)
        for line, (side, color, ranked, pictures, words) in zip(axes, rows, strict=True):
            for i, score in enumerate(ranked.scores.tolist()):
                if pictures is not None:
                    line[i + 1].imshow(pictures[i].cpu().numpy(), cmap="gray")
                word = f"{words[i]}\n" if words else ""
                line[i + 1].set_title(f"{word}{score:+.3g} ({side})", size=7, color=color, parse_math=False)
    _layers(below.subplots(), explanation)
    return figure


def _layers(axes: Any, explanation: "Explanation") -> None:
    at = np.arange(len(explanation.names))
    axes.barh(at, explanation.layers_for.numpy(), color=FOR, label="for")
    axes.barh(at, explanation.layers_against.numpy(), color=AGAINST, label="against")
    axes.set_yticks(at, explanation.names, size=7)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.tick_params(labelsize=7)
    axes.set_xlabel("all training examples, by the layer that they speak through", size=8)
    axes.legend(fontsize=7, frameon=False)


def _bars(pair: Any, rows: Sequence[tuple[Any, ...]]) -> None:
    for axes, (side, color, ranked, _, words) in zip(pair, rows, strict=True):
        at = np.arange(len(ranked.examples))
        axes.barh(at, ranked.scores.numpy(), color=color)
        names = (
            [f"{number} {word}" for number, word in zip(ranked.examples.tolist(), words, strict=True)]
            if words
            else None
        )
        axes.set_yticks(at, names or [str(number) for number in ranked.examples.tolist()], size=7, parse_math=False)
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
        axes.set_title(f"training examples {side}", size=8)
