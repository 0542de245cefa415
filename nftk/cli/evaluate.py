"""nftk evaluate: a trained network on test data."""

from pathlib import Path
from typing import Any

import torch

import nftk
from nftk.cli.runs import accuracy_without_duplicates, load_run


def evaluate(run: Path, data: str | None, data_dir: str | None) -> dict[str, Any]:
    """Accuracy, loss and accuracy by class of the network in run, on the test part of its data or of other data."""
    trained = load_run(run, data, data_dir)
    x, y = trained.inputs("test"), trained.data.y_test
    loss, accuracy = nftk.evaluate(trained.model, (x, y), trained.loss)
    with torch.no_grad():
        right = trained.model(x).argmax(-1) == y
    named = enumerate(trained.class_names)
    by_class = {name: right[y == i].double().mean().item() for i, name in named if (y == i).any()}
    return {
        "data": trained.data.name,
        "examples": len(y),
        "test_accuracy": accuracy,
        **accuracy_without_duplicates(trained.model, (x, y), trained.data.test_duplicates),
        "test_loss": loss,
        "accuracy_by_class": by_class,
    }
