"""plot_omega: the matrices by hand, and the picture itself: what it says, and that all of it can be read."""

import importlib.util
import io
import math
import pickle
import re
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from nftk.interpret import plot_omega
from nftk.interpret.plot_omega import _as_matrix, _number, _shorten, figure2_matrices

OMEGA = np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
LONG = [f"domestic animals, long-haired and short-haired {i}" for i in range(100)]
# (d, L, long names): one of each, the 2, 10 and 100 classes and 2 to 50 layers, unlike sizes
CASES = [
    (1, 1, False),
    (2, 2, True),
    (10, 10, True),
    (10, 20, False),
    (100, 50, False),
    (100, 50, True),
    (2, 50, True),
    (100, 2, False),
]


def make_omega(d, depth, zeros=0.3, low=0.0):
    generator = torch.Generator().manual_seed(d + depth)
    omega = torch.rand(d, depth, generator=generator, dtype=torch.float64) * (1 - low) + low
    return omega * (torch.rand(d, depth, generator=generator) >= zeros)


def render(figure):
    """Return the pixels [height, width, 3] as floats in 0..255."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(float)


def panels(figure):
    return figure.axes[::2]


def shown(figure, panel):
    """What a panel draws, its zeros filled in."""
    return panels(figure)[panel].images[0].get_array().filled(0.0)


def cell_pixels(pixels, axes, i, j):
    """The pixels of one cell, without its border."""
    (x0, y1), (x1, y0) = axes.transData.transform([(j - 0.4, i - 0.4), (j + 0.4, i + 0.4)])
    height = pixels.shape[0]
    return pixels[math.ceil(height - y1) : math.floor(height - y0), math.ceil(x0) : math.floor(x1)].reshape(-1, 3)


def overlap(a, b):
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 0 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0


def luminance(color):
    rgb = np.array(color)[:3]
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize(
    ("norm", "layers", "classes", "normalized"),
    [
        ("l2", [[0.36, 0.48], [0.48, 1.64]], [[1, 0.8, 0], [0.8, 1, 0], [0, 0, 0]], [[0.6, 0.8], [0, 1], [0, 0]]),
        (
            "l1",
            [[9 / 49, 12 / 49], [12 / 49, 65 / 49]],
            [[25 / 49, 4 / 7, 0], [4 / 7, 1, 0], [0, 0, 0]],
            [[3 / 7, 4 / 7], [0, 1], [0, 0]],
        ),
        ("none", [[9, 12], [12, 20]], [[25, 8, 0], [8, 4, 0], [0, 0, 0]], [[3, 4], [0, 2], [0, 0]]),
    ],
)
def test_matrices(norm, layers, classes, normalized):
    for ours, truth in zip(figure2_matrices(OMEGA, norm, "product"), (layers, classes, normalized), strict=True):
        np.testing.assert_allclose(ours, truth, rtol=1e-15)


def test_matrices_cosine_of_columns():
    layers, classes, normalized = figure2_matrices(OMEGA, "l2", "cosine")
    cosine = 0.8 / math.sqrt(1.64)  # of (0.6, 0, 0) and (0.8, 1, 0)
    np.testing.assert_allclose(layers, [[1, cosine], [cosine, 1]], rtol=1e-15)
    np.testing.assert_allclose(classes[0], [1, 0.8, 0], rtol=1e-15)  # only the layers change
    np.testing.assert_allclose(normalized[0], [0.6, 0.8], rtol=1e-15)
    # a layer that no class uses stays zero
    assert figure2_matrices(np.array([[1.0, 0.0]]), "l2", "cosine")[0].tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("scale", [1e-200, 1e-320, 1e150])
def test_matrices_extreme_sizes(scale):
    """Squares of these vanish or overflow; the row's direction does not."""
    _, _, normalized = figure2_matrices(np.array([[scale, scale]]), "l2", "product")
    np.testing.assert_allclose(normalized, [[math.sqrt(0.5)] * 2], rtol=1e-15)


def test_inputs():
    class Model(torch.nn.Module):
        def __init__(self, omega):
            super().__init__()
            self.omega = torch.nn.Parameter(omega)

    omega = OMEGA[:2]
    tensor = torch.tensor(omega)
    wide = torch.nn.Parameter(tensor.T.contiguous()).T  # not contiguous, not a leaf, wants a gradient
    inner = Model(tensor.bfloat16())
    accepted = [
        tensor,
        wide,
        omega,
        omega.tolist(),
        omega.astype(int),
        inner,
        torch.nn.Sequential(torch.nn.ReLU(), inner),
    ]
    for source in accepted:
        matrix = _as_matrix(source)
        assert matrix.dtype == np.float64
        np.testing.assert_array_equal(matrix, omega)
    np.testing.assert_allclose(shown(plot_omega(inner), 2), [[0.6, 0.8], [0, 1]], rtol=1e-15)
    assert wide.requires_grad
    assert not wide.is_contiguous()
    np.testing.assert_array_equal(inner.omega.detach().double(), omega)


