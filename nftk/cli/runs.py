"""A trained network and its data, as the commands after nftk train take them up."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

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


def accuracy_without_duplicates(
    model: nn.Module, test: tuple[Tensor, Tensor], duplicates: Tensor | None
) -> dict[str, float | None]:
    """Accuracy on the test rows that are no training rows, for a summary; nothing where that is no other number."""
    x, y = test
    if duplicates is None or not 0 < len(duplicates) < len(y):
        return {}
    new = torch.ones(len(y), dtype=torch.bool)
    new[duplicates] = False
    return {"test_accuracy_without_duplicates": nftk.evaluate(model, (x[new], y[new])).accuracy}


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
