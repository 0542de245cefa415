"""kernel_prediction: what a network's own kernel says its training would give, beside what it gave."""

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nftk._checks import check_choice, check_number, check_shape, check_tensor
from nftk.regression.kernel_ridge import KernelRidge
from nftk.regression.proximal import ridge_from_proximal
from nftk.tangent.empirical_ntk import empirical_ntk
from nftk.tangent.layer_kernels import LayerKernels

_OP = "kernel_prediction"
_REDUCTIONS = ("full", "diagonal", "trace")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class KernelPrediction:
    """Predictions of test examples ``(n, d)`` by a network before training, by its kernel, and after training.

    Attributes:
        initial: f_0, float64.
        kernel: f_0 + K (K + rho I)^-1 (Y - f_0(X)).
        trained: What the trained network says, or None.
        ridge: rho.
        distance: ||trained - kernel|| / ||kernel - initial||: 0 where training was lazy, 1 where the kernel explains no
            more than no training; None without a trained network.
        accuracy: Of initial, kernel and trained, where labels are known.
        regression: The fitted :class:`nftk.KernelRidge`; its ``offset`` is f_0.
    """

    initial: Tensor
    kernel: Tensor
    trained: Tensor | None
    ridge: float
    distance: float | None
    accuracy: dict[str, float] | None
    regression: KernelRidge

    def __repr__(self) -> str:
        n, d = self.kernel.shape
        parts = [f"{n} examples, {d} outputs", f"ridge {self.ridge:.4g}"]
        if self.distance is not None:
            parts.append(f"distance {self.distance:.4g}")
        if self.accuracy is not None:
            parts.append("accuracy " + ", ".join(f"{name} {value:.4f}" for name, value in self.accuracy.items()))
        return f"KernelPrediction({'; '.join(parts)})"