def test_panels():
    """The three panels in the paper's order, with their values, words, symbols and axes."""
    figure = plot_omega(OMEGA, class_names=["cat", "dog", "$cow$"], title="after training")
    for panel, truth in enumerate(figure2_matrices(OMEGA, "l2", "product")):
        np.testing.assert_array_equal(shown(figure, panel), truth)
    titles = [axes.get_title(loc="left") for axes in panels(figure)]
    assert titles == [
        "Layers (inner products)\n$\\Omega_n^{\\mathsf{T}}\\,\\Omega_n$",
        "Classes (cosines)\n$\\Omega_n\\Omega_n^{\\mathsf{T}}\\,$",
        "Weights, rows of unit L2 norm\n$\\Omega_n$",
    ]
    labels = [(axes.get_ylabel(), axes.get_xlabel()) for axes in panels(figure)]
    assert labels == [("layer", "layer"), ("class", "class"), ("class", "layer")]
    names = [[tick.get_text() for tick in axes.get_yticklabels()] for axes in panels(figure)]
    assert names == [["1", "2"], ["cat", "dog", "$cow$"], ["cat", "dog", "$cow$"]]
    assert [tick.get_text() for tick in panels(figure)[2].get_xticklabels()] == ["1", "2"]
    assert [tick.get_text() for tick in panels(figure)[1].get_xticklabels()] == ["cat", "dog", "$cow$"]
    assert not panels(figure)[1].get_xticklabels()[2].get_parse_math()
    assert not panels(figure)[1].get_yticklabels()[2].get_parse_math()
    assert figure.texts[0].get_text() == "after training"
    assert figure.legends[0].get_texts()[0].get_text() == "exactly zero: 3 of 6 entries of $\\Omega$"
    # [row, column], the first class and the layer nearest the input at the top left
    assert [text.get_text() for text in panels(figure)[2].texts] == ["0.60", "0.80", "0", "1.00", "0", "0"]
    assert panels(figure)[2].get_ylim() == (2.5, -0.5)


@pytest.mark.parametrize(
    ("norm", "similarity", "words"),
    [
        ("l1", "product", ["Layers (inner products)", "Classes (inner products)", "Weights, rows of unit L1 norm"]),
        (None, "product", ["Layers (inner products)", "Classes (inner products)", "Weights, not normalised"]),
        ("l2", "cosine", ["Layers (cosines of columns)", "Classes (cosines)", "Weights, rows of unit L2 norm"]),
    ],
)
def test_titles_follow_options(norm, similarity, words):
    figure = plot_omega(OMEGA, norm=norm, layer_similarity=similarity)
    assert [axes.get_title(loc="left").split("\n")[0] for axes in panels(figure)] == words
    for panel, truth in enumerate(figure2_matrices(OMEGA, norm or "none", similarity)):
        np.testing.assert_array_equal(shown(figure, panel), truth)


@pytest.mark.parametrize(("d", "depth", "names"), CASES)
def test_all_text_can_be_read(d, depth, names):
    """No text touches another, leaves the figure, covers another panel or outgrows its cell."""
    options = {"class_names": LONG[:d], "layer_similarity": "cosine", "title": "word " * 60} if names else {}
    figure = plot_omega(make_omega(d, depth, low=-0.5 if names else 0.0), **options)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    cells = {id(text): axes for axes in panels(figure) for text in axes.texts}
    for k, (text, box) in enumerate(zip(texts, boxes, strict=True)):
        told = f"{text.get_text()!r} at {box}"
        assert box.x0 >= 0, told
        assert box.y0 >= 0, told
        assert box.x1 <= figure.bbox.x1, told
        assert box.y1 <= figure.bbox.y1, told
        for other, second in zip(texts[k + 1 :], boxes[k + 1 :], strict=True):
            assert not overlap(box, second), f"{told} touches {other.get_text()!r}"
        if id(text) in cells:
            x, y = text.get_position()
            (x0, y1), (x1, y0) = cells[id(text)].transData.transform([(x - 0.5, y - 0.5), (x + 0.5, y + 0.5)])
            assert x0 < box.x0 < box.x1 < x1, told
            assert y0 < box.y0 < box.y1 < y1, told
        else:
            assert not any(overlap(box, axes.bbox) for axes in figure.axes), told
    assert all(len(axes.get_yticklabels()) > 0 for axes in panels(figure))
    assert max(figure.get_size_inches()) < 18


