"""Figure 2 of the NFT-K paper: Omega and the similarities of its layers and classes, as heat maps."""

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nftk._checks import check_choice
from nftk._optional import require

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Matrix = npt.NDArray[np.float64]

# inches: a cell that can hold "-0.98", the smallest and largest side of a panel, colour bar, gaps
CELL, SMALLEST, LARGEST, BAR, GAP = 0.31, 1.6, 4.0, 0.11, 0.08
# points: cell values, tick labels, axis labels, titles
CELL_SIZE, TICK_SIZE, LABEL_SIZE, TITLE_SIZE = 6.5, 7.5, 8.5, 9.5
MOST_WRITTEN = 12  # rows or columns with values written in the cells
LONGEST_NAME = 20  # characters
# CIELAB lightness falls and rises by 24 a step (82, 58, 34, 7, 33, 56, 83); blue and orange differ to every eye
BLUE_BLACK_ORANGE = ["#9fd0ff", "#3f8ede", "#1f4f8f", "#141414", "#7d3a10", "#c96f1d", "#ffc27a"]


def plot_omega(
    model_or_omega: Any,
    *,
    class_names: Sequence[str] | None = None,
    norm: str | None = "l2",
    layer_similarity: str = "product",
    title: str | None = None,
) -> "Figure":
    r"""Three heat maps that say which layer serves which class: Figure 2 of the paper.

    .. math:: \Omega_n^\top \Omega_n, \quad \Omega_n \Omega_n^\top, \quad \Omega_n, \qquad
        \Omega_n = \text{Omega with each row divided by its norm}

    With ``norm="l2"`` the second holds the cosines between classes; the first, as in the paper, holds inner products of
    layers, not cosines. Omega alone is not identifiable: scaling a readout and unscaling omega is the same function,
    so its picture is a start and no proof. Colour scales start at 0 and run to the largest entry, dark
    to bright (viridis). Where a custom constraint left negative entries, a panel that has any runs from blue through
    black to orange, symmetric about 0. Entries that are exactly zero are white with a dot or a "0", in every panel.

    Args:
        model_or_omega: A module with an ``omega`` tensor, or with one submodule that has it; or Omega itself, shape
            ``[d, L]``, classes by layers: a tensor of any real dtype, an array or a nested list. It is copied.
        class_names: One name a class; the default is the labels 0 to d - 1. Names of more than 20 characters are
            shortened in the middle. Layers are numbered from 1, nearest the input.
        norm: What each row is divided by: ``"l2"``, ``"l1"`` (weights of a class then add up to 1), or None or
            ``"none"`` to leave Omega as it is. Rows of zeros stay zero.
        layer_similarity: ``"product"`` as in the paper, or ``"cosine"``, which also divides the columns of Omega_n by
            their L2 norms in the first panel.
        title: A line above the panels, wrapped at their width.

    Returns:
        A figure unknown to pyplot: ``savefig`` writes it, a notebook shows it. Its axes are the three panels, each
        followed by its colour bar. Equal inputs give equal bytes. The arithmetic is in float64.

    Raises:
        TypeError: If Omega is not real numbers, or no omega is found.
        ValueError: If Omega is not a finite matrix with at least one entry, if several are found, if class_names does
            not have d names, or if norm or layer_similarity is none of the above.
        ImportError: If matplotlib is missing; the message has the command that installs it.

    References:
        Alemohammad et al., "NFT-K: Non-Fungible Tangent Kernels", ICASSP 2022, https://arxiv.org/abs/2110.04945,
        Figure 2.

    Example:
        >>> from nftk.interpret import plot_omega
        >>> figure = plot_omega([[3.0, 4.0], [0.0, 2.0]])
        >>> figure.axes[4].images[0].get_array().tolist()  # rows of length 1; exact zeros are masked
        [[0.6, 0.8], [None, 1.0]]
    """
    norm = norm or "none"
    check_choice("plot_omega", "norm", norm, ("l2", "l1", "none"))
    check_choice("plot_omega", "layer_similarity", layer_similarity, ("product", "cosine"))
    omega = _as_matrix(model_or_omega)
    d, depth = omega.shape
    names = [_shorten(str(name)) for name in (range(d) if class_names is None else class_names)]
    if len(names) != d:
        raise ValueError(f"nftk.plot_omega: class_names must have one name for each of {d} classes, got {len(names)}")
    require("matplotlib", purpose="plot_omega", extra="app")
    layers, classes, normalized = figure2_matrices(omega, norm, layer_similarity)

    layer = _Axis("layer", [str(i + 1) for i in range(depth)], first=1)
    class_ = _Axis("class", names, may_stand=class_names is not None)
    n, t = r"\Omega" if norm == "none" else r"\Omega_n", r"^{\mathsf{T}}\,"
    left = f"Layers (inner products)\n${n}{t}{n}$"
    if layer_similarity == "cosine":
        left = f"Layers (cosines of columns)\n${n}{t}{n}$, columns of unit norm"
    middle = f"Classes ({'cosines' if norm == 'l2' else 'inner products'})\n${n}{n}{t}$"
    right = f"Weights, {'not normalised' if norm == 'none' else f'rows of unit {norm.upper()} norm'}\n${n}$"
    panels = [
        _Panel(layers, layers == 0, left, layer, layer),
        _Panel(classes, classes == 0, middle, class_, class_),
        _Panel(normalized, omega == 0, right, class_, layer),
    ]
    return _draw(panels, f"exactly zero: {np.count_nonzero(omega == 0)} of {d * depth} entries of $\\Omega$", title)


