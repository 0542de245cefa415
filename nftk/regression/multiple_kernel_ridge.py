"""MultipleKernelRidge: Omega learned on layer kernels."""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from nftk import constraints
from nftk._checks import check_choice, check_integer, check_number, check_symmetric, is_finite
from nftk.constraints import NonNegative
from nftk.constraints.base import Projection
from nftk.regression.descent import Descent, bounded, by_class, descend
from nftk.regression.gram import Gram, from_layers
from nftk.regression.kernel_estimator import Kernel, KernelChoice, KernelEstimator
from nftk.regression.objectives import OBJECTIVES, Problem, matrices
from nftk.regression.solve import KernelWarning, solve
from nftk.tangent.layer_kernels import LayerKernels
from nftk.tangent.progress import Line
from nftk.tangent.scale import magnitude

Progress = bool | Callable[[int, int], None]


class MultipleKernelRidge(KernelEstimator):
    r"""Kernel ridge regression whose weights of the layers are learned: Omega without a network.

    .. math:: \min_{\eta \in S} \; \min_\alpha \; J, \qquad K_i = \sum_l \eta_{l,i} \Theta_l, \quad
        \eta = \omega^2, \quad S = \{\eta \ge 0 : \sum_l \eta_{l,i} = 1\}

    This is the paper's problem 9 in the limit of infinite width, made well-posed. At fixed eta the coefficients have a
    closed form, and what is left, J(eta) = (rho / N) y^T (K_eta + rho I)^{-1} y, is convex; it is minimised by
    projected gradient steps with a line search that never goes up, each class by itself where the set allows.
    Over {Omega >= 0} alone it has no minimiser (docs/errata.md, 7): larger weights always lower it, so that
    ``constraint="nonnegative"`` is refused there. The same pull is felt inside a bounded set by kernels that are
    larger as a whole, which deeper ones are: ``normalize="trace"`` takes it away.

    Args:
        ridge: rho > 0, as in :class:`nftk.KernelRidge`.
        constraint: Set of **eta**: ``"simplex"``; ``"l1ball"`` (under ``"regularized"`` the same answer);
            ``"groupsparse"``, which drops layers for all classes at once; ``"nonnegative"``, for ``"loo"`` only; or an
            object of ``nftk.constraints``, or any with ``project_(eta)`` whose points are non-negative and bounded.
            ``GroupSparse`` with ``max_layers`` is not convex: the descent starts from the layers that weigh most
            without that limit. Which it ends with is not proven best; their weights are, where the objective is convex.
        objective: ``"regularized"``: J above. ``"loo"``: the exact leave-one-out error, which is what one wants lower,
            but not convex in eta: the end is a stationary point, found from equal weights; an iteration costs some six
            times as much.
        kernel: As for :class:`nftk.KernelRidge`, but that a tensor ``(L, n1, n2)`` holds one matrix a layer.
            Precomputed kernels are LayerKernels, or such a tensor.
        kernel_params: Keywords of the kernel.
        per_class: Whether each output has weights of its own; None for wherever that can be: trace and sum_logits have
            no outputs left, and ``full`` is convex only for weights that all outputs share.
        normalize: ``"trace"``: Theta_l is divided by the mean of its diagonal over the training examples; ``eta_`` is
            of these, ``omega_`` of the kernels as given.
        task: As for :class:`nftk.KernelRidge`.
        tolerance: At which a problem has converged: its gap, relative to its objective (float64 sees some 1e-8). With
            simplex, l1ball and groupsparse the gap is max over s in S of <grad, eta - s>: for ``"regularized"`` a
            duality gap, so that J is no farther than that above its minimum; elsewhere it says how much lower a step
            could go, to first order. Where ``max_layers`` layers are open, S is what these can have. A set of one's own
            has converged where no step is lower.
        max_iter: Most steps of one problem.
        progress: True for a line on standard error; or a function called with the problems done and all of them.

    Attributes:
        omega_: sqrt(eta), ``(d, L)`` as a network's: :func:`nftk.plot_omega` draws the estimator.
        eta_: ``(d, L)``.
        objective_: At the end, summed over outputs; infinite where float64 cannot hold squares of the targets, which
            are learned from all the same. An output whose targets are all 0 keeps equal weights.
        history_: Of it, at every iteration, ``(iterations + 1,)``, never increasing; a problem that has ended counts
            with its last value.
        gap_: What the criterion left, one a problem.
        converged_: Whether all did.
        n_iter_: Most steps that a problem took.
        dual_coef_, classes_, jitter_, condition_: As in :class:`nftk.KernelRidge`.

    References:
        Alemohammad et al., NFT-K: Non-Fungible Tangent Kernels, ICASSP 2022, arXiv 2110.04945, equations 9, 15, 16;
        Rakotomamonjy et al., SimpleMKL, JMLR 9, 2008; Cortes, Mohri and Rostamizadeh, L2 regularization for learning
        kernels, UAI 2009.

    Example:
        >>> import torch, nftk
        >>> x = torch.linspace(-1, 1, 20, dtype=torch.float64)
        >>> k = torch.stack((torch.outer(x, x), torch.outer(x**2, x**2)))  # two layers: a line, a parabola
        >>> learned = nftk.MultipleKernelRidge(ridge=0.01).fit(k, torch.stack((x, x**2), 1))
        >>> learned.omega_
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """

    def __init__(
        self,
        ridge: float = 1.0,
        constraint: str | Projection = "simplex",
        objective: Literal["regularized", "loo"] = "regularized",
        *,
        kernel: KernelChoice = "precomputed",
        kernel_params: dict[str, Any] | None = None,
        per_class: bool | None = None,
        normalize: Literal["trace"] | None = None,
        task: Literal["auto", "classification", "regression"] = "auto",
        tolerance: float = 1e-4,
        max_iter: int = 200,
        progress: Progress = False,
    ) -> None:
        self.ridge = ridge
        self.constraint = constraint
        self.objective = objective
        self.kernel = kernel
        self.kernel_params = kernel_params
        self.per_class = per_class
        self.normalize = normalize
        self.task = task
        self.tolerance = tolerance
        self.max_iter = max_iter
        self.progress = progress

    @property
    def omega(self) -> Tensor:
        """Omega as learned, under the name that a network has it by."""
        if not self.__sklearn_is_fitted__():
            raise AttributeError(f"nftk.{self._op}: omega is learned by fit, which was not called yet")
        assert self.omega_ is not None
        return self.omega_

    def fit(self, X: Any, y: Any, *, offset: Any = None) -> "MultipleKernelRidge":
        """Learn Omega and find the coefficients.

        Args:
            X: Inputs ``(n, m)``, or, precomputed, kernels of the training examples with themselves.
            y: Labels ``(n,)``, or targets ``(n,)`` or ``(n, d)``.
            offset: f_0 of the training examples, as in :meth:`nftk.KernelRidge.fit`.

        Returns:
            The estimator itself.

        Raises:
            ValueError: If shapes do not fit, entries are not finite, a kernel is not positive semi-definite, the
                problem has no solution over the constraint set, or one example is to be left out of one. A fit before
                this one then stays.
            TypeError: If y is not numbers, or the constraint no set.
        """
        return self._refit(X, y, offset)

    def _fit(self, x: Any, y: Any, offset: Any) -> None:
        ridge, allowed = self._check_settings()
        self._keep_kernel()
        kernel = self._train(x)
        assert kernel is not None
        k = self._layers(kernel)
        self._check_each(k)
        if self.objective == "loo" and k.shape[0] < 2:
            raise ValueError(
                f"nftk.{self._op}: X must have at least 2 examples for objective 'loo', got n_samples = {k.shape[0]}"
            )
        target = self._targets(y, k.shape[0], k.blocks.device)
        f_0 = self._offset(offset, target)
        self._shifted = f_0 is not None
        target = target if f_0 is None else target - f_0
        d = target.shape[1]
        if k.outputs not in (None, d):
            what = "classes" if self.classes_ is not None else "columns"
            raise ValueError(f"nftk.{self._op}: y must have {k.outputs} {what}, as the kernels, got {d}")
        per_class = self._per_class(k)
        problems = self._problems(k, target, ridge, per_class)
        scales = torch.stack([problem.scales for problem in problems])
        # eta is the same for targets of any size, and squares of those of size 1 are safe
        tied = len(problems) > 1 and not by_class(allowed)
        units = [magnitude(target)] * len(problems) if tied else [magnitude(p.targets) for p in problems]
        problems = [p._replace(targets=p.targets / unit) for p, unit in zip(problems, units, strict=True)]
        ends = self._learn(problems, allowed, tied)
        worst = max(end.gap / max(abs(end.history[-1]), 1e-300) for end in ends)
        ends = [end.times(unit).times(unit) for end, unit in zip(ends, units, strict=False)]

        self.eta_ = torch.cat([end.eta for end in ends]).expand(d, -1).contiguous()
        self.omega_ = (self.eta_ / scales).sqrt()
        longest = max(len(end.history) for end in ends)
        padded = [end.history + end.history[-1:] * (longest - len(end.history)) for end in ends]
        self.history_ = torch.tensor(padded, dtype=torch.float64).sum(0)
        self.objective_ = float(self.history_[-1])
        self.gap_ = torch.tensor([end.gap for end in ends], dtype=torch.float64)
        self.converged_ = all(end.converged for end in ends)
        self.n_iter_ = max(1, longest - 1)
        if not self.converged_:
            warnings.warn(
                f"nftk.{self._op}: learning Omega stopped after {self.n_iter_} iterations with a relative gap of "
                f"{worst:.1e}, above the tolerance {self.tolerance:.1e}; "
                + ("raise max_iter" if self.n_iter_ >= self.max_iter else "float64 sees nothing lower: raise it"),
                KernelWarning,
                stacklevel=2,
            )
        solution = solve(self._op, self._gram(k), target, ridge, solver="cholesky")
        self.dual_coef_, self.jitter_, self.condition_ = solution.alpha, solution.jitter, solution.condition

    def _learn(self, problems: list[Problem], allowed: Projection, tied: bool) -> list[Descent]:
        """Minimise each problem, or all together where the set ties classes."""
        objective = OBJECTIVES[self.objective]
        settings: dict[str, Any] = {"tolerance": self.tolerance, "max_iter": self.max_iter}
        size = len(problems[0].scales)
        start = torch.full((1, size), 1 / size, dtype=torch.float64, device=problems[0].targets.device)
        tell = Line("learning Omega") if self.progress is True else self.progress
        if tied:

            def total(eta: Tensor) -> tuple[float, Tensor]:
                found = [objective(problem, self._row(row)) for problem, row in zip(problems, eta, strict=True)]
                return sum(value for value, _ in found), torch.stack([gradient for _, gradient in found])

            return [descend(total, allowed, start.expand(len(problems), -1), **settings)]
        ends = []
        for problem in problems:

            def value(eta: Tensor, problem: Problem = problem) -> tuple[float, Tensor]:
                found, gradient = objective(problem, self._row(eta[0]))
                return found, gradient[None]

            ends.append(descend(value, allowed, start, **settings))
            if callable(tell):
                tell(len(ends), len(problems))
        return ends

    def _row(self, eta: Tensor) -> Tensor:
        if bool((eta < 0).any()) or not bool(torch.isfinite(eta).all()):
            raise ValueError(
                f"nftk.{self._op}: constraint must have non-negative, finite points only, got {eta.min().item():.3g}"
            )
        return eta

    def _problems(self, k: LayerKernels, target: Tensor, ridge: float, per_class: bool) -> list[Problem]:
        """One problem an output, or one in all."""
        n, d = target.shape
        outputs: list[int | None] = list(range(d)) if per_class else [None]
        found = []
        for output in outputs:
            blocks = matrices(k, output)
            scales = torch.ones(len(k), dtype=torch.float64, device=target.device)
            if self.normalize == "trace":
                scales = torch.stack([block.diagonal().to(torch.float64).mean() for block in blocks])
                if not bool((scales > 0).all()):
                    least = scales.min().item()
                    raise ValueError(f"nftk.{self._op}: every kernel must have a trace above 0, got {least:.3g}")
            if output is not None:
                columns = target[:, output : output + 1]
            else:
                columns = target.reshape(-1, 1) if k.reduction == "full" else target
            found.append(Problem(blocks, scales, columns, ridge, n, self._op))
        return found

    def _per_class(self, k: LayerKernels) -> bool:
        if self.per_class is not None and not isinstance(self.per_class, bool):
            raise TypeError(f"nftk.{self._op}: per_class must be True, False or None, got {self.per_class!r}")
        if self.per_class is None:
            return k.reduction in ("scalar", "diagonal")
        if self.per_class and k.reduction not in ("scalar", "diagonal"):
            why = "the problem is convex only for shared weights" if k.reduction == "full" else "no classes are left"
            raise ValueError(
                f"nftk.{self._op}: per_class must be False or None for {k.reduction!r} kernels, where {why}, got True"
            )
        if not self.per_class and k.reduction == "diagonal":
            raise ValueError(
                f"nftk.{self._op}: per_class must be True or None for 'diagonal' kernels, which have a matrix an "
                "output, got False"
            )
        return self.per_class

    def _check_settings(self) -> tuple[float, Projection]:
        op = self._op
        ridge = check_number(op, "ridge", self.ridge, above=True)
        check_choice(op, "objective", self.objective, OBJECTIVES)
        check_number(op, "tolerance", self.tolerance, above=True)
        check_integer(op, "max_iter", self.max_iter, 1)
        if self.normalize is not None:
            check_choice(op, "normalize", self.normalize, ("trace",))
        allowed = constraints.resolve(self.constraint)
        if allowed is None:
            raise ValueError(
                f"nftk.{op}: constraint must be a set of non-negative weights, got none: negative ones give no kernel"
            )
        if self.objective == "regularized" and not bounded(allowed):
            name = "nonnegative" if isinstance(allowed, NonNegative) else repr(allowed)
            raise ValueError(
                f"nftk.{op}: constraint must be a bounded set for objective 'regularized', got {name!r}: larger "
                "weights always lower the objective, so that it has no minimiser there (docs/errata.md, 7); take "
                "'simplex', or objective 'loo'"
            )
        return ridge, allowed

    def _layers(self, k: Kernel) -> LayerKernels:
        """Kernels one a layer, from a tensor too."""
        if isinstance(k, LayerKernels):
            return k
        blocks = k[None] if k.ndim == 2 else k
        if blocks.ndim != 3:
            raise ValueError(
                f"nftk.{self._op}: a tensor of kernels must have shape [L, n1, n2], one matrix a layer, got "
                f"{list(k.shape)}; LayerKernels hold the others"
            )
        if not blocks.is_floating_point():
            blocks = blocks.to(torch.float64)
        if not bool(torch.isfinite(blocks).all()):
            raise ValueError(f"nftk.{self._op}: kernels must be finite, got NaN or infinity")
        return LayerKernels(blocks, tuple(f"layer {i + 1}" for i in range(len(blocks))), "scalar")

    def _check_each(self, k: LayerKernels) -> None:
        n1, n2 = k.shape
        if n1 != n2:
            raise ValueError(
                f"nftk.{self._op}: the training kernels must be square, of the training examples with themselves, got "
                f"shape {[n1, n2]}"
            )
        if not is_finite(k.blocks):
            raise ValueError(f"nftk.{self._op}: kernels must be finite, got NaN or infinity")
        if k.symmetric:
            return
        for name, block in zip(k.names, k.matrix().detach(), strict=True):
            check_symmetric(self._op, f"the training kernel of {name}", block, torch.finfo(block.dtype).eps)

    def _gram(self, k: Kernel) -> Gram:
        assert self.omega_ is not None
        layers = self._layers(k)
        # their classes are gone, and all rows of Omega are the same
        shared = layers.reduction in ("trace", "sum_logits")
        return from_layers(self._op, layers, self.omega_[0] if shared else self.omega_)
