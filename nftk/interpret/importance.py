"""importance: how much each layer says about each class, in three ways of which two do not see scales."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nftk._checks import check_choice, check_flag
from nftk.interpret.ablation import lost, lost_after_refit
from nftk.interpret.logit_parts import check_labels, check_network, logit_parts

_OP = "importance"
Kind = Literal["omega", "contribution", "ablation"]
Measure = Literal["accuracy", "loss"]


def importance(
    model: Any,
    x: Tensor,
    y: Tensor | None = None,
    kind: Kind = "omega",
    *,
    measure: Measure = "accuracy",
    loss: Literal["cross_entropy", "mse"] = "cross_entropy",
    refit: bool = False,
) -> Tensor:
    r"""Importance of every layer for every class.

    ``"omega"`` is the paper's: the weights themselves. They are not identifiable (docs/errata.md, 6), since
    :math:`(c\,\omega_l, V_l / c)` is the same function. ``"contribution"`` and ``"ablation"`` do not change with
    such scales. They too are of this network, and not of its function alone: layers that say the same may share it
    in many ways.

    ``"contribution"`` is the share of a logit's variance that a layer brings,

    .. math:: \operatorname{Cov}(\omega_{l,i} f_{l,i}, f_i) / \operatorname{Var}(f_i)

    over the data, for logits less their mean over the classes (which softmax does not see; a single output is taken
    as it is). The layers' shares of a class add up to 1; one that speaks against the others is negative. With two
    classes both rows are the same, since logits less their mean are u and -u. A class whose row of Omega is 0 may have
    shares that are not: less the mean, its logit is made by what the layers say about the others.

    ``"ablation"`` is what is lost over all the data when one entry of Omega is set to 0, the others as they are or,
    with ``refit``, all fitted anew to the data (Omega >= 0, closed entries stay closed, every f_l as it is) before and
    after.

    Args:
        model: An :class:`nftk.NFTKMLP`; taken in eval mode, and left as it was.
        x: Data, shape ``(n, m)``, in the model's dtype and on its device.
        y: Labels, int64 ``(n,)``; "ablation" needs them.
        kind: ``"omega"``, ``"contribution"`` or ``"ablation"``.
        measure: Of "ablation": ``"accuracy"``, in 0..1, or ``"loss"``.
        loss: Which loss; of the refit too.
        refit: Of "ablation": whether the other entries may make up for the one that is gone. Losses are then at
            least 0, but for rounding (1e-14), since no fit with an entry less is better than the one with all.

    Returns:
        Shape ``(d, L)``, in float64 ("omega" in its own dtype), detached: larger is more important.

    Raises:
        TypeError: If ``model`` is no NFT-K network, ``x`` or ``y`` is no tensor of the right dtype, or ``refit`` is no
            bool.
        ValueError: If shapes do not fit, labels are missing or out of range, an input is not finite, or a logit is the
            same for all of ``x``, so that there is no variance to share ("contribution"); if Omega or a logit is not
            finite; if ``refit`` is asked for with another kind than "ablation".
        ImportError: If ``refit`` is asked for and scipy is missing.

    References:
        Alemohammad et al., NFT-K, ICASSP 2022, arXiv 2110.04945, section 4 ("omega").
        Covariance shares as in Shorrocks, Inequality decomposition by factor components, Econometrica 50(1), 1982.

    Example:
        >>> import torch, nftk
        >>> torch.manual_seed(0)
        <torch...Generator object at ...>
        >>> model, x = nftk.NFTKMLP(4, [16] * 3, 2), torch.randn(200, 4)
        >>> shares = nftk.importance(model, x, kind="contribution")
        >>> shares.shape, torch.allclose(shares.sum(1), torch.ones(2).double())
        (torch.Size([2, 3]), True)
    """
    check_choice(_OP, "kind", kind, get_args(Kind))
    check_choice(_OP, "measure", measure, get_args(Measure))
    check_choice(_OP, "loss", loss, ("cross_entropy", "mse"))
    check_flag(_OP, "refit", refit)
    if refit and kind != "ablation":
        raise ValueError(f"nftk.{_OP}: refit must go with kind='ablation', got kind={kind!r}")
    check_network(_OP, model, x)
    if y is not None or kind == "ablation":
        y = check_labels(_OP, y, len(x), model.out_features)
    if kind == "omega":
        return torch.as_tensor(model.omega.detach().clone())
    if kind == "contribution":
        return _contribution(model, x)
    assert y is not None
    return (lost_after_refit if refit else lost)(model, x, y, measure, loss)


def _contribution(model: Any, x: Tensor) -> Tensor:
    """Covariances over the data, merged batch by batch (Chan, Golub and LeVeque, 1983)."""
    count, largest = 0, 0.0
    mean, mean_f, together, variance = (torch.zeros((), dtype=torch.float64, device=x.device) for _ in range(4))
    for f, parts, _ in logit_parts(_OP, model, x):
        largest = max(largest, float(f.abs().max()))
        if f.shape[1] > 1:
            f, parts = f - f.mean(1, keepdim=True), parts - parts.mean(2, keepdim=True)
        new, new_f = parts.mean(0) - mean, f.mean(0) - mean_f  # [L, d], [d]: how far the batch's means are off
        share = len(f) / (count + len(f))
        parts, f = parts - parts.mean(0), f - f.mean(0)
        together = together + (parts * f[:, None]).sum(0) + share * count * new * new_f
        variance = variance + f.square().sum(0) + share * count * new_f.square()
        mean, mean_f, count = mean + share * new, mean_f + share * new_f, count + len(f)
    rounding = 4 * torch.finfo(x.dtype).eps * largest
    constant = (variance <= count * rounding**2).nonzero()
    if len(constant):
        raise ValueError(
            f"nftk.{_OP}: x must make every logit vary for kind='contribution', got one value for class "
            f"{int(constant[0])} in {len(x)} rows"
        )
    return (together / variance).T.contiguous()
