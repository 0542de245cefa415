"""nftk evaluate: a trained network on test data."""

from pathlib import Path
from typing import Any

import torch

import nftk
from nftk.cli.settings import Settings, SettingsError
from nftk.data import Standardizer, load_data
from nftk.modules.model_file import read


def evaluate(run: Path, data: str | None, data_dir: str | None) -> dict[str, Any]:
    """Accuracy, loss and accuracy by class of the network in run, on the test part of its data or of other data."""
    settings = Settings.read(run)
    path = run / "model.safetensors"
    if not path.exists():
        raise SettingsError(
            f"nftk: {run} must hold a finished run, got no model.safetensors; nftk train --resume {run}"
        )
    model = nftk.NFTKMLP.load(path)
    header = read(path)[0]["metadata"]
    try:
        standardizer, names = (
            Standardizer.from_dict(header["standardizer"]),
            [str(name) for name in header["class_names"]],
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise SettingsError(f"nftk: {path} must be written by nftk train, got {error} in its header") from None
    split = load_data(data or settings.data, data_dir or settings.data_dir)
    if (split.in_features, split.classes) != (model.in_features, model.out_features):
        raise SettingsError(
            f"nftk: data must have {model.in_features} features and {model.out_features} classes, as {path} has, "
            f"got {split.in_features} and {split.classes}"
        )
    x, y = standardizer.transform(split.x_test), split.y_test
    loss, accuracy = nftk.evaluate(model, (x, y), settings.loss)
    with torch.no_grad():
        right = model(x).argmax(-1) == y
    by_class = {name: right[y == i].double().mean().item() for i, name in enumerate(names) if (y == i).any()}
    return {
        "data": split.name,
        "examples": len(y),
        "test_accuracy": accuracy,
        "test_loss": loss,
        "accuracy_by_class": by_class,
    }
