"""From what an estimator is given (matrices, LayerKernels, raw inputs and a kernel's name) to predictions."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nftk._checks import check_choice, check_integer, check_tensor
from nftk.regression.estimator import Estimator
from nftk.regression.gram import Gram, check_training, from_layers, from_tensor, lazy
from nftk.tangent.infinite_ntk import infinite_ntk
from nftk.tangent.layer_kernels import LayerKernels

Kernel = LayerKernels | Tensor
KernelChoice = Literal["precomputed", "infinite"] | Callable[..., Any]
# of the infinite kernel where none is given
DEPTH = 3
# bytes of a kernel between new and training examples at a time
TEST_BYTES = 256 << 20


class KernelEstimator(Estimator):
    """Ridge regression on a kernel: all but how Omega and the ridge are found."""

    kernel: KernelChoice
    kernel_params: dict[str, Any] | None
    omega_: Tensor | None
    dual_coef_: Tensor
    _shifted: bool
    # the kernel as fit was given it: what is set afterwards is for the next fit
    _kernel: KernelChoice
    _kernel_params: dict[str, Any]
    # reduction and normalization of the layer kernels that fit was given
    _kind: tuple[str, str | None] | None
    _x: Tensor

    @property
    def _op(self) -> str:
        return type(self).__name__

    def predict(self, X: Any, *, offset: Any = None) -> Any:
        """Predict labels or targets.

        Args:
            X: As in fit: inputs ``(n_test, m)``; or, precomputed, the kernel of test with training examples.
            offset: f_0 of the test examples, ``(n_test, d)``, where fit was given one.

        Returns:
            Labels ``(n_test,)``, or targets in the form that y had; a tensor for tensors and LayerKernels, else an
            array.

        Raises:
            ValueError: If shapes do not fit, there is no test example, or offset is not given as it was in fit.
        """
        f = self._outputs(X, offset)
        return self._said(f, isinstance(X, Tensor | LayerKernels))

    def outputs(self, X: Any, *, offset: Any = None) -> Any:
        """Return the regression's values, for labels one an output (targets were one-hot).

        Args:
            X: As for :meth:`predict`.
            offset: As there.

        Returns:
            ``(n_test, d)``, float64.
        """
        f = self._outputs(X, offset)
        return f if isinstance(X, Tensor | LayerKernels) else f.cpu().numpy()

    @property
    def decision_function(self) -> Callable[..., Any]:
        """What labels are decided by: :meth:`outputs`; of two classes the second less the first, ``(n_test,)``."""
        fitted = self.__sklearn_is_fitted__()
        if self.classes_ is None if fitted else self.task == "regression":
            raise AttributeError(f"nftk.{self._op}: decision_function is there for labels only")
        return self._decision_function

    def _decision_function(self, X: Any, *, offset: Any = None) -> Any:
        f = self.outputs(X, offset=offset)
        return f[:, 1] - f[:, 0] if f.shape[1] == 2 else f

    def score(self, X: Any, y: Any, sample_weight: Any = None, *, offset: Any = None) -> float:
        """Accuracy for labels, else the coefficient of determination R^2, averaged over outputs.

        Args:
            X: As for :meth:`predict`.
            y: Labels or targets, in the form that y had in fit.
            sample_weight: How much each example counts, ``(n_test,)``, at least 0; None for all alike.
            offset: As for :meth:`predict`.

        Returns:
            The score; 1 is best.
        """
        return self._score(self._outputs(X, offset), y, sample_weight)

    def _outputs(self, x: Any, offset: Any) -> Tensor:
        self._check_is_fitted()
        alpha = self.dual_coef_
        if self._kernel == "precomputed":
            gram = self._gram(self._given(x, reset=False))
            self._check_columns(gram, len(alpha))
            f = gram.apply(alpha)
        else:
            rows = self._rows(x, reset=False).to(self._x)
            # a layer's kernel of one test example with all of training
            each = 8 * len(alpha) * max(1, self._depth())
            step = max(1, TEST_BYTES // each)
            tiles = [self._gram(self._compute(part, self._x)).apply(alpha) for part in rows.split(step)]
            f = torch.cat(tiles)
        f_0 = self._offset(offset, f)
        if (f_0 is None) is self._shifted:
            rule = "be given, as it was in fit" if self._shifted else "be None, as it was in fit"
            raise ValueError(f"nftk.{self._op}: offset must {rule}, got {'None' if f_0 is None else 'one'}")
        return f if f_0 is None else f + f_0

    def _check_columns(self, gram: Gram, n: int) -> None:
        if gram.shape[1] != n:
            raise ValueError(
                f"nftk.{self._op}: the kernel must have {n} columns, one a training example, got {gram.shape[1]}"
            )
        d = self.dual_coef_.shape[1]
        if gram.outputs not in (None, d):
            raise ValueError(f"nftk.{self._op}: the kernel must have {d} outputs, as the targets, got {gram.outputs}")

    def _keep_kernel(self) -> None:
        if not callable(self.kernel):
            check_choice(self._op, "kernel", self.kernel, ("precomputed", "infinite"))
        given = {} if self.kernel_params is None else self.kernel_params
        if not isinstance(given, dict):
            raise TypeError(f"nftk.{self._op}: kernel_params must be a dictionary, got {type(given).__name__}")
        refused = {"weights", "out", "differentiable"} & set(given)
        if self.kernel == "infinite" and refused:
            raise ValueError(
                f"nftk.{self._op}: kernel_params must leave {', '.join(sorted(refused))} to the estimator (weights "
                "come from Omega)"
            )
        self._kernel, self._kernel_params = self.kernel, _copied(given)

    def _train(self, x: Any) -> Kernel | None:
        """The training kernel; None where only its rows can be had, one tile at a time, see :meth:`_lazy`."""
        if self._kernel == "precomputed":
            self._x = torch.empty(0)
            return self._given(x, reset=True)
        self._x = self._rows(x, reset=True).clone()
        if self._in_tiles(len(self._x)):
            return None
        return self._compute(self._x, None)

    def _in_tiles(self, n: int) -> bool:
        return False

    def _lazy(self) -> Gram:
        """The training kernel as rows that are computed when they are needed."""
        x = self._x
        return lazy(lambda rows: self._gram(self._compute(x[rows], x)), len(x), torch.finfo(x.dtype).eps, x.device)

    def _depth(self) -> int:
        """How many layers' kernels one computation holds."""
        if self._kernel != "infinite":
            return 1
        return check_integer(self._op, "depth in kernel_params", self._kernel_params.get("depth", DEPTH), 1)

    def _given(self, x: Any, *, reset: bool) -> Kernel:
        """A precomputed kernel."""
        if isinstance(x, LayerKernels):
            self._check_examples(x.shape, x.shape)
            kind = x.reduction, x.normalization
            if reset:
                self._kind = kind
            elif self._kind not in (None, kind):
                raise ValueError(
                    f"nftk.{self._op}: the kernels' reduction and normalization must be {self._kind}, as in fit, got "
                    f"{kind}"
                )
            return x
        if reset:
            self._kind = None
        if not isinstance(x, Tensor) and np.ndim(x) in (3, 4):
            x = torch.from_numpy(np.array(x, dtype=np.float64))
        if isinstance(x, Tensor) and x.ndim != 2:
            self._check_examples(x.shape[1:] if x.ndim == 3 else x.shape[:2], x.shape)
            return x
        # a matrix is what scikit-learn knows
        return self._rows(x, reset=reset)

    def _check_examples(self, sizes: Sequence[int], shape: Sequence[int]) -> None:
        """Raise for no examples, as scikit-learn does for a matrix."""
        if 0 in sizes:
            raise ValueError(f"nftk.{self._op}: X must hold a kernel of at least one example, got shape {list(shape)}")

    def _compute(self, x1: Tensor, x2: Tensor | None) -> Kernel:
        """The kernel of raw inputs; x2 None: of x1 with itself."""
        settings = dict(self._kernel_params)
        if self._kernel == "infinite":
            return self._infinite(x1, x2, {"depth": DEPTH, **settings})
        assert callable(self._kernel)
        found = self._kernel(x1, x1 if x2 is None else x2, **settings)
        if isinstance(found, LayerKernels):
            return found
        if not isinstance(found, Tensor):
            values = np.asarray(found)
            numbers = values.dtype.kind in "biuf"
            found = torch.from_numpy(values.astype(np.float64)) if numbers else found
        check_tensor(self._op, "what kernel returns", found)
        k: Tensor = found
        n1, n2 = len(x1), len(x1 if x2 is None else x2)
        at = 1 if k.ndim == 3 else 0
        if k.ndim not in (2, 3, 4) or tuple(k.shape[at : at + 2]) != (n1, n2):
            raise ValueError(
                f"nftk.{self._op}: what kernel returns must have shape [{n1}, {n2}], [d, {n1}, {n2}] or "
                f"[{n1}, {n2}, d, d], got {list(k.shape)}"
            )
        return k

    def _infinite(self, x1: Tensor, x2: Tensor | None, settings: dict[str, Any]) -> Kernel:
        """The infinite-width kernels of every layer."""
        return infinite_ntk(x1, x2, **settings)

    def _gram(self, k: Kernel) -> Gram:
        """A kernel as the fitted Omega has it."""
        if isinstance(k, LayerKernels):
            omega = self.omega_
            if omega is None and len(k) > 1:
                raise ValueError(
                    f"nftk.{self._op}: omega must be given for the kernels of {len(k)} layers, shape [{len(k)}] or "
                    f"[d, {len(k)}], got None"
                )
            return from_layers(self._op, k, torch.ones(1) if omega is None else omega)
        if self.omega_ is not None and self._kernel != "infinite":
            shape = list(k.shape)
            raise ValueError(f"nftk.{self._op}: omega must be None where the kernel is a tensor, got one for {shape}")
        return from_tensor(self._op, "X" if self._kernel == "precomputed" else "what kernel returns", k)

    def _checked(self, gram: Gram, target: Tensor) -> None:
        """Raise unless a training kernel fits the targets."""
        check_training(self._op, gram)
        if gram.outputs not in (None, target.shape[1]):
            what = "classes" if self.classes_ is not None else "columns"
            raise ValueError(
                f"nftk.{self._op}: y must have {gram.outputs} {what}, one for each output of the kernel, got "
                f"{target.shape[1]}"
            )


def _copied(setting: Any) -> Any:
    """A setting that nobody else can change: containers and arrays anew, the rest as it is."""
    if isinstance(setting, dict):
        return {name: _copied(value) for name, value in setting.items()}
    if isinstance(setting, list | tuple):
        return type(setting)([_copied(value) for value in setting])
    if isinstance(setting, Tensor):
        return setting.detach().clone()
    return setting.copy() if isinstance(setting, np.ndarray) else setting


def as_omega(op: str, omega: Tensor | Sequence[float] | None) -> Tensor | None:
    """Omega as a float64 tensor ``(L,)`` or ``(d, L)``, checked."""
    if omega is None:
        return None
    try:
        found = torch.as_tensor(omega).detach().to(torch.float64, copy=True)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"nftk.{op}: omega must be numbers, shape [L] or [d, L], got {type(omega).__name__}") from None
    if found.ndim not in (1, 2) or not found.numel():
        raise ValueError(f"nftk.{op}: omega must have shape [L] or [d, L], got {list(found.shape)}")
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"nftk.{op}: omega must be finite, got NaN or infinity")
    return found