def kernel_prediction(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    test: Tensor | tuple[Tensor, Tensor],
    *,
    trained: nn.Module | None = None,
    ridge: float | Literal["loo", "gcv"] | None = None,
    proximal: float | None = None,
    reduction: Literal["full", "diagonal", "trace"] = "full",
    include_omega: bool = False,
    memory_budget: int | None = None,
) -> KernelPrediction:
    r"""Ridge regression with a network's own exact kernel at theta_0, beside what training gave.

    .. math:: f(x) = f_0(x) + K(x, X) (K(X, X) + \rho I)^{-1} (Y - f_0(X))

    K is ``empirical_ntk(model, per="model")``: at finite width the terms between layers count, so the sum of the
    layers' kernels will not do (docs/errata.md, 2). How far ``trained`` is from this is how far its training was from
    lazy, if it minimised the squared error of :func:`nftk.fit` with ``proximal`` to the end.

    Args:
        model: The network **before** training, theta_0; keep a ``copy.deepcopy`` of it, or its file. An
            :class:`nftk.NFTKMLP` or what else :func:`nftk.empirical_ntk` takes.
        train: x ``(n, m)`` and y, labels ``(n,)`` (one-hot targets) or targets ``(n, d)``, as ``fit`` with
            ``loss="mse"`` takes them.
        test: x ``(n_test, m)``, or a pair with the labels or targets.
        trained: The network after training.
        ridge: rho, or ``"loo"``, ``"gcv"``. Give this or ``proximal``.
        proximal: lambda of ``nftk.fit(..., loss="mse", proximal=...)``; rho = lambda N / 2.
        reduction: ``"full"``: exact, one joint system of size n d. ``"diagonal"``: leaves out what ties the outputs, d
            systems of size n. ``"trace"``: their mean, one system of size n.
        include_omega: Whether Omega was trained too (by the same step as the others, which (16) has not).
        memory_budget: Bytes for the kernel's temporaries and the solver, as for :func:`nftk.empirical_ntk`.

    Returns:
        The predictions, and what they are compared by.

    Raises:
        ValueError: If shapes or settings do not fit.
        TypeError: If labels or targets are no tensor.

    References:
        Alemohammad et al., NFT-K: Non-Fungible Tangent Kernels, ICASSP 2022, arXiv 2110.04945, theorem 1 and equation
        14, as docs/errata.md, 1 to 3, has them.

    Example:
        >>> import copy, torch, nftk
        >>> x = torch.randn(20, 5)
        >>> model = nftk.NFTKMLP(5, [512, 512], 1, parameterization="ntk", omega_init=0.7)
        >>> trained = copy.deepcopy(model)
        >>> trained.omega.requires_grad_(False).shape
        torch.Size([1, 2])
        >>> history = nftk.fit(trained, (x, x[:, :1]), loss="mse", proximal=1.0, epochs=100, batch_size=20, lr=0.1,
        ...                    weight_decay=0.0)
        >>> nftk.kernel_prediction(model, (x, x[:, :1]), x, trained=trained, proximal=1.0).distance < 0.3
        True
    """
    check_choice(_OP, "reduction", reduction, _REDUCTIONS)
    if not isinstance(train, tuple | list) or len(train) != 2:
        raise ValueError(f"nftk.{_OP}: train must be a pair (x, y), got {type(train).__name__}")
    x, y = train
    x_test, y_test = (test[0], test[1]) if isinstance(test, tuple | list) else (test, None)
    check_tensor(_OP, "train's x", x)
    check_tensor(_OP, "test's x", x_test)
    if (ridge is None) is (proximal is None):
        raise ValueError(f"nftk.{_OP}: ridge or proximal must be given, one of them, got {ridge} and {proximal}")
    if proximal is not None:
        check_number(_OP, "proximal", proximal)
        ridge = ridge_from_proximal(proximal, len(x))
    assert ridge is not None
    for name, given in (("train's y", y), ("test's y", y_test)):
        if not isinstance(given, Tensor) and not (given is None and name == "test's y"):
            raise TypeError(f"nftk.{_OP}: {name} must be a torch.Tensor, got {type(given).__name__}")
    with torch.no_grad():
        f_0, f_0_test = _outputs(model, x), _outputs(model, x_test)
    target = _targets(y, f_0, "train's y")
    if len(target) != len(f_0):
        raise ValueError(f"nftk.{_OP}: train's y must have {len(f_0)} entries, one an example, got {len(target)}")
    if y_test is not None and len(_targets(y_test, f_0_test, "test's y")) != len(f_0_test):
        raise ValueError(f"nftk.{_OP}: test's y must have {len(f_0_test)} entries, one an example, got {len(y_test)}")

    settings: dict[str, Any] = {
        "per": "model", "reduction": reduction, "include_omega": include_omega, "memory_budget": memory_budget,
    }  # fmt: skip
    k = _one_kernel(empirical_ntk(model, x, **settings), f_0.shape[1])
    k_test = _one_kernel(empirical_ntk(model, x_test, x, **settings), f_0.shape[1])
    regression = KernelRidge(ridge, task="regression", memory_budget=memory_budget)
    regression.fit(k, target, offset=f_0)
    predicted = regression.outputs(k_test, offset=f_0_test)
    after = distance = None
    if trained is not None:
        with torch.no_grad():
            after = _outputs(trained, x_test)
        check_shape(_OP, "trained's output", after, tuple(predicted.shape))
        moved = torch.linalg.vector_norm(predicted - f_0_test)
        distance = float(torch.linalg.vector_norm(after - predicted) / moved)
    accuracy = None
    if y_test is not None and not y_test.is_floating_point():
        said = {"initial": f_0_test, "kernel": predicted} | ({} if after is None else {"trained": after})
        accuracy = {name: float((f.argmax(1) == y_test.to(f.device)).double().mean()) for name, f in said.items()}
    return KernelPrediction(f_0_test, predicted, after, regression.ridge_, distance, accuracy, regression)


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    """F(x), ``(n, d)`` in float64."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        f: Tensor = model.eval()(x)
    finally:
        for module, training in modes:
            module.training = training
    return f.reshape(len(x), -1).to(torch.float64)


def _targets(y: Tensor, f_0: Tensor, name: str) -> Tensor:
    """Labels as one-hot rows, targets as they are, ``(n, d)``."""
    d = f_0.shape[1]
    if not y.is_floating_point():
        if y.ndim != 1 or not len(y) or not 0 <= int(y.min()) <= int(y.max()) < d:
            found = list(y.shape) if y.ndim != 1 or not len(y) else f"{int(y.min())} to {int(y.max())}"
            raise ValueError(f"nftk.{_OP}: {name} must be labels [n] in 0..{d - 1} or targets [n, {d}], got {found}")
        return nn.functional.one_hot(y.long(), d).to(f_0)
    if y.numel() != len(y) * d:
        raise ValueError(f"nftk.{_OP}: {name} must have shape [n, {d}], got {list(y.shape)}")
    return y.reshape(-1, d).to(f_0)


def _one_kernel(k: LayerKernels, d: int) -> LayerKernels:
    return k / d if k.reduction == "trace" else k
