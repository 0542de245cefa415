"""One training run as an object: what it is made of, one epoch of it, and its state."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from nftk.constraints import base as constraints
from nftk.training.batches import Batches, generators
from nftk.training.evaluate import evaluate_batches
from nftk.training.history import EpochRecord, History
from nftk.training.losses import Loss, count_correct, is_labels
from nftk.training.schedules import Schedule

StepCallback = Callable[[int, int, int], None]
_NEVER = 2**62


@dataclasses.dataclass
class Run:
    """A model, its data, and everything that changes while it trains."""

    model: nn.Module
    omega: nn.Parameter | None
    train: Batches
    test: Batches | None
    loss: Loss
    schedule: Schedule
    optimizer: Optimizer
    optimizer_omega: Optimizer | None
    schedulers: list[LRScheduler]
    constraint: constraints.Projection | None
    proximal: float
    seed: int
    device: torch.device
    on_step: StepCallback | None = None
    history: History = dataclasses.field(default_factory=History)

    def __post_init__(self) -> None:
        self.theta = [p for p in self.model.parameters() if p is not self.omega and p.requires_grad]
        self.theta_0 = [p.detach().clone() for p in self.theta] if self.proximal else []
        self.zero_at_start = None if self.omega is None else self.omega.detach() == 0

    def epoch(self) -> EpochRecord:
        """Train for one epoch and evaluate; returns its record."""
        started = time.perf_counter()
        number = len(self.history) + 1
        rates = [learning_rate(self.optimizer), learning_rate(self.optimizer_omega)]
        phase = self.schedule.phase if self.omega is not None else "joint"
        active: list[Optimizer] = []
        if self.schedule.trains_theta or self.omega is None:
            active.append(self.optimizer)
        if self.schedule.trains_omega and self.optimizer_omega is not None:
            active.append(self.optimizer_omega)

        cuda = [self.device] if self.device.type == "cuda" else []
        # all chance of an epoch comes from (seed, epoch), so a resumed run meets the same without stored states
        with torch.random.fork_rng(devices=cuda), torch.enable_grad():
            seed = (self.seed * 1_000_003 + number) % 2**63
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed(seed)
            loss, accuracy = self._pass(number, active)
            test = None if self.test is None else evaluate_batches(self.model, self.test, self.loss)

        self.schedule.advance(loss)
        for scheduler in self.schedulers:
            if any(scheduler.optimizer is optimizer for optimizer in active):
                scheduler.step(loss) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
        record = EpochRecord(
            epoch=number,
            phase=phase,
            loss=loss,
            train_accuracy=accuracy,
            test_loss=None if test is None else test.loss,
            test_accuracy=None if test is None else test.accuracy,
            **self._zeros(),
            lr=rates[0],
            lr_omega=rates[1],
            seconds=time.perf_counter() - started,
        )
        self.history.append(record)
        return record

    def _pass(self, number: int, active: list[Optimizer]) -> tuple[float, float | None]:
        """One pass over the training data; returns its mean loss and accuracy."""
        meter = Meter(self.device, number, len(self.train), self._advice())
        frozen = self._freeze(active)
        self.model.train()
        try:
            for step, (x, y) in enumerate(self.train, 1):
                for optimizer in active:
                    optimizer.zero_grad(set_to_none=True)
                f = self.model(x)
                loss = self.loss(f, y)
                meter.add(loss, f, y)
                loss.backward()
                self._update(active)
                if self.on_step is not None:
                    self.on_step(number, step, len(self.train))
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        return meter.read()

    @torch.no_grad()
    def _update(self, active: list[Optimizer]) -> None:
        if self.proximal and self.optimizer in active:
            for p, p_0 in zip(self.theta, self.theta_0, strict=True):
                if p.grad is not None:
                    p.grad.add_(p - p_0, alpha=self.proximal)
        for optimizer in active:
            optimizer.step()
        if self.constraint is None or self.omega is None or self.optimizer_omega not in active:
            return
        if self.omega.requires_grad:
            self.constraint.project_(self.omega)

    def _freeze(self, active: list[Optimizer]) -> list[nn.Parameter]:
        """Spare the backward pass what this phase holds fixed."""
        fixed = []
        if self.optimizer not in active:
            fixed += self.theta
        if self.optimizer_omega not in active and self.omega is not None and self.omega.requires_grad:
            fixed.append(self.omega)
        for parameter in fixed:
            parameter.requires_grad_(False).grad = None
        return fixed

    def _zeros(self) -> dict[str, Any]:
        if self.omega is None or self.zero_at_start is None:
            return {"zeros": None, "zeros_share": None, "zeros_from_start": None}
        zero = self.omega.detach() == 0
        count = int(zero.sum())
        kept = int((zero & self.zero_at_start).sum())
        return {
            "zeros": count,
            "zeros_share": count / zero.numel(),
            "zeros_from_start": kept / count if count else None,
        }

    def _advice(self) -> str:
        rates = f"a smaller lr (now {learning_rate(self.optimizer)})"
        if self.omega is not None:
            rates += f" or lr_omega (now {learning_rate(self.optimizer_omega)})"
        return f"try {rates}, and inputs with mean 0 and variance 1"

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as tensors and plain values."""
        omega_optimizer = self.optimizer_omega
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_omega": None if omega_optimizer is None else omega_optimizer.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "schedule": dataclasses.asdict(self.schedule),
            "theta_0": self.theta_0,
            "zero_at_start": self.zero_at_start,
            "generators": [g.get_state() for g in generators(self.train)],
            "history": [record.to_dict() for record in self.history],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what :meth:`state` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.optimizer_omega is not None:
            self.optimizer_omega.load_state_dict(state["optimizer_omega"])
        for scheduler, stored in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(stored)
        self.schedule = Schedule(**state["schedule"])
        self.theta_0 = [p.to(self.device) for p in state["theta_0"]]
        if self.zero_at_start is not None:
            self.zero_at_start = state["zero_at_start"].to(self.device)
        for generator, stored in zip(generators(self.train), state["generators"], strict=True):
            generator.set_state(stored)
        self.history = History(EpochRecord(**record) for record in state["history"])


