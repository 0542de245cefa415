"""What a training run is made of: config.json, and the defaults that go with each data set."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

from nftk import constraints

# those of MNIST and of the reviews are the paper's, which names no epochs; digits is 45 times smaller, so it takes a
# smaller network, smaller batches and more epochs
_REVIEWS = {"depth": 5, "width": 128, "epochs": 2, "batch_size": 25, "lr": 0.1, "lr_omega": 0.1, "threads": None}
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"depth": 5, "width": 128, "epochs": 40, "batch_size": 25, "lr": 0.02, "lr_omega": 0.05, "threads": 1},
    "imdb": _REVIEWS,
    "imdb-gpt2": _REVIEWS,
    "other": {"depth": 10, "width": 256, "epochs": 10, "batch_size": 50, "lr": 0.02, "lr_omega": 0.05, "threads": None},
}


class SettingsError(ValueError):
    """A setting of the command line that cannot be."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of ``nftk train``; with the data they determine the result."""

    data: str
    hidden_features: tuple[int, ...]
    epochs: int
    batch_size: int
    lr: float
    lr_omega: float
    data_dir: str | None = None
    standardize: str = "auto"
    activation: str = "relu"
    parameterization: str = "standard"
    output_bias: bool = False
    loss: str = "cross_entropy"
    schedule: str = "joint"
    weight_decay: float = 2e-6
    proximal: float = 0.0
    constraint: dict[str, Any] | None = dataclasses.field(default_factory=lambda: {"name": "nonnegative"})
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    baseline: bool = False

    def to_json(self) -> str:
        """The text of config.json."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, run: Path) -> "Settings":
        """Settings of the run in a folder, or SettingsError."""
        path = run / "config.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            settings = cls(**{**stored, "hidden_features": tuple(stored["hidden_features"])})
            for field in dataclasses.fields(cls):
                value = getattr(settings, field.name)
                if not _is_a(value, field.type):
                    raise TypeError(f"{value!r} for {field.name}")
            return settings
        except FileNotFoundError:
            raise SettingsError(f"nftk: {run} must be a run of nftk train, got no config.json there") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(f"nftk: {path} must hold the settings of a run, got {error}") from None


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value read from JSON is what a field of Settings holds."""
    if kind == tuple[int, ...]:
        return bool(value) and all(type(width) is int and width > 0 for width in value)
    if kind is float:
        return type(value) in (int, float)
    if kind == dict[str, Any] | None:
        return value is None or isinstance(value, dict)
    return type(value) in (get_args(kind) or (kind,))


def hidden_features(width: str, depth: int | None) -> tuple[int, ...]:
    """Read --width (one number, or one a layer) and --depth."""
    try:
        widths = [int(part) for part in width.split(",")]
    except ValueError:
        raise SettingsError(f"nftk: --width must be a number, or numbers with commas between, got {width!r}") from None
    if len(widths) == 1:
        widths = widths * (1 if depth is None else depth)
    elif depth is not None and depth != len(widths):
        raise SettingsError(f"nftk: --depth must be {len(widths)}, as many as --width lists, got {depth}")
    if not widths or min(widths) < 1:
        raise SettingsError(f"nftk: --width and --depth must be at least 1, got width {width} and depth {depth}")
    return tuple(widths)


def constraint_config(name: str, radius: float | None, max_layers: int | None) -> dict[str, Any] | None:
    """Read --constraint, --radius and --max-layers."""
    given = {"radius": radius, "max_layers": max_layers}
    chosen = {key: value for key, value in given.items() if value is not None}
    made = constraints.resolve(name)
    takes = [field.name for field in dataclasses.fields(made)] if isinstance(made, constraints.Constraint) else []
    for key in chosen:
        if key not in takes:
            option = "--" + key.replace("_", "-")
            raise SettingsError(f"nftk: {option} must go with a constraint that takes it, got --constraint {name}")
    if not isinstance(made, constraints.Constraint):
        return None
    return dataclasses.replace(made, **chosen).config()
