"""nftk report: a trained network as one HTML page."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch

import nftk
from nftk import interpret
from nftk._files import write_text
from nftk.cli.runs import TrainedRun, load_run
from nftk.cli.settings import Settings, SettingsError
from nftk.cli.train import FILES
from nftk.data.load import NAMES
from nftk.training import EpochRecord

_NO_SUMMARY = "summary.json is missing or damaged, and what it tells is not here"


def report(
    run: Path, out: Path | None, data: str | None, data_dir: str | None, *, limit: int, overwrite: bool
) -> dict[str, Any]:
    """Write the page about the network in run, and return what was written."""
    started = time.monotonic()
    folder = run.parent if run.is_file() else run
    settings = Settings.read(folder)
    out = folder / "report.html" if out is None else out
    if limit < 1:
        raise SettingsError(f"nftk: --limit must be at least 1, got {limit}")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise SettingsError(f"nftk: --out must be a file in a folder that exists, got {out}")
    own = [(folder / name).resolve() for name in FILES if name != "report.html"]
    if out.resolve() in own:
        raise SettingsError(f"nftk: --out must not be a file of the run itself, got {out}")
    if out.exists() and not overwrite:
        raise SettingsError(f"nftk: --out must not be there yet, got {out}; --overwrite replaces it")
    trained = load_run(run, data, data_dir)
    split = trained.data
    trained_on, shown_on = _names(settings.data, data)
    summary = _summary(folder / "summary.json")
    images = None if split.image_shape is None else split.x_test.reshape(-1, *split.image_shape)
    page = interpret.report(
        trained.model,
        trained.inputs("test"),
        split.y_test,
        class_names=trained.class_names,
        title=trained_on if shown_on is None else f"{trained_on}, shown on {shown_on}",
        images=images,
        history=_history(folder / "history.jsonl"),
        baseline_history=_history(folder / "baseline_history.jsonl"),
        about=_about(settings, trained, summary, trained_on, shown_on),
        loss=settings.loss,  # type: ignore[arg-type]
        limit=limit,
    )
    write_text(out, page)
    return {
        "report": str(out),
        "trained_on": trained_on,
        "data": split.name if shown_on is None else shown_on,
        "summary": _NO_SUMMARY if summary is None else None,
        "examples": len(split.y_test),
        "importances_on": min(limit, len(split.y_test)),
        "bytes": out.stat().st_size,
        "seconds": time.monotonic() - started,
    }


def _names(trained: str, shown: str | None) -> tuple[str, str | None]:
    """What the run was trained on, and what it is shown on where that is something else; short where that is enough."""
    other = None if shown is None or shown in NAMES else str(Path(shown).resolve())
    other = shown if other is None else other
    if other is None or other == trained:
        return Path(trained).name, None
    short = Path(trained).name, Path(other).name
    return (trained, other) if short[0] == short[1] else short


def _about(
    settings: Settings, trained: TrainedRun, summary: Mapping[str, Any] | None, trained_on: str, shown_on: str | None
) -> dict[str, str]:
    """What the head of the page says besides what the network itself tells."""
    constraint = "none" if settings.constraint is None else str(settings.constraint.get("name", "none"))
    count = f"{len(trained.data.y_test):,} examples"
    data = (
        {"Test data": f"{trained_on}, {count}"}
        if shown_on is None
        else {"Trained on": trained_on, "Shown on": f"{shown_on}, {count}: not the data that it was trained on"}
    )
    about = {
        **data,
        "Activation": settings.activation,
        "Parameterisation": settings.parameterization,
        "Constraint on Omega": constraint,
        "Training": f"{settings.schedule}, {settings.epochs} epochs, batches of {settings.batch_size}",
        "Learning rates": f"{settings.lr:g}, of Omega {settings.lr_omega:g}",
        "Weight decay": f"{settings.weight_decay:g}" + f", proximal {settings.proximal:g}" * (settings.proximal > 0),
        "Seed": str(settings.seed),
    }
    if summary is None:
        about["What the training left"] = _NO_SUMMARY
        summary = {}
    beside = summary.get("baseline")
    if isinstance(beside, dict) and isinstance(beside.get("test_accuracy"), float):
        about["Plain MLP beside it, after training"] = f"{100 * beside['test_accuracy']:.1f} %"
    trained_with = summary.get("versions")
    if isinstance(trained_with, dict):
        about["Trained with"] = ", ".join(f"{name} {version}" for name, version in trained_with.items())
    about["Report by"] = f"nftk {nftk.__version__}, torch {torch.__version__}"
    return about


def _history(file: Path) -> list[EpochRecord]:
    """The records in a file, none if it is not there; SettingsError if it is damaged."""
    if not file.exists():
        return []
    try:
        return [_record(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError) as error:
        raise SettingsError(f"nftk: {file} must hold a record of an epoch in each line, got {error}") from None


def _record(stored: Mapping[str, Any]) -> EpochRecord:
    """Return a record whose every field is what it should be, or raise TypeError."""
    record = EpochRecord(**stored)
    for field in dataclasses.fields(record):
        value, kinds = getattr(record, field.name), get_args(field.type) or (field.type,)
        # JSON has 1 for 1.0
        if type(value) not in kinds and not (float in kinds and type(value) is int):
            raise TypeError(f"{value!r} for {field.name}")
    return record


def _summary(file: Path) -> dict[str, Any] | None:
    """What summary.json says, None if it is not there or damaged; the page does without."""
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None
