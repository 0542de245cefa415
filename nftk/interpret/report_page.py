"""The report as HTML: one file that holds its style, its scripts and its data, and loads nothing."""

import base64
import hashlib
import io
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from nftk.interpret.report_figures import percent


class Page:
    """Pieces of HTML with the figures they name; text() is the whole file."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.body: list[str] = []
        self.figures: dict[str, str] = {}

    def add(self, *pieces: str) -> None:
        """Put pieces of HTML at the end."""
        self.body += pieces

    def figure(self, name: str, json: str, heading: str, caption: str, level: int = 3) -> str:
        """HTML for one figure; heading and caption are HTML, the figure is drawn by report.js."""
        said = f"<p>{caption}</p>" if caption else ""
        return (
            f'<figure aria-labelledby="{name}-title"><figcaption><h{level} id="{name}-title">{heading}</h{level}>{said}'
            f"</figcaption>{self.plot(name, json, f'Figure: {heading}')}</figure>"
        )

    def plot(self, name: str, json: str, label: str) -> str:
        """HTML for the drawing alone; label is what a screen reader says, HTML."""
        self.figures[name] = json
        return f'<div class="plot" role="img" aria-label="{label}" data-figure="{name}-data"></div>'

    def text(self) -> str:
        """Return the file."""
        from plotly.offline import get_plotlyjs

        files = resources.files("nftk.interpret")
        style = files.joinpath("report.css").read_text(encoding="utf-8")
        scripts = [get_plotlyjs(), files.joinpath("report.js").read_text(encoding="utf-8")]
        # inside a string of JavaScript this is the same
        scripts = [script.replace("</script", "<\\/script") for script in scripts]
        # no address may be loaded from, and no other script than these two may run
        hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
        policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
        figures = "\n".join(
            f'<script type="application/json" id="{name}-data">{json.replace("<", chr(92) + "u003c")}</script>'
            for name, json in self.figures.items()
        )
        code = "\n".join(f"<script>{script}</script>" for script in scripts)
        body = "\n".join(self.body)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            # without an icon of its own, a browser asks the server for one
            '<link rel="icon" href="data:,">\n'
            f"<title>{escape(self.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n"
            f"{figures}\n{code}\n</body>\n</html>\n"
        )


def section(name: str, heading: str, *pieces: str) -> str:
    """One part of the page, with its place in the contents."""
    return f'<section id="{name}" aria-labelledby="{name}-heading"><h2 id="{name}-heading">{heading}</h2>' + "\n".join(
        [
            *pieces,
            "</section>",
        ]
    )


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], names: Sequence[int] = ()) -> str:
    """A table whose first column names the rows; cells are text, those of the columns in names to the left."""
    left = [' class="name"' * (i in names) for i in range(len(head))]
    first = "".join(f'<th scope="col"{left[i]}>{escape(cell)}</th>' for i, cell in enumerate(head))
    lines = []
    for row in rows:
        cells = [f'<th scope="row">{escape(row[0])}</th>']
        cells += [f"<td{left[i]}>{escape(cell)}</td>" for i, cell in enumerate(row[1:], 1)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{first}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A list of names and values, both text."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{items}</dl>'


def image(pixels: npt.NDArray[Any], low: float, high: float) -> str:
    """A grey image as the address of a PNG that stands in the page itself."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, pixels.astype(np.float64), cmap="gray", vmin=low, vmax=high, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def of(part: int, whole: int) -> str:
    """A part of a number, and its share."""
    return f"{percent(part / whole)} ({part:,} of {whole:,})" if whole else "-"


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
