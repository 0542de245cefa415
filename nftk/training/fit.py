"""fit: train an NFT-K network, or a plain one beside it."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nftk._checks import check_choice, check_device, check_integer, check_number
from nftk.constraints import base as constraints
from nftk.training.batches import EVALUATION_BATCH, make_batches
from nftk.training.checkpoint import check_settings, load_checkpoint, save_checkpoint
from nftk.training.evaluate import resolve_loss
from nftk.training.graphs import graphs_for
from nftk.training.history import EpochRecord, History
from nftk.training.losses import Loss
from nftk.training.run import Run, StepCallback, learning_rate
from nftk.training.schedules import SCHEDULES, Schedule

_OP = "fit"
OptimizerChoice = Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer] | None


def fit(
    model: nn.Module,
    train: Any,
    test: Any = None,
    *,
    loss: Literal["cross_entropy", "mse"] | Loss = "cross_entropy",
    schedule: Literal["joint", "alternating"] = "joint",
    epochs: int = 10,
    batch_size: int = 50,
    lr: float = 0.02,
    lr_omega: float = 0.05,
    weight_decay: float = 2e-6,
    proximal: float = 0.0,
    constraint: "str | constraints.Projection | None" = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    cuda_graph: bool | None = None,
    optimizer: OptimizerChoice = None,
    optimizer_omega: OptimizerChoice = None,
    lr_schedule: Callable[[Optimizer], LRScheduler] | None = None,
    phase_epochs: int = 5,
    phase_tolerance: float = 1e-2,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_step: StepCallback | None = None,
) -> History:
    r"""Train a network by projected stochastic gradient steps, and return what happened.

    .. math::
        \theta \leftarrow \theta - \eta (\nabla_\theta L + \lambda (\theta - \theta_0)), \qquad
        \Omega \leftarrow P_S(\Omega - \eta_\Omega \nabla_\Omega L)

    theta is every parameter but Omega. The defaults are the paper's settings for MNIST.

    Args:
        model: An :class:`nftk.NFTKMLP`; or any other module, which is then trained as it is, without an Omega.
            Trained in place.
        train: A pair of tensors ``(x, y)``, x ``(n, m)`` in the model's dtype and y int64 labels ``(n,)`` (for
            ``"mse"`` also targets ``(n, d)``); or a Dataset or DataLoader of such pairs. Tensors are moved to the
            device once and shuffled each epoch.
        test: The same, evaluated after each epoch; None for nothing.
        loss: ``"cross_entropy"``; ``"mse"``, the mean over the batch of :math:`\lVert f - y \rVert^2`, summed over
            outputs as in equation 9 (labels one-hot); or a callable ``(f, y)`` that averages over its batch.
        schedule: ``"joint"``: each step updates theta and Omega, as in the paper's experiments. ``"alternating"``:
            epochs of theta at fixed Omega until converged, then of Omega at fixed theta, and so on, as in its
            theory. A phase has converged when the mean training loss of its epoch has fallen by no more than
            ``phase_tolerance`` of its value in the phase's epoch before.
        epochs: Passes over the training data, in all phases together.
        batch_size: Examples a step; the last batch of an epoch may be smaller. A DataLoader has its own.
        lr: Learning rate of theta.
        lr_omega: Learning rate of Omega.
        weight_decay: L2 penalty on theta and Omega, as in ``torch.optim.SGD``.
        proximal: lambda of equation 13: lambda (theta - theta_0) is added to the gradient of theta, theta_0 being theta
            when ``fit`` is called. (The penalty in equation 9 has the gradient 2 lambda (theta - theta_0); this
            follows 13. docs/errata.md, 9.)
        constraint: Set onto which Omega is projected after each of its updates, in this call; None for the model's
            own, "none" for no constraint.
        seed: Of the shuffling and of every other chance in the epochs. The global generator is left as it was.
        device: Where to train; None for where the model is.
        cuda_graph: Whether the whole step is one CUDA graph, launched once a step. None: on a GPU, where ``train`` is a
            pair of tensors, each optimizer is ``SGD`` or made with ``capturable=True``, and model, loss and constraint
            are made of nftk's and torch's own parts without hooks. True: also with parts and hooks of your own, if
            their Python does the same at every step, since a graph runs it only once. False: never. The first three
            steps with the same learning rates and the last, smaller batch of an epoch run without a graph.
        optimizer: Of theta, in place of SGD: an optimizer over parameters of the model, or a function that makes
            one from a list of them (``lr`` and ``weight_decay`` are then its own affair).
        optimizer_omega: Of Omega, likewise.
        lr_schedule: A function that makes a learning-rate scheduler from an optimizer; called for both, stepped
            after each epoch in which its optimizer was used.
        phase_epochs: Most epochs of a phase of the alternating schedule.
        phase_tolerance: Of its convergence, see ``schedule``.
        checkpoint: File for the state of the run, replaced as a whole before the first epoch and after each one.
        resume: Continue the run in ``checkpoint`` if that file is there. A run that was killed at any moment and
            resumed ends bit-identical to one that was not, on a CPU at the same thread count and torch build.
        on_epoch: Called with each epoch's record, after its checkpoint.
        on_step: Called after each step with (epoch, step, steps an epoch).

    Returns:
        The records of all epochs, those before a resume included.

    Raises:
        ValueError: If a setting is out of range, data do not fit the model, labels are out of range, inputs are not
            finite, ``checkpoint`` exists without ``resume``, or belongs to other settings, or ``cuda_graph=True`` where
            no step can be a graph.
        TypeError: If data have another form or dtype, or ``cuda_graph`` is neither a bool nor None.
        RuntimeError: If with ``cuda_graph=True`` a step makes the host wait, or cannot be captured. (With None fit
            warns, and goes on without a graph.)
        FloatingPointError: If the loss stops being finite; the message names epoch and step. On a CPU the model
            then holds the parameters before that step.

    References:
        Alemohammad et al., NFT-K: Non-Fungible Tangent Kernels, ICASSP 2022, arXiv 2110.04945, equations 9, 13, 16.

    Example:
        >>> import torch, nftk
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > 0).long()
        >>> history = nftk.fit(nftk.NFTKMLP(4, [16, 16], 2), (x, y), epochs=20, batch_size=10)
        >>> history[-1].train_accuracy > 0.9
        True
    """
    check_choice(_OP, "schedule", schedule, SCHEDULES)
    check_integer(_OP, "epochs", epochs, 0)
    check_integer(_OP, "batch_size", batch_size, 1)
    check_integer(_OP, "seed", seed, 0)
    check_integer(_OP, "phase_epochs", phase_epochs, 1)
    for name, value in {"lr": lr, "lr_omega": lr_omega, "weight_decay": weight_decay, "proximal": proximal}.items():
        check_number(_OP, name, value)
    check_number(_OP, "phase_tolerance", phase_tolerance)
    if cuda_graph is not None and not isinstance(cuda_graph, bool):
        raise TypeError(f"nftk.fit: cuda_graph must be True, False or None, got {cuda_graph!r}")
    loss_function = resolve_loss(_OP, loss)
    if resume and checkpoint is None:
        raise ValueError("nftk.fit: checkpoint must name a file for resume=True, got None")
    stored = None
    if checkpoint is not None and Path(checkpoint).exists():
        if not resume:
            raise ValueError(
                f"nftk.fit: checkpoint must be a new file without resume=True, got {checkpoint}, which exists"
            )
        stored = load_checkpoint(checkpoint)

    parameters = list(model.parameters())
    if not parameters:
        raise ValueError(f"nftk.fit: model must have parameters, got {type(model).__name__} without any")
    place = parameters[0].device if device is None else check_device(_OP, device)
    omega = getattr(model, "omega", None)
    if not isinstance(omega, nn.Parameter):
        omega = None
    kind: dict[str, Any] = {"loss": loss if isinstance(loss, str) else "custom", "device": place}
    _check_trainable(model, omega, schedule)
    train_batches = make_batches(_OP, "train", train, model, batch_size=batch_size, shuffle=True, **kind)
    test_batches = None
    if test is not None:
        test_batches = make_batches(_OP, "test", test, model, batch_size=EVALUATION_BATCH, shuffle=False, **kind)
    model.to(place)
    theta = [p for p in model.parameters() if p is not omega]
    run = Run(
        model=model,
        omega=omega,
        train=train_batches,
        test=test_batches,
        loss=loss_function,
        schedule=Schedule(schedule if omega is not None else "joint", phase_epochs, phase_tolerance),
        optimizer=_optimizer("optimizer", optimizer, theta, omega, lr, weight_decay),
        optimizer_omega=None
        if omega is None
        else _optimizer("optimizer_omega", optimizer_omega, [omega], None, lr_omega, weight_decay),
        schedulers=[],
        constraint=getattr(model, "constraint", None) if constraint is None else constraints.resolve(constraint),
        proximal=proximal,
        seed=seed,
        device=place,
        on_step=on_step,
    )
    run.graphs = graphs_for(run, cuda_graph)
    if lr_schedule is not None:
        run.schedulers = [lr_schedule(o) for o in (run.optimizer, run.optimizer_omega) if o is not None]

    settings: dict[str, Any] = {
        "schedule": schedule, "batch_size": batch_size, "lr": lr, "lr_omega": lr_omega,
        "weight_decay": weight_decay, "proximal": proximal, "constraint": repr(run.constraint), "seed": seed,
        "phase_epochs": phase_epochs, "phase_tolerance": phase_tolerance,
        "loss": loss if isinstance(loss, str) else getattr(loss, "__qualname__", "custom"), "model": repr(model),
        "trainable": [name for name, p in model.named_parameters() if p.requires_grad],
        "learning_rates": [learning_rate(o) for o in (run.optimizer, run.optimizer_omega)],
        "optimizers": [type(o).__name__ for o in (run.optimizer, run.optimizer_omega)],
        "schedulers": [type(s).__name__ for s in run.schedulers],
        **({} if checkpoint is None else train_batches.fingerprint()),
    }  # fmt: skip
    build = {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "device": place.type}
    if stored is not None and checkpoint is not None:
        check_settings(checkpoint, stored["settings"], settings)
        if stored["build"] != build:
            warnings.warn(
                f"nftk.fit: this run began with {stored['build']} and goes on with {build}; "
                "it will not end bit-identical to one that was never interrupted",
                stacklevel=2,
            )
        run.restore(stored)

    was_training = model.training
    try:
        if checkpoint is not None and stored is None:
            save_checkpoint(checkpoint, {"settings": settings, "build": build, **run.state()})
        while len(run.history) < epochs:
            record = run.epoch()
            if checkpoint is not None:
                save_checkpoint(checkpoint, {"settings": settings, "build": build, **run.state()})
            if on_epoch is not None:
                on_epoch(record)
    finally:
        model.train(was_training)
        run.graphs = None  # its memory, now and not when the cycle through run is collected
    return run.history


def _check_trainable(model: nn.Module, omega: nn.Parameter | None, schedule: str) -> None:
    if omega is None and any(callable(getattr(module, "project_", None)) for module in model.modules()):
        raise ValueError(
            f"nftk.{_OP}: model must be the NFTKMLP itself with omega a Parameter, got {type(model).__name__}; "
            "for a module around one, use your own loop and nftk.constraints.attach"
        )
    theta = [p for p in model.parameters() if p is not omega]
    trains = {"theta": any(p.requires_grad for p in theta), "omega": omega is not None and omega.requires_grad}
    if not any(trains.values()) or (schedule == "alternating" and omega is not None and not all(trains.values())):
        frozen = " and ".join(
            name for name, free in trains.items() if not free and (name == "theta" or omega is not None)
        )
        raise ValueError(
            f"nftk.{_OP}: model must have parameters to train with schedule {schedule!r}, got {frozen} frozen"
        )


def _optimizer(
    name: str,
    choice: OptimizerChoice,
    parameters: list[nn.Parameter],
    other: nn.Parameter | None,
    lr: float,
    decay: float,
) -> Optimizer:
    """The caller's optimizer over parameters, or SGD; other is what it must leave alone."""
    if choice is None:
        # one call for all parameters; the loop form took three times as long at the paper's shape
        fused = all(p.device.type in ("cpu", "cuda") and p.dtype in (torch.float32, torch.float64) for p in parameters)
        return SGD(parameters, lr=lr, weight_decay=decay, fused=fused)
    made = choice if isinstance(choice, Optimizer) else choice(parameters)
    if not isinstance(made, Optimizer):
        raise TypeError(f"nftk.{_OP}: {name} must be or make a torch.optim.Optimizer, got {made!r}")
    held = {id(p) for group in made.param_groups for p in group["params"]}
    if other is not None and id(other) in held:
        raise ValueError(
            f"nftk.{_OP}: {name} must leave Omega to optimizer_omega, got an optimizer that holds it too; "
            "pass a function that makes one, as lambda parameters: torch.optim.Adam(parameters)"
        )
    if not held & {id(p) for p in parameters}:
        raise ValueError(f"nftk.{_OP}: {name} must hold parameters of the model, got an optimizer over others")
    return made