def figure2_matrices(omega: Matrix, norm: str, layer_similarity: str) -> tuple[Matrix, Matrix, Matrix]:
    """Return (layers by layers, classes by classes, normalised Omega); rows and columns of zeros stay zero."""
    normalized = omega if norm == "none" else _unit(omega, 1 if norm == "l1" else 2)
    columns = _unit(normalized.T, 2) if layer_similarity == "cosine" else normalized.T
    return columns @ columns.T, normalized @ normalized.T, normalized


def _unit(x: Matrix, order: int) -> Matrix:
    # the largest entry goes first, so that no square overflows or vanishes
    largest = np.abs(x).max(axis=1, keepdims=True)
    x = x / np.where(largest == 0, 1, largest)
    length = np.linalg.norm(x, order, axis=1, keepdims=True)
    return x / np.where(length == 0, 1, length)


def _as_matrix(source: Any) -> Matrix:
    omega = getattr(source, "omega", source)
    if isinstance(omega, torch.nn.Module):
        found = [m.omega for m in omega.modules() if isinstance(getattr(m, "omega", None), Tensor)]
        if len(found) > 1:
            raise ValueError(f"nftk.plot_omega: model_or_omega must contain one omega, got {len(found)}; pass the one")
        omega = found[0] if found else omega
    if isinstance(omega, Tensor):
        omega = omega.detach().cpu()
        omega = omega.numpy() if omega.is_complex() else omega.double().numpy()
    try:
        omega = np.asarray(omega)
    except ValueError:  # a ragged list
        omega = np.asarray(None)
    if omega.dtype.kind not in "biuf":
        rule = "must be a real matrix of shape [d, L] or a model with one as its omega"
        raise TypeError(f"nftk.plot_omega: model_or_omega {rule}, got {type(source).__name__} of {omega.dtype}")
    if omega.ndim != 2 or omega.size == 0:
        raise ValueError(f"nftk.plot_omega: omega must have shape [d, L], both at least 1, got {list(omega.shape)}")
    # the square of more than 1e150 leaves float64
    if bad := np.count_nonzero(~(np.abs(omega) <= 1e150)):
        rule = "must be finite, at most 1e150 in size"
        raise ValueError(f"nftk.plot_omega: omega {rule}, got {bad} of {omega.size} entries that are not")
    return omega.astype(np.float64)


@dataclass(frozen=True)
class _Axis:
    """One side of a panel: what is counted along it, and the names from which ticks are picked."""

    label: str
    names: list[str]
    first: int = 0  # the number of the first entry
    may_stand: bool = False  # below a panel, names that are too wide stand upright; numbers are thinned

    @property
    def side(self) -> float:
        return min(max(CELL * len(self.names), SMALLEST), LARGEST)

    @property
    def cell(self) -> float:
        return self.side / len(self.names)

    def ticks(self, need: float) -> list[int]:
        """Return the entries to label, need inches apart: all, or the first and every 5th, 10th, 20th, ..."""
        steps = [1] + [k * 10**e for e in range(7) for k in (5, 10, 20)]
        step = next(s for s in steps if (s - self.first * (s > 1)) * self.cell >= need or s > len(self.names))
        return [i for i in range(len(self.names)) if i == 0 or (i + self.first) % step == 0]


