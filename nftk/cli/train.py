"""nftk train: from a data set to a folder with a trained network."""

import dataclasses
import json
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nftk
from nftk import constraints
from nftk._checks import check_integer
from nftk._files import replacing, write_text
from nftk._optional import require
from nftk.cli.progress import Progress
from nftk.cli.runs import accuracy_without_duplicates
from nftk.cli.settings import Settings, SettingsError
from nftk.data import DataSplit, Standardizer, load_data
from nftk.modules.plain_mlp import plain_mlp
from nftk.training import EpochRecord, History
from nftk.training.losses import LOSSES
from nftk.training.schedules import SCHEDULES

CHECKPOINT = "checkpoint.pt"
BASELINE_CHECKPOINT = "baseline_checkpoint.pt"
# what a run may leave, all of which --overwrite removes first
FILES = (
    CHECKPOINT,
    BASELINE_CHECKPOINT,
    "config.json",
    "history.jsonl",
    "baseline_history.jsonl",
    "model.safetensors",
    "omega.png",
    "report.html",
    "summary.json",
)


class InterruptedRun(Exception):
    """Ctrl-C in the middle of a run whose state is on disk."""


def train(settings: Settings, out: Path, progress: Progress, *, resume: bool, overwrite: bool) -> dict[str, Any]:
    """Train what settings say, leave the files of a run in out, and return what summary.json holds."""
    require("matplotlib", purpose="drawing omega.png", extra="app")
    if settings.threads is not None:
        torch.set_num_threads(check_integer("train", "threads", settings.threads, 1))
    data = load_data(settings.data, settings.data_dir, progress=progress.visible)
    mode = _one_of("standardize", settings.standardize, ("auto", "global", "feature", "none"))
    standardizer = Standardizer.fit(data.x_train, data.standardize if mode == "auto" else mode)
    pairs = [(standardizer.transform(x), y) for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test))]
    model = _network(settings, data)
    _check(settings, model, pairs)
    if resume and (finished := _finished(out, settings)) is not None:
        return finished
    if resume:
        write_text(out / "config.json", settings.to_json())
    else:
        _prepare(out, settings, overwrite=overwrite)
    try:
        summary = {"data": data.name, **_train_both(settings, model, pairs, data.test_duplicates, out, progress)}
        header = {"standardizer": standardizer.to_dict(), "class_names": list(data.class_names)}
        model.save(out / "model.safetensors", header)
        figure = nftk.plot_omega(model, class_names=data.class_names)
        with replacing(out / "omega.png") as temporary:
            figure.savefig(temporary, format="png", dpi=150)
        write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    except KeyboardInterrupt:
        command = f"nftk train --resume {shlex.quote(str(out))}"
        raise InterruptedRun(f"nftk: interrupted; the last whole epoch is saved, continue with: {command}") from None
    except FloatingPointError:
        # to go on from here would end the same
        _remove_checkpoints(out)
        raise
    _remove_checkpoints(out)
    return summary


def _check(settings: Settings, model: nftk.NFTKMLP, pairs: list[Any]) -> None:
    """Make every check of fit before the first file is written, in the words of the command line."""
    try:
        nftk.fit(model, *pairs, **_keywords(settings) | {"epochs": min(settings.epochs, 0)})
    except (ValueError, TypeError) as error:
        said = str(error)
        for field in dataclasses.fields(Settings):
            said = said.replace(f"nftk.fit: {field.name} must", f"nftk: --{field.name.replace('_', '-')} must")
        raise SettingsError(said) from error


def _network(settings: Settings, data: DataSplit) -> nftk.NFTKMLP:
    if not 0 <= settings.seed < 2**63:
        raise SettingsError(f"nftk: --seed must be at least 0 and below 2**63, got {settings.seed}")
    torch.manual_seed(settings.seed)
    try:
        return nftk.NFTKMLP(
            data.in_features,
            settings.hidden_features,
            data.classes,
            activation=settings.activation,
            output_bias=settings.output_bias,
            parameterization=_one_of("parameterization", settings.parameterization, ("standard", "ntk")),
            constraint=constraints.from_config(settings.constraint),
        )
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, NotImplementedError):
            raise
        widths = ",".join(map(str, settings.hidden_features))
        raise SettingsError(f"nftk: --width must leave a network that fits in memory, got {widths}") from error


