"""attribute: what each training example, by each layer, adds to a surrogate's outputs."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from nftk._checks import check_choice, check_integer
from nftk.attribution.ranking import Ranked, bottom_k, top_k
from nftk.regression.gram import weighted
from nftk.surrogate import KernelSurrogate

_OP = "attribution.attribute"
# share of the sum of all sizes by which scores may miss the outputs; float64 sums of a million terms stay below
TOLERANCE = 1e-10


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    r"""Scores of training examples for test examples, made when they are asked for.

    .. math:: A_l(x, x_i)_c = \alpha_{ic} \, w_l \, K_l(x, x_i), \qquad
        \sum_{l, i} A_l(x, x_i)_c + b_c = f_c(x)

    Attributes:
        kernels: K_l(x, x_i), ``(L, n_test, n_train)``.
        weights: w, ``(L,)``.
        dual_coef: alpha, ``(n_train, C)``.
        intercept: b, ``(C,)``; zeros where it is spread over the scores.
        outputs: f, ``(n_test, C)``.
        share: What each score has of the intercept, ``(C,)``: b_c / n_train where it is spread, else zeros.
        names: Of the layers.
        error: The largest distance between f and the sum of its scores.
    """

    kernels: Tensor
    weights: Tensor
    dual_coef: Tensor
    intercept: Tensor
    outputs: Tensor
    share: Tensor
    names: tuple[str, ...]
    error: float = 0.0

    def scores(self, class_: int | Tensor | None = None) -> Tensor:
        """What each training example adds to f, all layers together.

        Args:
            class_: A class, 0 to C - 1; or one for each test example, ``(n_test,)``. None: all of them.

        Returns:
            ``(n_test, n_train)``; for all classes ``(n_test, n_train, C)``. float64.

        Raises:
            ValueError: If there is no such class.
            TypeError: If class_ is no integer.
        """
        return self._times(weighted(self.kernels, self.weights), class_, 1)

    def by_layer(self, class_: int | Tensor | None = None) -> Tensor:
        """What each training example adds to f by each layer.

        Args:
            class_: As for :meth:`scores`.

        Returns:
            ``(L, n_test, n_train)``; for all classes ``(L, n_test, n_train, C)``. Summed over layers, :meth:`scores`.
        """
        layers = len(self.kernels)
        return torch.stack([self._times(w * k.double(), class_, layers) for k, w in self._layers()])

    def layer_totals(self, class_: int | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What speaks for and against by each layer: sums of the positive and of the negative scores.

        Args:
            class_: As for :meth:`scores`; None: each test example's predicted class.

        Returns:
            Two tensors ``(L, n_test)``, at least and at most 0.
        """
        chosen = self.predicted if class_ is None else class_
        found = [self._times(w * k.double(), chosen, len(self.kernels)) for k, w in self._layers()]
        return torch.stack([s.clamp(min=0).sum(1) for s in found]), torch.stack([s.clamp(max=0).sum(1) for s in found])

    def top_k(self, k: int, class_: int | Tensor | None = None) -> Ranked:
        """Training examples that speak most for a class.

        Args:
            k: How many.
            class_: As for :meth:`scores`; None: each test example's predicted class.

        Returns:
            Examples and scores, ``(n_test, k)``.
        """
        return top_k(self.scores(self.predicted if class_ is None else class_), k)

    def bottom_k(self, k: int, class_: int | Tensor | None = None) -> Ranked:
        """Training examples that speak most against a class.

        Args:
            k: How many.
            class_: As for :meth:`top_k`.

        Returns:
            Examples and scores, ``(n_test, k)``, the most negative first.
        """
        return bottom_k(self.scores(self.predicted if class_ is None else class_), k)

    @property
    def predicted(self) -> Tensor:
        """The class that the surrogate gives each test example, ``(n_test,)``."""
        return self.outputs.argmax(1)

    def __repr__(self) -> str:
        layers, n_test, n_train = self.kernels.shape
        return (
            f"Attribution({n_test} test and {n_train} training examples, {self.dual_coef.shape[1]} classes, {layers} "
            f"{'layer' if layers == 1 else 'layers'}; sums meet the outputs to {self.error:.1e})"
        )

    def _layers(self) -> Iterator[tuple[Tensor, float]]:
        yield from zip(self.kernels, self.weights.tolist(), strict=True)

    def _times(self, k: Tensor, class_: int | Tensor | None, parts: int) -> Tensor:
        """A kernel times coefficients, with what it has of the intercept: one of so many parts."""
        op = "attribution.Attribution"
        n_test, classes = len(k), self.dual_coef.shape[1]
        if class_ is None:
            return k[:, :, None] * self.dual_coef + self.share / parts
        if isinstance(class_, Tensor) and class_.ndim:
            if class_.is_floating_point() or class_.shape != (n_test,):
                raise ValueError(
                    f"nftk.{op}: class_ must be an integer, or integers of shape [{n_test}], got {class_.dtype} "
                    f"{list(class_.shape)}"
                )
            chosen = class_.to(k.device, torch.int64)
        else:
            number = check_integer(op, "class_", class_.item() if isinstance(class_, Tensor) else class_, 0)
            chosen = torch.full((n_test,), number, dtype=torch.int64, device=k.device)
        if n_test and (int(chosen.min()) < 0 or int(chosen.max()) >= classes):
            wrong = int(chosen.min()) if int(chosen.min()) < 0 else int(chosen.max())
            raise ValueError(f"nftk.{op}: class_ must be from 0 to {classes - 1}, got {wrong}")
        return k * self.dual_coef.T[chosen] + self.share[chosen, None] / parts


