"""Mean loss and accuracy of an epoch, and the watch for a loss that is not finite."""

import math

import torch
from torch import Tensor

from nftk.training.losses import count_correct, is_labels

_NEVER = 2**62


class Meter:
    """Mean loss and accuracy of an epoch, and the watch for a loss that is not finite.

    On a CPU a bad loss stops the run before its update. On any other device reading it would make the host wait at
    every step, so the number of the step and of the first bad one stay there and are read when the epoch ends.
    """

    def __init__(self, device: torch.device, epoch: int, steps: int, advice: str) -> None:
        self.at_once = device.type == "cpu"
        self.epoch, self.steps, self.advice = epoch, steps, advice
        self.number, self.seen, self.labels = 0, 0, True
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.total = torch.zeros((), dtype=wide, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.never = torch.full((), _NEVER, dtype=torch.int64, device=device)
        self.first_bad = self.never.clone()

    def restart(self, epoch: int, advice: str) -> None:
        """Begin another epoch in the same tensors."""
        self.epoch, self.advice, self.number, self.seen = epoch, advice, 0, 0
        for tensor in (self.total, self.correct, self.step):
            tensor.zero_()
        self.first_bad.copy_(self.never)

    @torch.no_grad()
    def add(self, loss: Tensor, f: Tensor, y: Tensor) -> None:
        """Take in one batch, before its update."""
        if self.at_once:
            self.number += 1
            if not math.isfinite(loss.item()):
                raise self._error(self.number, loss.item())
        else:
            self.step += 1
            bad = torch.where(loss.isfinite(), self.never, self.step)
            torch.minimum(self.first_bad, bad, out=self.first_bad)
        self.seen += len(y)
        self.total += loss * len(y)
        self.labels = self.labels and is_labels(y)
        if self.labels:
            self.correct += count_correct(f, y)

    def read(self, seen: int | None = None) -> tuple[float, float | None]:
        """Mean loss and accuracy of so many examples, or of those counted; FloatingPointError if a step was bad."""
        if self.first_bad.item() < _NEVER:
            raise self._error(int(self.first_bad), float("nan"))
        seen = self.seen if seen is None else seen
        if seen == 0:
            raise ValueError("nftk.fit: train must yield at least one batch, got none")
        return self.total.item() / seen, int(self.correct) / seen if self.labels else None

    def _error(self, step: int, value: float) -> FloatingPointError:
        where = f"epoch {self.epoch}, step {step}" + (f" of {self.steps}" if self.steps else "")
        return FloatingPointError(f"nftk.fit: loss must stay finite, got {value} at {where}; {self.advice}")
