"""Whether an importance can be believed: does it agree with ablation, and with itself from seed to seed."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from nftk._checks import check_choice
from nftk._optional import require
from nftk.interpret.logit_parts import check_labels, check_network, logit_parts


class DeletionCurve(NamedTuple):
    """Accuracy as entries of Omega are removed.

    Attributes:
        shares: Share of the open entries that is gone, from 0 to 1.
        accuracy: Accuracy then, in 0..1.
        area: Mean height of the curve: a good importance keeps it high for long.
    """

    shares: Tensor
    accuracy: Tensor
    area: float


def deletion_curve(model: Any, x: Tensor, y: Tensor, importance: Tensor) -> DeletionCurve:
    """Accuracy while entries of Omega are set to 0 one after the other, the least important first.

    Args:
        model: An :class:`nftk.NFTKMLP`; left as it was.
        x: Data, shape ``(n, m)``.
        y: Labels, int64 ``(n,)``.
        importance: Shape ``(d, L)``, as :func:`nftk.importance` returns it. Entries that are closed already are not
            counted; of equal ones the class with the lower number goes first, and in it the layer nearer the input.

    Returns:
        The curve, with a point more than there are open entries; float64.

    Raises:
        TypeError: If ``model`` is no NFT-K network, or data or importance are not tensors of the right dtype.
        ValueError: If shapes do not fit, labels are out of range, an entry is a NaN, or a logit is not finite.

    References:
        Samek et al., Evaluating the visualization of what a deep neural network has learned, IEEE TNNLS 28(11), 2017.

    Example:
        >>> import torch, nftk
        >>> from nftk.interpret import deletion_curve
        >>> model, x = nftk.NFTKMLP(4, [8] * 3, 2), torch.randn(50, 4)
        >>> curve = deletion_curve(model, x, model(x).argmax(1), nftk.importance(model, x, kind="contribution"))
        >>> len(curve.shares), float(curve.accuracy[0])
        (7, 1.0)
    """
    op = "interpret.deletion_curve"
    check_network(op, model, x)
    y = check_labels(op, y, len(x), model.out_features)
    _check_importance(op, importance, tuple(model.omega.shape))
    importance = importance.detach().to(x.device)
    ranked = importance.flatten().sort(stable=True).indices
    order = ranked[model.omega.detach().flatten()[ranked] != 0]
    right = torch.zeros(len(order) + 1, dtype=torch.float64, device=x.device)
    depth = model.omega.shape[1]
    bias = model.omega.new_zeros(len(model.omega)) if model.output_bias is None else model.output_bias.detach()
    for f, parts, labels in logit_parts(op, model, x, y):
        right[0] += (f.argmax(1) == labels).sum()
        for step, entry in enumerate(order.tolist(), 1):
            i, layer = divmod(entry, depth)
            parts[:, layer, i] = 0
            # anew and not by a difference, whose rounding is all that is left of an empty logit
            f[:, i] = parts[:, :, i].sum(1) + bias[i]
            right[step] += (f.argmax(1) == labels).sum()
    accuracy = right / len(x)
    shares = torch.linspace(0, 1, len(right), dtype=torch.float64)
    area = float(torch.trapezoid(accuracy.cpu(), shares)) if len(order) else float(accuracy[0])
    return DeletionCurve(shares, accuracy, area)


def rank_correlation(a: Tensor, b: Tensor, method: Literal["spearman", "kendall"] = "spearman") -> float:
    """How far two importances put the entries in the same order.

    Args:
        a: Real numbers of any shape.
        b: As many.
        method: ``"spearman"``, or ``"kendall"`` (tau-b).

    Returns:
        From -1 to 1; NaN where either is constant.

    Raises:
        TypeError: If either is no floating tensor.
        ValueError: If the shapes differ, or an entry is a NaN.
        ImportError: If scipy is missing.

    Example:
        >>> import torch
        >>> from nftk.interpret import rank_correlation
        >>> rank_correlation(torch.tensor([0.1, 0.5, 2.0]), torch.tensor([1.0, 3.0, 2.0]))
        0.5
    """
    op = "interpret.rank_correlation"
    check_choice(op, "method", method, ("spearman", "kendall"))
    _check_importance(op, a, None)
    _check_importance(op, b, tuple(a.shape))
    require("scipy", purpose="rank_correlation", extra="app")
    from scipy import stats

    pair = [values.detach().cpu().double().flatten().numpy() for values in (a, b)]
    if any(len(values) == 0 or (values == values[0]).all() for values in pair):
        return float("nan")
    found = stats.spearmanr(*pair) if method == "spearman" else stats.kendalltau(*pair)
    # a rank correlation of 1 may come as 0.9999999999999999
    return round(float(found.statistic), 14)


def stability(importances: Sequence[Tensor], method: Literal["spearman", "kendall"] = "spearman") -> float:
    """Mean rank correlation of all pairs: of networks that differ in nothing but their seed, what is left of an order.

    Args:
        importances: One a network, all of one shape; at least two.
        method: As in :func:`rank_correlation`.

    Returns:
        From -1 to 1; NaN where one of them is constant.

    Raises:
        TypeError: If importances are no list, or one of them is no floating tensor.
        ValueError: If there are fewer than two, shapes differ, or an entry is a NaN.
        ImportError: If scipy is missing.
    """
    if not hasattr(importances, "__len__"):
        got = type(importances).__name__
        raise TypeError(f"nftk.interpret.stability: importances must be a list of tensors, got {got}")
    if len(importances) < 2:
        raise ValueError(f"nftk.interpret.stability: importances must be at least two, got {len(importances)}")
    pairs = [rank_correlation(a, b, method) for a, b in itertools.combinations(importances, 2)]
    return sum(pairs) / len(pairs)


def _check_importance(op: str, importance: Any, shape: tuple[int, ...] | None) -> None:
    if not isinstance(importance, Tensor) or not importance.is_floating_point():
        got = f"dtype {importance.dtype}" if isinstance(importance, Tensor) else type(importance).__name__
        raise TypeError(f"nftk.{op}: importance must be a floating tensor, got {got}")
    if shape is not None and tuple(importance.shape) != shape:
        raise ValueError(f"nftk.{op}: importance must have shape {list(shape)}, got {list(importance.shape)}")
    if importance.isnan().any():
        raise ValueError(f"nftk.{op}: importance must be ordered, got a NaN")