def attribute(
    surrogate: KernelSurrogate, k_test: Any, *, intercept: Literal["apart", "spread"] = "apart"
) -> Attribution:
    r"""Take a surrogate's outputs apart, by training example and layer.

    .. math:: f_c(x) = b_c + \sum_i \sum_l \alpha_{ic} \, w_l \, K_l(x, x_i)

    Whether the scores add up to the outputs is checked here, for every test example and class.

    Args:
        surrogate: A fitted :class:`nftk.surrogate.KernelSurrogate`.
        k_test: The kernel of test with training examples, in the form that it was fitted with.
        intercept: ``"apart"``: scores and the intercept sum to f. ``"spread"``: each score has b_c / n_train of it,
            each layer's an L-th of that, and scores sum to f, as in the trNTK paper. :meth:`Attribution.top_k`,
            :meth:`Attribution.bottom_k` and :func:`explain` find the same either way; signs and sizes of scores differ,
            and with them :meth:`Attribution.layer_totals` and :func:`find_poisoned`.

    Returns:
        The scores, computed when they are asked for; what is held is the kernel itself.

    Raises:
        TypeError: If surrogate is none.
        ValueError: If the kernel does not fit it.
        RuntimeError: If scores do not add up to the outputs.

    Memory:
        Beside the kernels three matrices ``(n_test, n_train)`` in float64 while it checks.

    References:
        Engel et al., Faithful and Efficient Explanations for Neural Networks via Neural Tangent Kernel Surrogate
        Models, ICLR 2024, arXiv 2305.14585, section 3: A(x, x_i)_c = W_{c,i} k(x, x_i) + b_c / N.

    Example:
        >>> import torch, nftk
        >>> x, y = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
        >>> surrogate = nftk.surrogate.KernelSurrogate(penalty=0.1).fit(x @ x.T, y)
        >>> attribution = nftk.attribution.attribute(surrogate, torch.tensor([[1.5]]) @ x.T)
        >>> attribution.by_layer(class_=1).shape  # layers, test examples, training examples
        torch.Size([1, 1, 4])
        >>> bool((attribution.scores(1).sum(1) + attribution.intercept[1] - attribution.outputs[:, 1]).abs() < 1e-12)
        True
    """
    if not isinstance(surrogate, KernelSurrogate):
        raise TypeError(f"nftk.{_OP}: surrogate must be a KernelSurrogate, got {type(surrogate).__name__}")
    check_choice(_OP, "intercept", intercept, ("apart", "spread"))
    outputs = torch.as_tensor(surrogate.outputs(k_test)).cpu()
    blocks, b = surrogate._blocks(k_test, reset=False), surrogate.intercept_
    spread = intercept == "spread"
    n = len(surrogate.dual_coef_)
    made = Attribution(
        blocks,
        surrogate.weights_,
        surrogate.dual_coef_,
        torch.zeros_like(b) if spread else b,
        outputs,
        b / n if spread else torch.zeros_like(b),
        surrogate.layer_names_,
    )
    return dataclasses.replace(made, error=_check_sums(made))


def _check_sums(made: Attribution) -> float:
    """The largest distance of outputs from summed scores; an error beyond rounding."""
    total, size = made.intercept.expand_as(made.outputs).clone(), made.intercept.abs().expand_as(made.outputs).clone()
    for k, w in made._layers():
        for c in range(total.shape[1]):
            scores = made._times(w * k.double(), c, len(made.kernels))
            total[:, c] += scores.sum(1)
            size[:, c] += scores.abs_().sum(1)
    gap = (total - made.outputs).abs()
    if not bool((gap <= TOLERANCE * size.clamp(min=torch.finfo(torch.float64).tiny)).all()):
        worst = int((gap / size.clamp(min=1e-300)).nan_to_num(float("inf")).amax(1).argmax())
        raise RuntimeError(
            f"nftk.{_OP}: scores must add up to the surrogate's outputs, got {total[worst].tolist()} for "
            f"{made.outputs[worst].tolist()} in test example {worst}"
        )
    return float(gap.max())
