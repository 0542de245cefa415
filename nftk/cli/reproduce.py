"""nftk reproduce: the experiments, from raw data to tables, figures and records."""

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from nftk._checks import check_integer
from nftk.cli.progress import Progress
from nftk.cli.settings import SettingsError
from nftk.cli.train import InterruptedRun
from nftk.experiments import (
    choice,
    counterfactual,
    figure2,
    poisoned,
    projections,
    sparsity,
    stability,
    table1,
    ten_digits,
    theorem1,
    two_digits,
)
from nftk.experiments.networks import Place, cores
from nftk.experiments.record import Record, Request, seeds_said
from nftk.experiments.settings import BASES, DEPTHS, TITLES, row

EXPERIMENTS: dict[str, Callable[[Request], Record]] = {
    "table1": table1.run,
    "figure2": figure2.run,
    "sparsity": sparsity.run,
    "stability": stability.run,
    "theorem1": theorem1.run,
    "choice": choice.run,
    "two-digits": two_digits.run,
    "ten-digits": ten_digits.run,
    "poisoned": poisoned.run,
    "projections": projections.run,
    "counterfactual": counterfactual.run,
}
# NFT-K's own, run where no name is given; how their settings were chosen, and what surrogates do, is asked for by name
ALL = ("table1", "figure2", "sparsity", "stability", "theorem1")
# those of an experiment that is not told, where they are not 5
SEEDS = {"figure2": 1, "two-digits": two_digits.SEEDS, "ten-digits": ten_digits.SEEDS}


def reproduce(
    names: Sequence[str],
    *,
    out: Path,
    runs: Path,
    data_dir: str | None,
    seeds: int | None,
    quick: bool,
    jobs: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Run experiments, leave their files in out, and return what was written."""
    names = list(names) or list(ALL)
    for name in names:
        if name not in EXPERIMENTS:
            raise SettingsError(f"nftk: the experiment must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    for folder in (out, runs):
        if folder.exists() and not folder.is_dir():
            raise SettingsError(f"nftk: --out and --runs must be folders, got the file {folder}")
    if seeds is not None:
        check_integer("reproduce", "seeds", seeds, 1)
    jobs = check_integer("reproduce", "jobs", cores() if jobs is None else jobs, 1)
    place = Place(runs.resolve(), None if data_dir is None else str(Path(data_dir).resolve()))
    for data in BASES if {*names} & {*ALL, "choice"} else ():
        base = row(data, DEPTHS[data][0], quick=quick)
        fields = {key: value for key, value in base.to_dict().items() if key not in ("data", "depth", "model", "seed")}
        told = ", ".join(f"{name} {value}" for name, value in fields.items())
        progress.line(f"{TITLES[data]}, {' and '.join(map(str, DEPTHS[data]))} hidden layers: {told}")
    threads = torch.get_num_threads()
    written = {}
    try:
        for name in names:
            count = (1 if quick else SEEDS.get(name, 5)) if seeds is None else seeds
            request = Request(place, count, quick, jobs, progress.line)
            progress.line(f"{name}: {seeds_said(count)}, {jobs} networks at a time{', quick' if quick else ''}")
            written[name] = [str(path) for path in EXPERIMENTS[name](request).write(out, request)]
            progress.line(f"{name}: {', '.join(written[name])}")
    except KeyboardInterrupt:
        options = [*names, "--out", str(out), "--runs", str(runs)]
        options += [*([] if seeds is None else ["--seeds", str(seeds)]), "--jobs", str(jobs)]
        options += [] if data_dir is None else ["--data-dir", data_dir]
        command = shlex.join(["nftk", "reproduce", *options, *(["--quick"] if quick else [])])
        raise InterruptedRun(f"nftk: interrupted; what was trained is kept, continue with: {command}") from None
    finally:
        torch.set_num_threads(threads)
    return {"files": written, **dataclasses.asdict(place) | {"runs": str(runs)}}