def _train_both(
    settings: Settings,
    model: nftk.NFTKMLP,
    pairs: list[Any],
    duplicates: torch.Tensor | None,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Train the network, and the plain one beside it if that is asked for; return what summary.json says of them."""
    history = _fit(settings, model, pairs, out, "nftk", progress)
    zero = model.omega == 0
    summary = {
        **_result(model, history),
        **accuracy_without_duplicates(model, pairs[1], duplicates),
        "zeros": int(zero.sum()),
        "zeros_share": zero.double().mean().item(),
        "zeros_from_start": history[-1].zeros_from_start if history else None,
        "versions": {"nftk": nftk.__version__, "torch": str(torch.__version__)},
        "threads": torch.get_num_threads(),
    }
    if settings.baseline:
        torch.manual_seed(settings.seed)
        plain = plain_mlp(model)
        result = _result(plain, _fit(settings, plain, pairs, out, "baseline", progress))
        summary["baseline"] = result | accuracy_without_duplicates(plain, pairs[1], duplicates)
    return summary


def _prepare(out: Path, settings: Settings, *, overwrite: bool) -> None:
    """Make the folder, and see that nothing in it is lost by accident."""
    if out.exists() and not out.is_dir():
        raise SettingsError(f"nftk: --out must be a folder, got the file {out}")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        unfinished = (out / CHECKPOINT).exists()
        kind = "an interrupted run" if unfinished else "files"
        advice = f"continue it with --resume {out}, or" if unfinished else "name another folder, or"
        raise SettingsError(
            f"nftk: --out must be a new or empty folder, got {out} with {kind} in it; {advice} pass --overwrite"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    for made in (*out.glob("explain_*.png"), *out.glob("surrogate_*.safetensors")):
        made.unlink()
    write_text(out / "config.json", settings.to_json())


def _finished(out: Path, settings: Settings) -> dict[str, Any] | None:
    """The summary of a run that has ended, which a resume finds as it is; None where there is work left."""
    if (out / CHECKPOINT).exists() or not (out / "summary.json").exists():
        return None
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    if summary.get("epochs") != settings.epochs:
        raise SettingsError(
            f"nftk: --epochs must be {summary.get('epochs')}, got {settings.epochs}: the run in {out} has ended, and "
            "its checkpoint is gone"
        )
    _remove_checkpoints(out)
    return summary


def _remove_checkpoints(out: Path) -> None:
    """Remove the checkpoints, and what kills in the middle of writing left of any file."""
    for name in (CHECKPOINT, BASELINE_CHECKPOINT):
        (out / name).unlink(missing_ok=True)
    for name in FILES:
        for left in out.glob(f".{name}.*.tmp"):
            left.unlink(missing_ok=True)


def _fit(settings: Settings, model: nn.Module, pairs: list[Any], out: Path, name: str, progress: Progress) -> History:
    """Train one of the two networks, with its checkpoint and its lines of history on disk."""
    prefix = "baseline_" if name == "baseline" else ""
    file = out / f"{prefix}history.jsonl"
    lines = list(_lines(file))

    def on_epoch(record: EpochRecord) -> None:
        del lines[record.epoch - 1 :]
        lines.append(json.dumps(record.to_dict()))
        write_text(file, "".join(line + "\n" for line in lines))
        progress.epoch(record)

    with progress.run(name, settings.epochs):
        history = nftk.fit(
            model,
            *pairs,
            **_keywords(settings),
            checkpoint=out / f"{prefix}{CHECKPOINT}",
            resume=True,
            on_epoch=on_epoch,
            on_step=progress.step,
        )
    # once more from the checkpoint: a kill between the two files may have cost the last line
    write_text(file, "".join(json.dumps(record.to_dict()) + "\n" for record in history))
    return history


def _keywords(settings: Settings) -> dict[str, Any]:
    """What fit takes from the settings."""
    same = ("epochs", "batch_size", "lr", "lr_omega", "weight_decay", "proximal", "seed", "device")
    keywords: dict[str, Any] = {name: getattr(settings, name) for name in same}
    return keywords | {
        "loss": _one_of("loss", settings.loss, LOSSES),
        "schedule": _one_of("schedule", settings.schedule, SCHEDULES),
    }


def _one_of(option: str, value: str, choices: Collection[str]) -> Any:
    if value not in choices:
        names = " or ".join((", ".join(list(choices)[:-1]), list(choices)[-1]))
        raise SettingsError(f"nftk: --{option} must be {names}, got {value!r}")
    return value


def _lines(file: Path) -> Iterator[str]:
    if file.exists():
        yield from file.read_text(encoding="utf-8").splitlines()


def _result(model: nn.Module, history: History) -> dict[str, Any]:
    last = dataclasses.asdict(history[-1]) if history else {}
    return {
        "test_accuracy": last.get("test_accuracy"),
        "test_loss": last.get("test_loss"),
        "train_accuracy": last.get("train_accuracy"),
        "train_loss": last.get("loss"),
        "epochs": len(history),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": sum(history.column("seconds")),
    }
