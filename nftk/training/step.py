"""The steps of an epoch on tensors that stay where they are, so that each can be the same CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from nftk.training.batches import TensorBatches
from nftk.training.meter import Meter

Active = list[Optimizer]
Step = Callable[[Tensor, Tensor, Active, Meter], None]


class StaticSteps:
    """What the loop over :class:`TensorBatches` does, with nothing in a step that the host must know.

    The epoch's order and the number of the step lie on the device, so every full batch is the same work at the same
    addresses.
    """

    def __init__(self, data: TensorBatches, meter: Meter, step: Step) -> None:
        self.data, self.meter, self.step = data, meter, step
        n = len(data.x)
        size = min(data.batch_size, n)
        count = n // size
        self.order = torch.empty(n, dtype=torch.int64, device=data.x.device)
        self.full = self.order[: count * size].view(count, size)
        self.short = self.order[count * size :]
        # the meter's number of the step before is the index of this one
        self.index = meter.step.view(1)

    def start(self, epoch: int, advice: str) -> None:
        """Shuffle anew and begin the epoch's sums."""
        self.order.copy_(self.data.draw_order())
        self.meter.restart(epoch, advice)

    def run_full(self, active: Active) -> None:
        """Train on the next full batch."""
        self._run(self.full.index_select(0, self.index).view(-1), active)

    def run_short(self, active: Active) -> None:
        """Train on what is left after the full batches."""
        self._run(self.short, active)

    def _run(self, rows: Tensor, active: Active) -> None:
        x, y = self.data.x.index_select(0, rows), self.data.y.index_select(0, rows)
        self.step(x, y, active, self.meter)

    def read(self) -> tuple[float, float | None]:
        """Mean loss and accuracy of a whole epoch; see :meth:`Meter.read`."""
        # replays do not pass the host's count
        return self.meter.read(len(self.order))