def test_ticks_are_thinned():
    figure = plot_omega(np.ones((100, 50)))
    layers = [tick.get_text() for tick in panels(figure)[2].get_xticklabels()]
    classes = [tick.get_text() for tick in panels(figure)[2].get_yticklabels()]
    assert layers == ["1", "5", "10", "15", "20", "25", "30", "35", "40", "45", "50"]
    assert classes == [str(i) for i in range(0, 100, 5)]


def test_values_where_they_fit():
    written = [len(axes.texts) for axes in panels(plot_omega(np.ones((12, 13))))]
    assert written == [0, 144, 0]
    # "1e-60" fits a tenth of the panel, "1e-119" does not
    written = [len(axes.texts) for axes in panels(plot_omega(np.full((10, 10), 1e-60), norm=None))]
    assert written == [0, 0, 100]


def test_names_stand_when_wide():
    """Ten class names are all there; below the panel they stand upright once they are wider than a column."""
    for names, rotation in ((LONG[:10], 90), ("abcdefghij", 0)):
        ticks = panels(plot_omega(np.ones((10, 1)), class_names=names))[1].get_xticklabels()
        assert [tick.get_text() for tick in ticks] == [_shorten(name) for name in names]
        assert {tick.get_rotation() for tick in ticks} == {rotation}


@pytest.mark.parametrize(("d", "depth", "negative"), [(4, 5, False), (20, 20, True), (100, 50, False)])
def test_zero_is_not_small(d, depth, negative):
    """A zero cell is white with a mark, even beside a cell of 1e-6."""
    omega = make_omega(d, depth, zeros=0.0) + 0.1
    omega[1, 2], omega[1, 1], omega[2, 1] = 0.0, 1e-6, -0.5 if negative else 0.5
    figure = plot_omega(omega)
    pixels = render(figure)
    axes = panels(figure)[2]
    zero, small = cell_pixels(pixels, axes, 1, 2), cell_pixels(pixels, axes, 1, 1)
    np.testing.assert_array_equal(np.median(zero, axis=0), [255, 255, 255])
    assert np.abs(np.median(zero, axis=0) - np.median(small, axis=0)).min() > 100
    assert zero.min() < 200, "no mark in the zero cell"


@pytest.mark.parametrize("low", [0.0, -1.0], ids=["viridis", "diverging"])
def test_ink_has_contrast(low):
    figure = plot_omega(make_omega(6, 6, low=low))
    for axes in panels(figure):
        image = axes.images[0]
        colors = image.to_rgba(image.get_array())
        assert len(axes.texts) == 36
        for text in axes.texts:
            j, i = text.get_position()
            dark, bright = sorted([luminance(colors[i, j]), luminance(to_rgb(text.get_color()))])
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, text.get_text()  # WCAG AA


@pytest.mark.parametrize("low", [0.0, -1.0], ids=["viridis", "diverging"])
def test_colors_without_red_green_vision(low):
    """Larger is lighter, and opposite signs differ, as a deuteranope sees them too."""
    # Machado, Oliveira and Fernandes 2009, deuteranomaly of severity 1, on linear RGB
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    cmap = panels(plot_omega(make_omega(3, 3, low=low)))[2].images[0].get_cmap()
    rgb = cmap(np.linspace(0.5 if low else 0.0, 1.0, 9))[:, :3]
    opposite = cmap(np.linspace(0.5, 0.0, 9))[:, :3]
    seen, seen_opposite = (np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ np.transpose(deutan)
                           for c in (rgb, opposite))  # fmt: skip
    assert (np.diff(seen @ [0.2126, 0.7152, 0.0722]) > 0).all()
    if low:
        assert (np.diff(seen_opposite @ [0.2126, 0.7152, 0.0722]) > 0).all()
        # from a quarter of the scale on: one is bluer than green, the other is not
        assert (seen_opposite[2:, 2] > seen_opposite[2:, 1]).all()
        assert (seen[2:, 2] < seen[2:, 1]).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30])
def test_equal_values(value):
    """The colour range of a constant Omega is not empty."""
    figure = plot_omega(np.full((3, 4), value), norm="none")
    low, high = panels(figure)[2].images[0].get_clim()
    assert (low, high) == (0, value or 1)
    figure.draw_without_rendering()


