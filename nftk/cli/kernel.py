"""nftk kernel: the tangent kernel of a trained network, into a file."""

import time
from pathlib import Path
from typing import Any

import torch

from nftk.cli.runs import load_run
from nftk.cli.settings import SettingsError
from nftk.cli.train import InterruptedRun
from nftk.tangent.plan import check_budget
from nftk.tangent.progress import Line
from nftk.tangent.request import Request, detached, prepare
from nftk.tangent.resumable import compute_to_file

_PARTS = ("train", "test")
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def kernel(
    run: Path,
    out: Path,
    *,
    data: str | None,
    data_dir: str | None,
    rows: str,
    columns: str | None,
    limit: int | None,
    per: str,
    reduction: str,
    normalize: str | None,
    include_omega: bool,
    dtype: str,
    device: str,
    precision: str,
    memory_budget: int | None,
    overwrite: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Compute the kernel of the network in run and leave it in out."""
    for option, value, choices in (
        ("--rows", rows, _PARTS), ("--columns", columns, (*_PARTS, None)), ("--dtype", dtype, _DTYPES),
    ):  # fmt: skip
        if value not in choices:
            raise SettingsError(f"nftk: {option} must be {' or '.join(filter(None, choices))}, got {value!r}")
    if limit is not None and limit < 1:
        raise SettingsError(f"nftk: --limit must be at least 1, got {limit}")
    if memory_budget is not None and memory_budget < 1:
        raise SettingsError(f"nftk: --memory-budget must be at least 1 MiB, got {memory_budget}")
    if out.is_dir() or not out.parent.is_dir():
        raise SettingsError(f"nftk: --out must be a file in a folder that exists, got {out}")
    if out.exists() and not overwrite:
        # before anything is read; it is asked again where nobody else can write
        raise SettingsError(f"nftk: --out must not be there yet, got {out}; --overwrite replaces it")
    try:
        place = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"nftk: --device must be one that torch finds here, got {device!r}: {error}") from None
    trained = load_run(run, data, data_dir)
    if out.resolve() in (trained.file.resolve(), trained.file.resolve().parent / "config.json"):
        raise SettingsError(f"nftk: --out must not be a file of the run itself, got {out}")
    model = trained.model.to(place, _DTYPES[dtype])

    def inputs(part: str) -> torch.Tensor:
        return trained.inputs(part)[:limit].to(place, _DTYPES[dtype])

    x1 = inputs(rows)
    x2 = None if columns in (None, rows) else inputs(str(columns))
    chain, x1, x2 = detached(*prepare(model, x1, x2, "kernel"))
    request = Request.checked(
        chain, per, reduction, normalize, None, include_omega, precision, "auto", device=place, op="kernel"
    )
    budget = check_budget(None if memory_budget is None else memory_budget << 20, place, "kernel")
    started = time.monotonic()
    try:
        written = compute_to_file(
            chain,
            x1,
            x2,
            request,
            out,
            budget=budget,
            overwrite=overwrite,
            progress=None if quiet else Line(),
            op="kernel",
        )
    except KeyboardInterrupt:
        raise InterruptedRun(
            f"nftk: interrupted; the finished tiles are kept in {out}.partial, the same command goes on from there"
        ) from None
    return {
        "out": str(written.path),
        "sha256": written.sha256,
        "shape": list(written.shape),
        "blocks": list(written.names),
        "reduction": reduction,
        "normalization": normalize,
        "dtype": dtype,
        "rows": f"{len(x1)} of {rows}",
        "columns": "the rows" if x2 is None else f"{len(x2)} of {columns}",
        "tiles": written.tiles,
        "tiles_found_done": written.tiles_before,
        "seconds": time.monotonic() - started,
    }