class Meter:
    """Mean loss and accuracy of an epoch, and the watch for a loss that is not finite.

    On a CPU a bad loss stops the run before its update. On any other device reading it would make the host wait at
    every step, so the number of the first bad step stays there and is read when the epoch ends.
    """

    def __init__(self, device: torch.device, epoch: int, steps: int, advice: str) -> None:
        self.at_once = device.type == "cpu"
        self.epoch, self.steps, self.advice = epoch, steps, advice
        self.step, self.seen, self.labels = 0, 0, True
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.total = torch.zeros((), dtype=wide, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.first_bad = torch.full((), _NEVER, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, loss: Tensor, f: Tensor, y: Tensor) -> None:
        """Take in one batch, before its update."""
        self.step += 1
        if self.at_once:
            if not math.isfinite(loss.item()):
                raise self._error(self.step, loss.item())
        else:
            bad = torch.where(loss.isfinite(), _NEVER, self.step)
            torch.minimum(self.first_bad, bad, out=self.first_bad)
        self.seen += len(y)
        self.total += loss * len(y)
        self.labels = self.labels and is_labels(y)
        if self.labels:
            self.correct += count_correct(f, y)

    def read(self) -> tuple[float, float | None]:
        """Mean loss and accuracy; raises FloatingPointError if a step was bad."""
        if self.first_bad.item() < _NEVER:
            raise self._error(int(self.first_bad), float("nan"))
        if self.seen == 0:
            raise ValueError("nftk.fit: train must yield at least one batch, got none")
        return self.total.item() / self.seen, int(self.correct) / self.seen if self.labels else None

    def _error(self, step: int, value: float) -> FloatingPointError:
        where = f"epoch {self.epoch}, step {step}" + (f" of {self.steps}" if self.steps else "")
        return FloatingPointError(f"nftk.fit: loss must stay finite, got {value} at {where}; {self.advice}")


def learning_rate(optimizer: Optimizer | None) -> float | None:
    """Learning rate of an optimizer's first group, or None."""
    if optimizer is None:
        return None
    rates: Iterable[Any] = (group.get("lr") for group in optimizer.param_groups)
    first = next(iter(rates), None)
    return None if first is None else float(first)
