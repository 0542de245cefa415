"""What both estimators share: scikit-learn's protocol, without scikit-learn as a base class or a dependency."""

import copy
import importlib
import inspect
import sys
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from nftk._checks import FLOATING, check_choice
from nftk.tangent.scale import magnitude
from nftk.tangent.targets import Values, are_labels, as_array, as_numbers, classes_of, one_hot

Own = TypeVar("Own", bound="Estimator")

TASKS = ("auto", "regression", "classification")


class Estimator:
    """Parameters are the constructor's arguments, stored as given; what ``fit`` learns ends in an underscore.

    scikit-learn asks for a protocol and not for its base class, so none is inherited: the class is the same whether
    scikit-learn is there or not, and importing nftk never imports it. Where it is installed, its own functions check
    arrays (in its own words) and it is told the tags it asks for (scikit-learn >= 1.6).
    """

    task: str
    classes_: Values | None
    n_features_in_: int

    @classmethod
    def _parameters(cls) -> dict[str, Any]:
        signature = inspect.signature(cls.__init__).parameters
        return {name: p.default for name, p in signature.items() if name != "self"}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name.

        Args:
            deep: Of scikit-learn's protocol; there is nothing nested.

        Returns:
            The constructor's arguments.
        """
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **parameters: Any) -> Any:
        """Set some parameters.

        Args:
            parameters: By name.

        Returns:
            The estimator itself.

        Raises:
            ValueError: If there is no such parameter.
        """
        known = self._parameters()
        for name, value in parameters.items():
            if name not in known:
                names = ", ".join(map(repr, known))
                raise ValueError(f"nftk.{type(self).__name__}: a parameter must be one of {names}, got {name!r}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        shown = [
            f"{name}={value!r}"
            for name, default in self._parameters().items()
            if (value := getattr(self, name)) is not default and repr(value) != repr(default)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __sklearn_is_fitted__(self) -> bool:
        """Tell scikit-learn whether fit has been called."""
        return hasattr(self, "dual_coef_")

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn what kind of estimator this is."""
        tags = importlib.import_module("sklearn.utils")
        kind = {"regression": "regressor", "classification": "classifier"}.get(self.task)
        return tags.Tags(
            estimator_type=kind,
            target_tags=tags.TargetTags(required=True, multi_output=kind != "classifier"),
            classifier_tags=tags.ClassifierTags() if kind == "classifier" else None,
            regressor_tags=tags.RegressorTags() if kind == "regressor" else None,
            input_tags=tags.InputTags(pairwise=getattr(self, "kernel", None) == "precomputed"),
        )

    def _refit(self: Own, x: Any, y: Any, offset: Any) -> Own:
        """Fit a copy and become it: a fit that fails leaves the one before it whole."""
        work = copy.copy(self)
        work.__dict__ = {name: value for name, value in vars(self).items() if not name.endswith("_")}
        work._fit(x, y, offset)
        self.__dict__ = work.__dict__
        return self

    def _fit(self, x: Any, y: Any, offset: Any) -> None:
        raise NotImplementedError

    def _check_is_fitted(self) -> None:
        if self.__sklearn_is_fitted__():
            return
        kind: type[Exception] = RuntimeError
        if sys.modules.get("sklearn") is not None:
            kind = importlib.import_module("sklearn.exceptions").NotFittedError
        name = type(self).__name__
        raise kind(f"nftk.{name}: an estimator must be fitted before it predicts, got one without; call fit first")

    def _rows(self, x: Any, *, reset: bool) -> Tensor:
        """Raw inputs as a floating tensor ``(n, m)``; what is no tensor is checked by scikit-learn where it is."""
        op = type(self).__name__
        validation = _sklearn("sklearn.utils.validation")
        if not isinstance(x, Tensor) and validation is not None:
            return torch.from_numpy(np.array(validation.validate_data(self, x, reset=reset, dtype=np.float64)))
        if not isinstance(x, Tensor):
            x = torch.from_numpy(np.array(x, dtype=np.float64))
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"nftk.{op}: X must have shape [n, m], both at least 1, got {list(x.shape)}")
        x = x.detach() if x.dtype in FLOATING else x.detach().double()
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"nftk.{op}: X must be finite, got NaN or infinity")
        found: Tensor = x
        if reset:
            self.n_features_in_ = found.shape[1]
        elif found.shape[1] != self.n_features_in_:
            raise ValueError(f"nftk.{op}: X must have {self.n_features_in_} features, as in fit, got {found.shape[1]}")
        return found

    def _targets(self, y: Any, n: int, device: torch.device) -> Tensor:
        """Targets ``(n, d)`` in float64; sets ``classes_`` and whether predictions are one number an example."""
        op = type(self).__name__
        check_choice(op, "task", self.task, TASKS)
        if y is None:
            raise ValueError(
                f"nftk.{op}: y must be labels or targets, got None: this estimator requires y to be passed, but the "
                "target y is None"
            )
        values = as_array(op, y)
        labels = self.task == "classification" or (self.task == "auto" and are_labels(values))
        if values.ndim not in (1, 2) or len(values) != n or (labels and values.shape[1:] not in ((), (1,))):
            shape = f"[{n}]" if labels else f"[{n}] or [{n}, d]"
            raise ValueError(f"nftk.{op}: y must have shape {shape}, an entry an example, got {list(values.shape)}")
        if labels:
            return self._labels(values, device)
        values = as_numbers(op, values)
        self.classes_ = None
        self._flat = values.ndim == 1
        return torch.from_numpy(values.reshape(n, -1).copy()).to(device)

    def _labels(self, values: Values, device: torch.device) -> Tensor:
        op = type(self).__name__
        self.classes_, places = classes_of(op, values)
        multiclass = _sklearn("sklearn.utils.multiclass")
        validation = _sklearn("sklearn.utils.validation")
        if multiclass is not None and validation is not None:
            # a column of labels is taken, with scikit-learn's own warning
            multiclass.check_classification_targets(validation.column_or_1d(values, warn=True))
        if values.dtype.kind == "f" and not bool((np.mod(values, 1) == 0).all()):
            raise ValueError(f"nftk.{op}: y must be labels for task='classification', got numbers with fractions")
        self._flat = True
        return one_hot(self.classes_, places).to(device)

    def _offset(self, offset: Any, like: Tensor) -> Tensor | None:
        """f_0 as a float64 tensor like the targets, or the outputs."""
        if offset is None:
            return None
        n, d = like.shape
        try:
            given = torch.as_tensor(offset).detach().to(like.device, torch.float64)
        except (TypeError, ValueError, RuntimeError):
            op, found = type(self).__name__, type(offset).__name__
            raise TypeError(f"nftk.{op}: offset must be numbers, shape [{n}, {d}], got {found}") from None
        if given.shape != like.shape and not (d == 1 and given.shape == (n,)):
            op = type(self).__name__
            raise ValueError(f"nftk.{op}: offset must have shape [{n}, {d}], as the targets, got {list(given.shape)}")
        if not bool(torch.isfinite(given).all()):
            raise ValueError(f"nftk.{type(self).__name__}: offset must be finite, got NaN or infinity")
        return given.reshape(n, d)

    def _said(self, f: Tensor, as_tensor: bool) -> Any:
        """Outputs ``(n, d)`` as predictions: labels, or numbers in the form of the targets."""
        if self.classes_ is not None:
            found = self.classes_[f.argmax(1).cpu().numpy()]
            return torch.from_numpy(found).to(f.device) if as_tensor and found.dtype.kind in "biu" else found
        f = f[:, 0] if self._flat else f
        return f if as_tensor else f.cpu().numpy()

    def _score(self, f: Tensor, y: Any, sample_weight: Any) -> float:
        """Accuracy, or the coefficient of determination averaged over outputs."""
        op, values = type(self).__name__, as_array(type(self).__name__, y)
        n, d = f.shape[0], 1 if self.classes_ is not None else f.shape[1]
        if values.shape != (n, d) and not (d == 1 and values.shape == (n,)):
            shape = [n] if d == 1 else [n, d]
            raise ValueError(f"nftk.{op}: y must have shape {shape}, as the predictions, got {list(values.shape)}")
        weights = self._weights(sample_weight, n)
        if self.classes_ is not None:
            hits = self.classes_[f.argmax(1).cpu().numpy()] == values.reshape(-1)
            return float(np.average(hits, weights=weights))
        target = torch.from_numpy(as_numbers(op, values).reshape(n, d)).to(f.device)
        scale, weight = magnitude(torch.cat((target, f))), torch.from_numpy(weights).to(f.device)[:, None]
        target, f = target / scale, f / scale
        lost = (weight * (target - f).square()).sum(0)
        spread = (weight * (target - (weight * target).sum(0) / weight.sum()).square()).sum(0)
        # of a constant target: 1 where it is met, else 0, as scikit-learn has it
        constant = torch.where(lost > 0, 0.0, 1.0).to(lost)
        share = torch.where(spread > 0, 1 - lost / torch.where(spread > 0, spread, 1.0), constant)
        return float(share.mean())

    def _weights(self, sample_weight: Any, n: int) -> Values:
        """Weights of examples, the largest 1."""
        if sample_weight is None:
            return np.ones(n)
        op = type(self).__name__
        try:
            found = torch.as_tensor(sample_weight).detach().to("cpu", torch.float64)
        except (TypeError, ValueError, RuntimeError):
            kind = type(sample_weight).__name__
            raise TypeError(f"nftk.{op}: sample_weight must be numbers, got {kind}") from None
        if found.shape != (n,):
            shape = list(found.shape)
            raise ValueError(f"nftk.{op}: sample_weight must have shape [{n}], an entry an example, got {shape}")
        for weight in found.tolist():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"nftk.{op}: sample_weight must be finite and at least 0, got {weight}")
        if not bool(found.any()):
            raise ValueError(f"nftk.{op}: sample_weight must have an entry above 0, got zeros")
        weights: Values = (found / found.max()).numpy()
        return weights


def _sklearn(module: str) -> Any:
    """A module of scikit-learn, or None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "sklearn":
            raise
        return None
