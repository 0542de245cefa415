"""What an experiment is asked for, and what it leaves: a Markdown table, figures, and a JSON record."""

import dataclasses
import datetime
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import nftk
from nftk._files import replacing, write_text
from nftk.experiments.networks import Place

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Request:
    """How an experiment is to be run.

    Args:
        place: Where networks are kept, and where data are found.
        seeds: How many of them, from 0.
        quick: Small and soon done, to see that it works.
        jobs: Networks trained at a time.
        say: Takes a line of progress.
    """

    place: Place
    seeds: int = 5
    quick: bool = False
    jobs: int = 1
    say: Callable[[str], None] = print


@dataclasses.dataclass(frozen=True)
class Record:
    """What an experiment found: numbers ready for JSON, the same as Markdown, and figures by name."""

    name: str
    found: dict[str, Any]
    markdown: str
    figures: "dict[str, Figure]" = dataclasses.field(default_factory=dict)

    def write(self, folder: Path, request: Request) -> list[Path]:
        """Write the record's files into a folder, each whole or not at all, and return their paths."""
        header = {
            "experiment": self.name,
            "seeds": request.seeds,
            "quick": request.quick,
            "date": str(datetime.date.today()),
            "versions": {"nftk": nftk.__version__, "torch": str(torch.__version__)},
        }
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, figure in self.figures.items():
            paths.append(folder / f"{name}.png")
            with replacing(paths[-1]) as temporary:
                figure.savefig(temporary, format="png", dpi=120)
        paths.append(folder / f"{self.name}.md")
        images = "".join(f"\n![{name}]({name}.png)\n" for name in self.figures)
        quick = "\nQuick: a part of the data and of the training, to see that it works; no finding.\n"
        write_text(paths[-1], f"{self.markdown.rstrip()}\n{quick if request.quick else ''}{images}")
        paths.append(folder / f"{self.name}.json")
        write_text(paths[-1], json.dumps(header | self.found, indent=1) + "\n")
        return paths


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation of the sample; None for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Mean and standard deviation as a person reads them."""
    mean, deviation = mean_and_deviation([scale * value for value in values])
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def seeds_said(count: int) -> str:
    """How many seeds, in words."""
    return "one seed" if count == 1 else f"{count} seeds"
