"""KernelSurrogate: a kernel machine that stands in for a trained network, and keeps its layers apart."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nftk._checks import check_choice, check_integer, check_number, check_numbers, check_symmetric, is_finite
from nftk._optional import require
from nftk.regression.estimator import Estimator
from nftk.regression.gram import weighted
from nftk.regression.kernel_ridge import KernelRidge
from nftk.regression.solve import KernelWarning
from nftk.surrogate.penalty import GRID, Choice, choose, held_out
from nftk.surrogate.solver import Solution
from nftk.tangent.layer_kernels import LayerKernels
from nftk.tangent.targets import as_array, as_numbers

_ESTIMATORS = ("logistic", "svm", "ridge")
_TARGETS = ("labels", "probabilities")
_SCALARS = ("trace", "sum_logits", "scalar")
# of the gap at which learning the weights of layers stops, as a share of the objective
GAP = 1e-3
# of libsvm's stopping rule; below that its steps no longer end on all kernels
LIBSVM = 1e-5


class KernelSurrogate(Estimator):
    r"""A kernel machine fitted to what a network was taught, or to what it says.

    .. math:: f_c(x) = \sum_l \sum_i \alpha_{ic} \, w_l \, K_l(x, x_i) + b_c

    On a network's own tangent kernels it may stand in for it, which :func:`nftk.surrogate.faithfulness` measures, and
    says which training examples its outputs rest on, and by which layers: :func:`nftk.attribution.attribute`. A
    scikit-learn classifier on precomputed kernels
    (``clone``, ``Pipeline``, ``GridSearchCV``), that also takes tensors and :class:`nftk.LayerKernels`. It minimises
    (mean loss) + penalty / 2 * tr(alpha^T K alpha), K = sum_l w_l K_l, in float64 on the CPU.

    Args:
        estimator: ``"logistic"``: multinomial logistic regression, the cross-entropy to labels or probabilities, with
            an intercept that is not penalised. ``"svm"``: scikit-learn's support vector machine, one class against the
            rest (of two classes a single machine), hinge loss, C = 1 / (n penalty). ``"ridge"``: half the squared
            distance to one-hot labels or probabilities, no intercept: :class:`nftk.KernelRidge` with ridge n penalty.
        penalty: A number above 0; None for the best of ``penalties`` on examples held out, after which all are fitted.
            What is lost there is the cross-entropy for logistic and the share of errors for svm; ridge has the exact
            leave-one-out error instead, which holds out nothing. With learned weights it is chosen at equal ones.
        target: What y is: ``"labels"``, or ``"probabilities"``, the network's own, ``(n, C)`` with rows that sum to 1,
            or of two classes that of the second, ``(n,)``; the svm takes the most probable class.
        weights: w. None for 1, the plain sum of layers; ``(L,)`` numbers, at least 0, which enter as they are (the
            *square* of ``LayerKernels.combine``'s omega); ``"learned"``: with the coefficients, over w >= 0 of which
            the mean of K's diagonal is that of the plain sum, by :func:`nftk.surrogate.layer_weights.learn_weights`.
        penalties: To choose from. None: 1, 0.1, ..., 1e-8 times the mean of K's diagonal, from the largest down until
            two in turn are worse than the best; for ridge everywhere, see ``ridges`` of :class:`nftk.KernelRidge`.
        validation: Share of each class that is held out.
        seed: Of what is held out.
        tolerance: Norm of the (preconditioned) gradient at which logistic stops; libsvm's rule has it too, but at least
            1e-5.
        max_iterations: Of L-BFGS, and of fits while weights are learned. Of libsvm, which at small penalties may never
            end, 200 steps for each, 200 000 by default (from 2000 examples on a tenth of n each); where a fit stops at
            that, smaller penalties are not tried. What is not done by then is told by a
            :class:`nftk.regression.KernelWarning`.

    Attributes:
        dual_coef_: alpha, ``(n, C)``, float64. Outputs do not tell it in directions that the kernel does not have;
            logistic and ridge take there, too, what the loss's slope at each example says: (y - p) / (n penalty), and
            (y - f) / (n penalty). So equal examples with different labels differ. Logistic keeps to it up to its
            tolerance, and unless outputs would show the kernel's own rounding by it (float32 and penalties below some
            1e-6 of the mean diagonal).
        intercept_: b, ``(C,)``.
        weights_: w, ``(L,)``.
        layer_names_: Names of the layers, L of them.
        classes_: Labels in the order of outputs; for probabilities 0 to C - 1.
        penalty_: The penalty.
        selection_: Penalties tried and what each lost, or None.
        objective_: Mean loss plus penalty.
        converged_: Whether the tolerance was met, by libsvm within its steps.
        residual_, iterations_: Norm of the gradient and steps, of logistic.
        learning_: How the weights were learned, or None.

    References:
        Engel et al., Faithful and Efficient Explanations for Neural Networks via Neural Tangent Kernel Surrogate
        Models, ICLR 2024, arXiv 2305.14585; its surrogate is linear in the columns of K and penalises alpha itself,
        not the norm of f: it is this one on K K.

    Example:
        >>> import torch, nftk
        >>> x, y = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
        >>> surrogate = nftk.surrogate.KernelSurrogate(penalty=0.1).fit(x @ x.T, y)
        >>> surrogate.predict(torch.tensor([[-3.0], [0.5]]) @ x.T)
        tensor([0, 1])
    """

    task = "classification"
    kernel = "precomputed"

    def __init__(
        self,
        estimator: Literal["logistic", "svm", "ridge"] = "logistic",
        penalty: float | None = None,
        *,
        target: Literal["labels", "probabilities"] = "labels",
        weights: Tensor | Sequence[float] | Literal["learned"] | None = None,
        penalties: Sequence[float] | None = None,
        validation: float = 0.2,
        seed: int = 0,
        tolerance: float = 1e-8,
        max_iterations: int = 1000,
    ) -> None:
        self.estimator = estimator
        self.penalty = penalty
        self.target = target
        self.weights = weights
        self.penalties = penalties
        self.validation = validation
        self.seed = seed
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def fit(self, X: Any, y: Any) -> "KernelSurrogate":
        """Find penalty, weights and coefficients.

        Args:
            X: The kernel of the training examples with themselves: a matrix, ``(L, n, n)`` by layer, or LayerKernels
                with one number a pair (trace, sum_logits, scalar), normalised or not.
            y: Labels ``(n,)`` or probabilities, as ``target`` says.

        Returns:
            The estimator itself.

        Raises:
            ValueError: If settings or shapes do not fit, there are fewer than two classes, or the kernel is not finite,
                symmetric and positive semi-definite. A fit before this one then stays.
            TypeError: If a setting, the kernel or y is of a wrong type.
            ImportError: If scipy or scikit-learn is missing.
        """
        return self._refit(X, y, None)

    def predict(self, X: Any) -> Any:
        """Predict labels.

        Args:
            X: The kernel of test with training examples, in the form that fit was given.

        Returns:
            Labels ``(n_test,)``; a tensor for tensors and LayerKernels, else an array.

        Raises:
            RuntimeError: If it is not fitted.
            ValueError: If layers or shapes do not fit those of fit, or the kernel is not finite.
            TypeError: If the kernel is of a wrong type.
        """
        return self._said(self._outputs(X), _is_torch(X))

    def outputs(self, X: Any) -> Any:
        """Return f, one number a class.

        Args:
            X: As for :meth:`predict`.

        Returns:
            ``(n_test, C)``, float64.
        """
        return _like(X, self._outputs(X))

    def layer_outputs(self, X: Any) -> Any:
        """Return what each layer adds to f; with the intercept they sum to it.

        Args:
            X: As for :meth:`predict`.

        Returns:
            ``(L, n_test, C)``, float64.
        """
        self._check_is_fitted()
        alpha, blocks = self.dual_coef_, self._blocks(X, reset=False)
        pairs = zip(blocks, self.weights_.tolist(), strict=True)
        return _like(X, torch.stack([w * (block.to(torch.float64) @ alpha) for block, w in pairs]))

    def decision_function(self, X: Any) -> Any:
        """Return what labels are decided by.

        Args:
            X: As for :meth:`predict`.

        Returns:
            f, ``(n_test, C)``; of two classes the second less the first, ``(n_test,)``.
        """
        f = self.outputs(X)
        return f[:, 1] - f[:, 0] if f.shape[1] == 2 else f

    @property
    def predict_proba(self) -> Callable[..., Any]:
        """Probabilities ``(n_test, C)``, the softmax of f; of logistic alone, the others' outputs are none."""
        if self.estimator != "logistic":
            raise AttributeError(
                f"nftk.KernelSurrogate: predict_proba is there for estimator 'logistic' only, got {self.estimator!r}"
            )
        return self._probabilities

    def _probabilities(self, X: Any) -> Any:
        return _like(X, self._outputs(X).softmax(1))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of examples that get their label.

        Args:
            X: As for :meth:`predict`.
            y: Labels ``(n_test,)``; or probabilities ``(n_test, C)``, of which the largest says the label.
            sample_weight: How much each example counts; None for all alike.

        Returns:
            Accuracy, or agreement with the network, in 0..1.
        """
        f, values = self._outputs(X), as_array("KernelSurrogate", y)
        if self.target == "probabilities" and values.dtype.kind == "f":
            values = self._as_probabilities(values, len(f)).argmax(1).numpy()
        return self._score(f, values, sample_weight)

    def _fit(self, x: Any, y: Any, offset: Any) -> None:
        penalties = self._check_settings()
        require("scipy", purpose="KernelSurrogate", extra="app")
        blocks = self._blocks(x, reset=True)
        target = self._target(y, blocks.shape[1])
        learned = isinstance(self.weights, str)
        self.weights_ = torch.ones(len(blocks), dtype=torch.float64) if learned else self._weights_of(len(blocks))
        gram = weighted(blocks, self.weights_)
        mean = float(gram.diagonal().mean())
        check_symmetric("KernelSurrogate", "the training kernel", gram, torch.finfo(blocks.dtype).eps)
        if mean <= 0:
            raise ValueError(f"nftk.KernelSurrogate: the kernel must have a diagonal above 0, got the mean {mean:.3g}")
        self.selection_: Choice | None = None
        if self.penalty is not None:
            self.penalty_ = float(self.penalty)
        else:
            self.selection_ = self._choose(gram, target, penalties, mean)
            self.penalty_ = self.selection_.penalty
        self.learning_ = None
        if learned:
            from nftk.surrogate.layer_weights import learn_weights

            self.weights_, found, self.learning_ = learn_weights(
                blocks,
                self.penalty_,
                lambda k, near: self._solve(k, target, near),
                tolerance=GAP,
                max_iterations=self.max_iterations,
            )
        else:
            found = self._solve(gram, target, None)
        self.dual_coef_, self.intercept_ = found.alpha, found.intercept
        self.objective_, self.residual_, self.iterations_ = found.objective, found.residual, found.iterations
        met = found.residual <= self.tolerance and not found.stopped
        self.converged_ = met and (self.learning_ is None or self.learning_.converged)
        if not self.converged_:
            told = found.stopped or f"a gradient of {self.residual_:.1e}, above the tolerance {self.tolerance:.1e}"
            if met and self.learning_ is not None:
                told = f"weights that may be {self.learning_.gap / self.objective_:.1e} of the objective above the best"
            warnings.warn(f"nftk.KernelSurrogate: fit stopped at {told}", KernelWarning, stacklevel=4)

    def _solve(self, k: Tensor, target: Tensor, near: Any) -> Any:
        """The solution for one kernel at the penalty that was chosen."""
        if self.estimator == "svm":
            from nftk.surrogate.support_vectors import support_vectors

            return support_vectors(
                k,
                target.argmax(1),
                target.shape[1],
                self.penalty_,
                tolerance=max(self.tolerance, LIBSVM),
                seed=self.seed,
                max_iterations=self.max_iterations,
            )
        from nftk.surrogate.multinomial import Multinomial

        if self.estimator == "logistic":
            problem = Multinomial("KernelSurrogate", k, target)
            return problem.solve(
                self.penalty_, tolerance=self.tolerance, max_iterations=self.max_iterations, start=near
            )
        n = len(k)
        alpha = KernelRidge(n * self.penalty_).fit(k, target).dual_coef_
        f = k @ alpha
        objective = float((target - f).square().sum() / (2 * n) + self.penalty_ / 2 * (alpha * f).sum())
        return Solution(alpha, torch.zeros(target.shape[1], dtype=torch.float64), objective)

    def _choose(self, k: Tensor, target: Tensor, penalties: list[float] | None, mean: float) -> Choice:
        """The best penalty at the weights as they are."""
        n, places = len(k), target.argmax(1)
        if self.estimator == "ridge":
            found = KernelRidge("loo", ridges=None if penalties is None else [n * p for p in penalties]).fit(k, target)
            assert found.selection_ is not None
            return Choice(found.ridge_ / n, found.selection_.ridges / n, found.selection_.errors)
        kept, out = held_out(places, self.validation, self.seed)
        if not len(out):
            raise ValueError(
                "nftk.KernelSurrogate: a penalty must be given where no class has an example to hold out, got None for "
                f"{n} examples"
            )
        inner, outer, inner_target = k[kept][:, kept], k[out][:, kept], target[kept]
        stopped = ""
        if self.estimator == "svm":
            from nftk.surrogate.support_vectors import support_vectors

            def errors(penalty: float) -> float:
                nonlocal stopped
                machine = support_vectors(
                    inner,
                    places[kept],
                    target.shape[1],
                    penalty,
                    tolerance=1e-4,
                    seed=self.seed,
                    max_iterations=self.max_iterations,
                )
                stopped = machine.stopped
                said = (outer @ machine.alpha + machine.intercept).argmax(1)
                return float((said != places[out]).double().mean())

            loss = errors
        else:
            from nftk.surrogate.multinomial import Multinomial

            problem = Multinomial("KernelSurrogate", inner, inner_target)
            near: Solution | None = None

            def cross_entropy(penalty: float) -> float:
                nonlocal near
                near = problem.solve(
                    penalty, tolerance=1e-4, max_iterations=self.max_iterations, start=near, polish=False
                )
                f = outer @ near.alpha + near.intercept
                return float((f.logsumexp(1) - (target[out] * f).sum(1)).mean())

            loss = cross_entropy
        tried = [mean * share for share in GRID] if penalties is None else penalties
        return choose("KernelSurrogate", tried, loss, given=penalties is not None, stopped=lambda: stopped)

    def _outputs(self, x: Any) -> Tensor:
        self._check_is_fitted()
        blocks = self._blocks(x, reset=False)
        return weighted(blocks, self.weights_) @ self.dual_coef_ + self.intercept_

    def _blocks(self, x: Any, *, reset: bool) -> Tensor:
        """Kernels by layer ``(L, n1, n2)`` on the CPU, in their own dtype."""
        op = "KernelSurrogate"
        kind: tuple[Any, ...] = ("kernel",), None, None
        if isinstance(x, LayerKernels):
            if x.reduction not in _SCALARS:
                raise ValueError(
                    f"nftk.{op}: X must be kernels with one number a pair ({', '.join(_SCALARS)}), got {x.reduction!r}"
                )
            kind, blocks = (x.names, x.reduction, x.normalization), x.blocks.detach()
        elif isinstance(x, Tensor | np.ndarray) and x.ndim == 3:
            blocks = x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x, dtype=np.float64))
            kind = tuple(f"layer {i + 1}" for i in range(len(blocks))), None, None
        elif isinstance(x, str | bytes) or not any(hasattr(x, name) for name in ("__len__", "__array__", "shape")):
            kind_of = type(x).__name__
            raise TypeError(f"nftk.{op}: X must be LayerKernels or a kernel, a tensor or an array, got {kind_of}")
        else:
            blocks = self._rows(x, reset=reset)[None]
        blocks = blocks.cpu() if blocks.is_floating_point() else blocks.cpu().double()
        if 0 in blocks.shape:
            raise ValueError(f"nftk.{op}: X must hold a kernel of at least one example, got shape {list(blocks.shape)}")
        if not is_finite(blocks):
            raise ValueError(f"nftk.{op}: X must be finite, got NaN or infinity")
        n = blocks.shape[2]
        if reset:
            if blocks.shape[1] != n:
                raise ValueError(
                    f"nftk.{op}: the training kernel must be square, a kernel of the training examples with "
                    f"themselves, got shape {list(blocks.shape[1:])}"
                )
            self._kind, self.layer_names_, self.n_features_in_ = kind, kind[0], n
        elif kind != self._kind:
            raise ValueError(
                f"nftk.{op}: X must have the layers, reduction and normalization that fit was given, {self._kind}, got "
                f"{kind}"
            )
        elif n != len(self.dual_coef_):
            raise ValueError(
                f"nftk.{op}: the kernel must have {len(self.dual_coef_)} columns, one a training example, got {n}"
            )
        found: Tensor = blocks
        return found

    def _target(self, y: Any, n: int) -> Tensor:
        """Targets ``(n, C)`` in float64, whose rows sum to 1; sets ``classes_``."""
        op = "KernelSurrogate"
        if self.target == "labels":
            if y is not None:
                self._check_labels(as_array(op, y))
            target = self._targets(y, n, torch.device("cpu"))
        else:
            target = self._as_probabilities(as_array(op, y), n)
            self.classes_ = np.arange(target.shape[1])
        count = len(target.argmax(1).unique()) if self.estimator == "svm" else target.shape[1]
        if count < 2 or (self.estimator == "svm" and count < target.shape[1]):
            least = target.shape[1] if self.estimator == "svm" and target.shape[1] > 1 else 2
            raise ValueError(f"nftk.{op}: y must have examples of at least {least} classes, got {count} class")
        return target

    def _check_labels(self, values: Any) -> None:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            wrong = values[~np.isfinite(values)][0]
            raise ValueError(f"nftk.KernelSurrogate: y must be labels without NaN or infinity, got {wrong}")

    def _as_probabilities(self, values: Any, n: int) -> Tensor:
        op = "KernelSurrogate"
        given = as_numbers(op, values)
        if given.shape == (n,):
            given = np.stack((1 - given, given), 1)
        if given.ndim != 2 or len(given) != n or values.dtype.kind != "f":
            raise ValueError(
                f"nftk.{op}: y must be probabilities of shape [{n}, C], or [{n}] for two classes, got {values.dtype} "
                f"{list(values.shape)}"
            )
        sums = given.sum(1, keepdims=True)
        if given.min() < 0 or np.abs(sums - 1).max() > 1e-3:
            row = int(np.argmax(np.maximum(np.abs(sums[:, 0] - 1), -given.min(1))))
            raise ValueError(
                f"nftk.{op}: y must be probabilities, at least 0 with rows that sum to 1, got {given[row].tolist()} in "
                f"row {row}"
            )
        return torch.from_numpy(given / sums)

    def _weights_of(self, layers: int) -> Tensor:
        op = "KernelSurrogate"
        if self.weights is None:
            return torch.ones(layers, dtype=torch.float64)
        try:
            found = torch.as_tensor(self.weights).detach().to("cpu", torch.float64, copy=True)
        except (TypeError, ValueError, RuntimeError):
            kind = type(self.weights).__name__
            raise TypeError(f"nftk.{op}: weights must be None, 'learned' or numbers [L], got {kind}") from None
        if found.shape != (layers,):
            raise ValueError(f"nftk.{op}: weights must have shape [{layers}], one a layer, got {list(found.shape)}")
        if not bool(torch.isfinite(found).all()) or float(found.min()) < 0:
            raise ValueError(f"nftk.{op}: weights must be finite and at least 0, got {found.tolist()}")
        return found

    def _check_settings(self) -> list[float] | None:
        """Refuse what cannot be; returns the penalties to choose from."""
        op = "KernelSurrogate"
        check_choice(op, "estimator", self.estimator, _ESTIMATORS)
        check_choice(op, "target", self.target, _TARGETS)
        if isinstance(self.weights, str):
            check_choice(op, "weights", self.weights, ("learned",))
        check_integer(op, "seed", self.seed, 0)
        check_integer(op, "max_iterations", self.max_iterations, 1)
        check_number(op, "tolerance", self.tolerance, above=True)
        if check_number(op, "validation", self.validation, above=True) >= 1:
            raise ValueError(f"nftk.{op}: validation must be below 1, got {self.validation}")
        if self.penalty is not None:
            check_number(op, "penalty", self.penalty, above=True)
            if self.penalties is not None:
                raise ValueError(f"nftk.{op}: penalties must go with penalty=None, got penalty {self.penalty}")
        if self.penalties is None:
            return None
        return check_numbers(op, "penalties", self.penalties, above=True)


def _is_torch(x: Any) -> bool:
    return isinstance(x, Tensor | LayerKernels)


def _like(x: Any, found: Tensor) -> Any:
    """A result in the kind that the kernel had, and where it was."""
    if isinstance(x, LayerKernels):
        return found.to(x.blocks.device)
    return found.to(x.device) if isinstance(x, Tensor) else found.numpy()
