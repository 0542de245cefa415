"""The numbers of the report: what a network does on test data, and what each layer had to do with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from nftk.interpret.faithfulness import DeletionCurve, deletion_curve, rank_correlation
from nftk.interpret.importance import importance
from nftk.interpret.logit_parts import logit_parts

Matrix = npt.NDArray[np.float64]
KINDS = ("omega", "contribution", "ablation")
BATCH = 4096  # rows in one forward pass


@dataclass(frozen=True)
class Case:
    """One test example, and what each layer added to two of its outputs.

    ``other`` is the predicted class, or where that is the true one, the runner-up; None with a single output.
    """

    row: int
    label: int
    answer: int
    other: int | None
    loss: float
    outputs: Matrix  # [d]
    parts: Matrix  # [L, d]


@dataclass(frozen=True)
class Findings:
    """All that the page shows; importances, their curves and correlations are of ``sample``, the rest of all rows."""

    omega: Matrix
    sample: Tensor
    importances: Mapping[str, Matrix]
    missing: Mapping[str, str]
    accuracy_lost: Matrix
    correlations: Mapping[tuple[str, str], float]
    curves: Mapping[str, DeletionCurve]
    confusion: npt.NDArray[np.int64]
    loss: float
    worst: list[Case]

    @property
    def examples(self) -> int:
        """Number of test examples."""
        return int(self.confusion.sum())

    @property
    def right(self) -> int:
        """How many of them the network has right."""
        return int(np.trace(self.confusion))


def find(model: Any, x: Tensor, y: Tensor, loss: str, limit: int, seed: int, cases: int) -> Findings:
    """Compute the findings on test data."""
    outputs = _outputs(model, x)
    losses = _losses(outputs, y, loss)
    d = model.out_features
    confusion = torch.bincount(y * d + outputs.argmax(1), minlength=d * d).reshape(d, d)

    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(x), generator=generator)[:limit].sort().values
    some_x, some_y = x[sample.to(x.device)], y[sample.to(y.device)]
    found, missing = {}, {}
    for kind in KINDS:
        try:
            measure: Any = {"measure": "loss", "loss": loss}
            found[kind] = importance(model, some_x, some_y, kind, **measure).double().cpu()  # type: ignore[arg-type]
        except ValueError as error:
            # a logit that never varies has no variance to share
            missing[kind] = str(error)
    lost = importance(model, some_x, some_y, "ablation", measure="accuracy")
    orders = found | {"random": torch.rand(model.omega.shape, generator=generator, dtype=torch.float64)}
    return Findings(
        omega=_numpy(model.omega.detach()),
        sample=sample,
        importances={kind: _numpy(values) for kind, values in found.items()},
        missing=missing,
        accuracy_lost=_numpy(lost),
        correlations={(a, b): rank_correlation(found[a], found[b]) for a in found for b in found},
        curves={name: deletion_curve(model, some_x, some_y, values) for name, values in orders.items()},
        confusion=confusion.cpu().numpy(),
        loss=losses.mean().item(),
        worst=_worst(model, x, y, outputs, losses, cases),
    )


def _outputs(model: Any, x: Tensor) -> Tensor:
    """All f(x) in float64, as ``nftk.evaluate`` has them."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            outputs = torch.cat([model(rows) for rows in x.split(BATCH)]).double()
    finally:
        model.train(was_training)
    if len(bad := (~outputs.isfinite().all(1)).nonzero()):
        raise ValueError(
            f"nftk.interpret.report: model must give finite outputs, got a NaN or inf in row {int(bad[0])}"
        )
    return outputs


def _losses(outputs: Tensor, y: Tensor, loss: str) -> Tensor:
    """The loss of each row."""
    if loss == "mse":
        return (outputs - functional.one_hot(y, outputs.shape[1])).square().sum(1)
    return functional.cross_entropy(outputs, y, reduction="none")


def _worst(model: Any, x: Tensor, y: Tensor, outputs: Tensor, losses: Tensor, cases: int) -> list[Case]:
    rows = losses.sort(descending=True, stable=True).indices[:cases]
    parts = torch.cat([batch.parts for batch in logit_parts("interpret.report", model, x[rows])])
    found = []
    for i, row in enumerate(rows.tolist()):
        f, label = outputs[row], int(y[row])
        answer = int(f.argmax())
        other: int | None = answer
        if answer == label:
            rest = f.clone()
            rest[label] = -torch.inf
            other = int(rest.argmax()) if len(f) > 1 else None
        found.append(Case(row, label, answer, other, losses[row].item(), _numpy(f), _numpy(parts[i])))
    return found


def _numpy(x: Tensor) -> Matrix:
    values: Matrix = x.double().cpu().numpy()
    return values