def test_negative_entries():
    """Zero is the middle of the colours in the panels that have a negative entry, and only there."""
    figure = plot_omega([[3.0, -4.0], [0.0, -2.0]])
    clims = [axes.images[0].get_clim() for axes in panels(figure)]
    np.testing.assert_allclose(clims, [(-1.64, 1.64), (0, 1), (-1, 1)], rtol=1e-15)


def test_same_input_same_bytes():
    first, second = (plot_omega(OMEGA, title="t") for _ in range(2))
    png = first._repr_png_()  # what a notebook shows
    assert png.startswith(b"\x89PNG")
    assert png == second._repr_png_() == pickle.loads(pickle.dumps(first))._repr_png_()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1e-6, "1e-6"), (0.0049, "5e-3"), (0.005, "0.01"), (-0.98, "-0.98"), (9.99, "9.99"), (9.996, "10.0"),
     (99.96, "100"), (1e10, "1e10"), (-2e5, "-2e5"), (1e-100, "1e-100")],
)  # fmt: skip
def test_number(value, text):
    assert _number(value) == text


def test_shorten():
    assert _shorten("ship of the line") == "ship of the line"
    assert _shorten("two\nlines") == "two lines"
    assert _shorten(LONG[3]) == "domestic\N{HORIZONTAL ELLIPSIS}-haired 3"
    assert len({_shorten(name) for name in LONG}) == 100


def test_no_pyplot(monkeypatch):
    """Plotting works where pyplot cannot be imported, and leaves matplotlib's settings alone, the backend too."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.delattr(matplotlib, "pyplot", raising=False)

    def settings():  # asking for the backend in the usual way would choose one
        return {key: matplotlib.rcParams._get(key) for key in matplotlib.rcParams}

    before = settings()
    plot_omega(OMEGA).savefig(io.BytesIO())
    assert settings() == before


def test_import_without_matplotlib(monkeypatch):
    """The module can be imported where matplotlib is missing."""
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    path = sys.modules["nftk.interpret.plot_omega"].__file__
    spec = importlib.util.spec_from_file_location("plot_omega_again", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "plot_omega_again", module)  # dataclasses look there
    spec.loader.exec_module(module)
    with pytest.raises(ImportError, match=r"plot_omega needs matplotlib; run `pip install 'nftk\[app\]'`"):
        module.plot_omega(OMEGA)


NO_MATRIX = (
    "nftk.plot_omega: model_or_omega must be a real matrix of shape [d, L] or a model with one as its omega, got "
)


@pytest.mark.parametrize(
    ("source", "options", "error", "text"),
    [
        (torch.ones(3), {}, ValueError, "nftk.plot_omega: omega must have shape [d, L], both at least 1, got [3]"),
        ([], {}, ValueError, "omega must have shape [d, L], both at least 1, got [0]"),
        (torch.ones(0, 3), {}, ValueError, "omega must have shape [d, L], both at least 1, got [0, 3]"),
        ([[1.0, float("nan")]], {}, ValueError, "omega must be finite, at most 1e150 in size, got 1 of 2 entries"),
        ([[1e200, -math.inf]], {}, ValueError, "omega must be finite, at most 1e150 in size, got 2 of 2 entries"),
        ([[1.0, 2.0], [3.0]], {}, TypeError, NO_MATRIX + "list of object"),
        ([["a"]], {}, TypeError, NO_MATRIX + "list of <U1"),
        (torch.ones(1, 1, dtype=torch.complex64), {}, TypeError, NO_MATRIX + "Tensor of complex64"),
        (torch.nn.Linear(2, 2), {}, TypeError, NO_MATRIX + "Linear of object"),
        (OMEGA, {"class_names": ["a"]}, ValueError, "class_names must have one name for each of 3 classes, got 1"),
        (OMEGA, {"norm": "l3"}, ValueError, "norm must be one of 'l2', 'l1', 'none', got 'l3'"),
        (OMEGA, {"layer_similarity": "x"}, ValueError, "layer_similarity must be one of 'product', 'cosine', got 'x'"),
    ],
)
def test_errors(source, options, error, text):
    with pytest.raises(error, match=re.escape(text)):
        plot_omega(source, **options)


def test_error_several_omegas():
    parts = torch.nn.ModuleList([torch.nn.Module(), torch.nn.Module()])
    for part in parts:
        part.omega = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"nftk.plot_omega: model_or_omega must contain one omega, got 2"):
        plot_omega(parts)
