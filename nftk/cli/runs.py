"""A trained network and its data, as the commands after nftk train take them up."""

import dataclasses
from pathlib import Path

from torch import Tensor

import nftk
from nftk.cli.settings import Settings, SettingsError
from nftk.data import DataSplit, Standardizer, load_data
from nftk.modules.model_file import read


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A network, and data that it takes."""

    model: nftk.NFTKMLP
    file: Path
    data: DataSplit
    standardizer: Standardizer
    class_names: list[str]
    loss: str

    def inputs(self, part: str) -> Tensor:
        """Standardised inputs of the part "train" or "test"."""
        return self.standardizer.transform(self.data.x_train if part == "train" else self.data.x_test)


def load_run(run: Path, data: str | None = None, data_dir: str | None = None) -> TrainedRun:
    """Read the run in a folder, or the model file in one, with its own data or others; SettingsError if it cannot."""
    folder = run.parent if run.is_file() else run
    settings = Settings.read(folder)
    path = run if run.is_file() else run / "model.safetensors"
    if not path.exists():
        raise SettingsError(
            f"nftk: {run} must hold a finished run, got no model.safetensors; nftk train --resume {run}"
        )
    model = nftk.NFTKMLP.load(path)
    header = read(path)[0]["metadata"]
    try:
        standardizer = Standardizer.from_dict(header["standardizer"])
        names = [str(name) for name in header["class_names"]]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise SettingsError(f"nftk: {path} must be written by nftk train, got {error} in its header") from None
    split = load_data(data or settings.data, data_dir or settings.data_dir)
    if (split.in_features, split.classes) != (model.in_features, model.out_features):
        raise SettingsError(
            f"nftk: data must have {model.in_features} features and {model.out_features} classes, as {path} has, "
            f"got {split.in_features} and {split.classes}"
        )
    return TrainedRun(model, path, split, standardizer, names, settings.loss)