class _Panel:
    """One heat map, and the room in inches that its text needs on each side."""

    def __init__(self, values: Matrix, zero: npt.NDArray[np.bool_], title: str, rows: _Axis, columns: _Axis) -> None:
        from matplotlib.ticker import MaxNLocator

        self.values, self.zero, self.title, self.rows, self.columns = values, zero, title, rows, columns
        self.high = float(np.abs(values).max()) or 1.0
        self.low = -self.high if values.min() < 0 else 0.0
        line, label = 1.3 * TICK_SIZE / 72, 1.6 * LABEL_SIZE / 72
        widest = max(_width(name, TICK_SIZE) for name in columns.names)
        self.standing = columns.may_stand and widest + GAP > columns.cell
        self.x_ticks = columns.ticks(line if self.standing else widest + GAP)
        self.y_ticks = rows.ticks(line)
        # rounded, so that a largest cosine of 1 +- 1e-16 gives the same ticks as 1
        ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(self.low, float(f"{self.high:.6g}"))
        self.bar_ticks = {float(t): f"{t:.4g}" for t in ticks if self.low <= t <= self.high * (1 + 1e-6)}
        self.below = (widest if self.standing else line) + label + GAP
        self.left = max(_width(rows.names[i], TICK_SIZE) for i in self.y_ticks) + label + GAP
        # wide enough for the title too, which starts at the panel's left edge
        self.right = 5 * GAP + BAR + max(_width(text, TICK_SIZE) for text in self.bar_ticks.values())
        few = max(values.shape) <= MOST_WRITTEN
        self.written = [[_number(value) for value in row] for row in values] if few else []
        if any(
            _width(text, CELL_SIZE) > 0.92 * columns.cell for text in {text for row in self.written for text in row}
        ):
            self.written = []

    def draw(self, figure: "Figure", left: float, top: float) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import LinearSegmentedColormap

        width, height = figure.get_size_inches()
        bottom, tall = 1 - (top + self.rows.side) / height, self.rows.side / height
        axes = figure.add_axes((left / width, bottom, self.columns.side / width, tall))
        beside = figure.add_axes(((left + self.columns.side + GAP) / width, bottom, BAR / width, tall))
        colors: Colormap = colormaps["viridis"]
        if self.low < 0:
            colors = LinearSegmentedColormap.from_list("blue-black-orange", BLUE_BLACK_ORANGE)
        shown = np.ma.masked_array(self.values, self.zero)
        image = axes.imshow(shown, colors.with_extremes(bad="white"), aspect="auto", interpolation="nearest")
        image.set_clim(self.low, self.high)
        if self.written:
            for (i, j), color in np.ndenumerate(_ink(image.to_rgba(shown))):
                axes.text(j, i, self.written[i][j], size=CELL_SIZE, color=color, ha="center", va="center_baseline")
        else:
            dot = 0.4 * 72 * min(self.columns.cell, self.rows.cell)
            i, j = np.nonzero(self.zero)
            axes.plot(j, i, ".", color="0.4", markersize=min(max(dot, 1.0), 5.0), markeredgewidth=0)
        axes.set(xlim=(-0.5, len(self.columns.names) - 0.5), ylim=(len(self.rows.names) - 0.5, -0.5))
        axes.grid(visible=False)
        axes.set_title(self.title, size=TITLE_SIZE, loc="left", linespacing=1.3, pad=8)
        axes.set_xlabel(self.columns.label, size=LABEL_SIZE)
        axes.set_ylabel(self.rows.label, size=LABEL_SIZE)
        x_names, y_names = [self.columns.names[i] for i in self.x_ticks], [self.rows.names[i] for i in self.y_ticks]
        axes.set_xticks(self.x_ticks, x_names, size=TICK_SIZE, parse_math=False, rotation=90 * self.standing)
        axes.set_yticks(self.y_ticks, y_names, size=TICK_SIZE, parse_math=False)
        figure.colorbar(image, cax=beside).set_ticks(list(self.bar_ticks), labels=list(self.bar_ticks.values()))
        axes.tick_params(length=2, pad=2)
        beside.tick_params(length=2, pad=2, labelsize=TICK_SIZE)


def _draw(panels: list[_Panel], zeros: str, title: str | None) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    width = sum(p.left + p.columns.side + p.right for p in panels) + GAP
    lines = textwrap.wrap(title or "", int(width / (0.65 * 12 / 72)))
    top = 0.2 * len(lines) + 3.6 * TITLE_SIZE / 72 + GAP
    height = top + max(p.rows.side + p.below for p in panels) + 0.3
    figure = Figure((width, height), dpi=150)
    figure.set_layout_engine("none")
    left = GAP
    for panel in panels:
        panel.draw(figure, left + panel.left, top)
        left += panel.left + panel.columns.side + panel.right
    if lines:
        figure.text(0.5, 1 - GAP / height, "\n".join(lines), size=12, ha="center", va="top")
    white = Line2D([], [], linestyle="none", marker="s", markersize=8, color="white", markeredgecolor="0.4")
    figure.legend([white], [zeros], loc="lower left", fontsize=TICK_SIZE, frameon=False)
    # a notebook that never imported pyplot shows a figure by this method only
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _width(text: str, size: float) -> float:
    """Return the width of text in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0] / 72


def _ink(rgba: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    """Return black or white for text on each colour, whichever has more contrast by WCAG's luminance."""
    rgb = rgba[..., :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.where(linear @ [0.2126, 0.7152, 0.0722] < 0.179, "white", "black")


def _number(value: float) -> str:
    """Return at most three digits, and "0" for zero alone."""
    size = abs(value)
    if value == 0:
        return "0"
    if 0.005 <= size < 9999.5:
        return f"{value:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f}"
    return re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.0e}")


def _shorten(name: str) -> str:
    """Return the name on one line, its middle left out if it is long: numbered names differ at their ends."""
    name = " ".join(name.split())
    if len(name) <= LONGEST_NAME:
        return name
    half = (LONGEST_NAME - 1) // 2
    return f"{name[:half].rstrip()}\N{HORIZONTAL ELLIPSIS}{name[-half:].lstrip()}"
