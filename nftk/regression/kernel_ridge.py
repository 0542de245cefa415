"""KernelRidge: ridge regression with one kernel, one an output, or layer kernels weighted by Omega."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from nftk._checks import check_choice, check_number, check_numbers
from nftk.regression.kernel_estimator import Kernel, KernelChoice, KernelEstimator, as_omega
from nftk.regression.selection import Selection, select
from nftk.regression.solve import Solution, solve
from nftk.tangent.infinite_ntk import infinite_ntk
from nftk.tangent.plan import check_budget

_SOLVERS = ("auto", "cholesky", "cg")


class KernelRidge(KernelEstimator):
    r"""Kernel ridge regression: where training with the proximal term ends, in the limit of infinite width.

    .. math:: f(x) = f_0(x) + K(x, X) (K(X, X) + \rho I)^{-1} (Y - f_0(X)), \qquad K = \sum_l D_l \Theta_l D_l, \;
        D_l = diag(\omega_l)

    A scikit-learn estimator (``clone``, ``Pipeline``, ``GridSearchCV``; no intercept), that also takes tensors and
    :class:`nftk.LayerKernels`, and then stays on their device. Labels become one-hot targets.

    **What is solved.** In float64 whatever the kernel's dtype. One matrix for all outputs where Omega is the same for
    all (one Cholesky factor); one a class where it differs (batched); for ``full`` kernels, whose outputs are tied, all
    outputs and examples jointly, size n d. A kernel that is not positive definite in float64 gets the smallest jitter
    of n eps, 10 n eps, ... times its mean diagonal that helps, at most 1e-6 of it: told by a
    :class:`nftk.regression.KernelWarning` and ``jitter_``; what needs more is refused.

    Args:
        ridge: rho >= 0, added to the diagonal as it is (no factor n); :func:`nftk.regression.ridge_from_proximal` says
            which rho a network's training means. ``"loo"``: the one with the least exact leave-one-out error;
            ``"gcv"``: by generalised cross-validation. Both cost one eigendecomposition a matrix.
        kernel: ``"precomputed"``: fit and predict take kernels: a matrix ``(n1, n2)``; a tensor ``(d, n1, n2)``, one
            matrix an output, or ``(n1, n2, d, d)``; or LayerKernels. ``"infinite"``: they take inputs ``(n, m)``, and
            :func:`nftk.infinite_ntk` makes the kernels. A callable: ``kernel(x1, x2, **kernel_params)`` on tensors
            gives any of these kernels.
        omega: Weights of LayerKernels, ``(L,)`` or ``(d, L)``; they enter squared, as in ``LayerKernels.combine``.
            None: for ``"infinite"``, sqrt(1/L) everywhere, the mean of the kernels; elsewhere there must be one block.
        kernel_params: Keywords of the kernel, for ``"infinite"`` ``{"depth": 3}`` and what else
            :func:`nftk.infinite_ntk` takes.
        task: ``"classification"``, ``"regression"``, or ``"auto"``: a row or a column of integers, booleans or strings
            is labels, all else targets.
        ridges: Where ``"loo"`` and ``"gcv"`` choose from; None for everywhere between rounding and ten times the
            largest eigenvalue. Where all are as good, which targets or a kernel of zeros leave, the largest is taken.
        solver: ``"cholesky"``; ``"cg"``: block conjugate gradients with a Nystrom preconditioner, which read the kernel
            in tiles (raw inputs: compute it in tiles, and never hold it); ``"auto"``: Cholesky where it fits memory.
        tolerance: Relative residual at which conjugate gradients stop.
        memory_budget: Bytes for what the solver holds; None for half of what is free.

    Attributes:
        dual_coef_: (K + rho I)^-1 (Y - f_0), ``(n, d)``, float64.
        ridge_: rho.
        omega_: Omega as used, or None.
        classes_: Labels in the order of outputs, or None.
        jitter_: What was added to the diagonals beside rho, one a matrix; 0 where nothing was.
        condition_: Estimated condition number of each matrix plus rho; a warning where it exceeds what the kernel's
            dtype resolves. None after conjugate gradients.
        iterations_: Of conjugate gradients, else None; ``residual_``: their relative residual.
        selection_: The ridges that were tried and their errors, or None.

    References:
        Alemohammad et al., NFT-K: Non-Fungible Tangent Kernels, ICASSP 2022, arXiv 2110.04945, equation 14 with the
        inverse and f_0 (docs/errata.md, 1); Golub, Heath and Wahba, Generalized cross-validation, Technometrics 21,
        1979.

    Example:
        >>> import torch, nftk
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, 3.0])
        >>> ridge = nftk.KernelRidge(ridge=1.0).fit(x @ x.T + 1, y)  # (K + I) = [[2, 1], [1, 3]]
        >>> [round(a, 6) for a in ridge.dual_coef_.flatten().tolist()]
        [0.0, 1.0]
        >>> round(ridge.predict(torch.tensor([[2.0]]) @ x.T + 1).item(), 6)
        3.0
    """

    def __init__(
        self,
        ridge: float | Literal["loo", "gcv"] = 1.0,
        kernel: KernelChoice = "precomputed",
        *,
        omega: Tensor | Sequence[float] | None = None,
        kernel_params: dict[str, Any] | None = None,
        task: Literal["auto", "classification", "regression"] = "auto",
        ridges: Sequence[float] | None = None,
        solver: Literal["auto", "cholesky", "cg"] = "auto",
        tolerance: float = 1e-8,
        memory_budget: int | None = None,
    ) -> None:
        self.ridge = ridge
        self.kernel = kernel
        self.omega = omega
        self.kernel_params = kernel_params
        self.task = task
        self.ridges = ridges
        self.solver = solver
        self.tolerance = tolerance
        self.memory_budget = memory_budget

    def fit(self, X: Any, y: Any, *, offset: Any = None) -> "KernelRidge":
        """Find the coefficients.

        Args:
            X: Inputs ``(n, m)``, or, precomputed, the kernel of the training examples with themselves.
            y: Labels ``(n,)``, or targets ``(n,)`` or ``(n, d)``.
            offset: f_0 of the training examples, ``(n, d)``: what a finite network says before training. ``predict``
                then wants it for the test examples.

        Returns:
            The estimator itself.

        Raises:
            ValueError: If shapes do not fit, entries are not finite, the kernel is not symmetric or not positive
                semi-definite, or the ridge is to be chosen by one example. A fit before this one then stays.
            TypeError: If y or Omega is not numbers.
        """
        return self._refit(X, y, offset)

    def _fit(self, x: Any, y: Any, offset: Any) -> None:
        ridges = self._check_settings()
        self._keep_kernel()
        self.omega_ = as_omega(self._op, self.omega)
        if self.omega_ is None and self._kernel == "infinite":
            self.omega_ = torch.full((self._depth(),), self._depth() ** -0.5, dtype=torch.float64)
        elif self.omega_ is not None and self._kernel == "infinite" and self.omega_.shape[-1] != self._depth():
            raise ValueError(
                f"nftk.{self._op}: omega must have {self._depth()} columns, one a layer of kernel 'infinite', got "
                f"shape {list(self.omega_.shape)}"
            )
        kernel = self._train(x)
        gram = self._lazy() if kernel is None else self._gram(kernel)
        target = self._targets(y, gram.shape[0], gram.device)
        self._checked(gram, target)
        if self.omega_ is not None and self.omega_.ndim == 2 and len(self.omega_) != target.shape[1]:
            raise ValueError(
                f"nftk.{self._op}: omega must have {target.shape[1]} rows, one a class or column of y, got "
                f"{len(self.omega_)}"
            )
        f_0 = self._offset(offset, target)
        self._shifted = f_0 is not None
        target = target if f_0 is None else target - f_0
        self.selection_: Selection | None = None
        if isinstance(self.ridge, str):
            self.selection_, alpha = select(self._op, gram, target, self.ridge, ridges)
            solution = Solution(alpha, torch.zeros(gram.pieces, dtype=torch.float64))
            self.ridge_ = self.selection_.ridge
        else:
            self.ridge_ = float(self.ridge)
            solution = solve(
                self._op,
                gram,
                target,
                self.ridge_,
                solver=self.solver,
                tolerance=self.tolerance,
                memory_budget=self.memory_budget,
            )
        self.dual_coef_ = solution.alpha
        self.jitter_, self.condition_ = solution.jitter, solution.condition
        self.iterations_, self.residual_ = solution.iterations, solution.residual

    def _infinite(self, x1: Tensor, x2: Tensor | None, settings: dict[str, Any]) -> Kernel:
        """The weighted sum alone, one an output where Omega differs: no layer's kernel is held."""
        assert self.omega_ is not None
        weights = self.omega_.square()
        if weights.ndim == 2 and bool((weights == weights[0]).all()):
            weights = weights[0]
        blocks = infinite_ntk(x1, x2, weights=weights, **settings).blocks
        return blocks[0] if weights.ndim == 1 else blocks

    def _in_tiles(self, n: int) -> bool:
        """Whether the kernel of n raw inputs is better never held: it, and its factor, would not fit."""
        if self.solver != "auto":
            return self.solver == "cg"
        held = 1 if self.omega_ is None or self.omega_.ndim == 1 else len(self.omega_)
        need = 8 * n * n * (2 + held)
        return not isinstance(self.ridge, str) and need > check_budget(self.memory_budget, self._x.device, self._op)

    def _check_settings(self) -> list[float] | None:
        """Refuse what cannot be; returns the ridges to choose from."""
        op = self._op
        check_choice(op, "solver", self.solver, _SOLVERS)
        check_number(op, "tolerance", self.tolerance, above=True)
        if isinstance(self.ridge, str):
            check_choice(op, "ridge", self.ridge, ("loo", "gcv"))
            if self.solver == "cg":
                raise ValueError(f"nftk.{op}: ridge must be a number for solver 'cg', got {self.ridge!r}")
        else:
            check_number(op, "ridge", self.ridge)
        if self.ridges is None:
            return None
        if not isinstance(self.ridge, str):
            raise ValueError(f"nftk.{op}: ridges must go with ridge 'loo' or 'gcv', got ridge {self.ridge}")
        return check_numbers(op, "ridges", self.ridges)
