"""One training run as an object: what it is made of, one epoch of it, and its state."""

import dataclasses
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
from nftk.training.graphs import StepGraphs
from nftk.training.history import EpochRecord, History
from nftk.training.losses import Loss
from nftk.training.meter import Meter
from nftk.training.schedules import Schedule

StepCallback = Callable[[int, int, int], None]


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
    graphs: StepGraphs | None = None

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
                with torch.cuda.device(self.device):
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
        frozen = self._freeze(active)
        self.model.train()
        try:
            if self.graphs is not None:
                return self.graphs.epoch(number, self._advice(), active, self.on_step)
            meter = Meter(self.device, number, len(self.train), self._advice())
            for step, (x, y) in enumerate(self.train, 1):
                self.step(x, y, active, meter)
                if self.on_step is not None:
                    self.on_step(number, step, len(self.train))
            return meter.read()
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def step(self, x: Tensor, y: Tensor, active: list[Optimizer], meter: Meter) -> None:
        """Train on one batch."""
        for optimizer in active:
            optimizer.zero_grad(set_to_none=True)
        f = self.model(x)
        loss = self.loss(f, y)
        meter.add(loss, f, y)
        loss.backward()
        self._update(active)

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


def learning_rate(optimizer: Optimizer | None) -> float | None:
    """Learning rate of an optimizer's first group, or None."""
    if optimizer is None:
        return None
    rates: Iterable[Any] = (group.get("lr") for group in optimizer.param_groups)
    first = next(iter(rates), None)
    return None if first is None else float(first)
