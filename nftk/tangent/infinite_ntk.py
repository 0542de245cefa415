"""infinite_ntk: the tangent kernels that a network has when its layers are infinitely wide, one a layer."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nftk._checks import (
    check_choice,
    check_integer,
    check_list,
    check_number,
    check_same,
    check_shape,
    check_tensor,
    is_finite,
)
from nftk._dispatch import resolve
from nftk.modules import NFTKMLP
from nftk.ops import activations
from nftk.ops import precision as precisions
from nftk.ops.cosine_gap import cosine_gap, directions, from_gram
from nftk.ops.duals import Dual
from nftk.ops.layer_recursion import SUPPORTED, RecursionLayer, fill, lacking, layer_recursion, rows_of
from nftk.tangent.given_output import given_output
from nftk.tangent.layer_kernels import LayerKernels

_OP = "infinite_ntk"
Phi = str | Callable[[Tensor], Tensor]
Numbers = float | Sequence[float]
# share of a kernel that a series may leave out unsaid
_TAIL = 1e-3
# beyond it a kernel of the inputs may be more than float32 holds, even where the next layer's is not
_LARGEST = 1e30


def infinite_ntk(
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    depth: int,
    activation: Phi | Sequence[Phi] = "relu",
    weight_var: Numbers = 2.0,
    bias_var: Numbers = 0.0,
    readout_var: Numbers = 1.0,
    parameterization: Literal["ntk", "standard"] = "ntk",
    widths: Sequence[int] | None = None,
    bias: bool | Sequence[bool] = True,
    weights: Tensor | Sequence[float] | None = None,
    get: Literal["ntk", "nngp"] = "ntk",
    order: int = 64,
    out: Any = None,
    backend: str = "auto",
    differentiable: bool = False,
) -> LayerKernels:
    r"""Neural tangent kernels of every readout of an infinitely wide network, in one recursion.

    .. math::
        \Sigma_l = s_l^2 \Lambda_{l-1} + b_l^2, \quad \Lambda_0 = x x'^T / m, \quad
        \Lambda_l = E[\phi(u) \phi(v)], \quad \dot\Lambda_l = E[\phi'(u) \phi'(v)], \quad (u, v) \sim N(0, \Sigma_l), \\
        T_l = \Sigma_l + s_l^2 \dot\Lambda_{l-1} T_{l-1}, \qquad
        \Theta_l = r_l^2 (\Lambda_l + \dot\Lambda_l T_l)

    What :func:`nftk.empirical_ntk` of an NFTKMLP comes to as its widths grow: Theta_l times the identity of size d. In
    the standard parameterisation, whose kernel grows with the widths, T_l takes n_{l-1} Lambda_{l-1} + 1 for Sigma_l,
    and Theta_l n_l Lambda_l for r_l^2 Lambda_l. :func:`nftk.tangent.arguments_for` gives the arguments of a network.

    Args:
        x1: First inputs, ``(n1, m)``, float32 or float64.
        x2: Second inputs, ``(n2, m)``. None: the first; half of the work, and the result is exactly symmetric.
        depth: L, hidden layers.
        activation: phi, or L of them, elementwise. In closed form: relu, leaky_relu, erf, identity, sin, gelu, and
            ``torch.nn.LeakyReLU(slope)`` with any slope. Others (tanh, silu, elu, callables on tensors): a Hermite
            series with ``order`` terms, whose coefficients are integrals in one dimension; see ``order``.
        weight_var: s_l^2: entries of W_l have variance s_l^2 / n_{l-1}. A number or one a layer; above 0.
        bias_var: b_l^2, likewise; 0 or above.
        readout_var: r_l^2: entries of V_l have variance r_l^2 / n_l. A number or one a layer; above 0.
        parameterization: ``"ntk"`` or ``"standard"``.
        widths: n_1 .. n_L, for "standard" alone.
        bias: Whether there are biases, one or one a layer: in "standard" they count even if they start at 0. Where
            there are none, bias_var is 0.
        weights: ``(L,)`` or ``(k, L)``: only the k weighted sums of the layers are formed, and no layer is stored. As
            they stand: give omega squared for the kernel of f.
        get: ``"ntk"``: Theta. ``"nngp"``: the covariances r_l^2 Lambda_l of the readouts.
        order: Terms of a series. Equal and opposite examples are exact whatever it is; elsewhere what it leaves out is
            at most the share of E[phi^2] and E[phi'^2] beyond it, of which a warning tells from 1e-3 on
            (:func:`nftk.tangent.series_error` tells it always). Corners and large inputs want more terms.
        out: Where to write: a tensor or numpy array of the shape and dtype of the result's ``blocks``, rows contiguous.
        backend: ``"auto"``, ``"cpp"``, ``"triton"`` or ``"torch"``; see :func:`nftk.ops.layer_recursion`.
        differentiable: Whether the result keeps its graph, in torch operations: gradients in x1 and x2. Not defined
            where an activation has a corner and two inputs have one direction, as on the diagonal.

    Returns:
        Kernels with reduction "scalar", in the inputs' dtype; L of them, or k with weights. float32 is within 1e-5 of
        the truth, relative to the roots of what the two examples have with themselves, near pairs included: their
        angles come from differences of the inputs, and what would lose them is computed in float64, see
        :func:`nftk.ops.layer_recursion`. So it is up to a hundred layers, unless near inputs come apart by so much that
        float64 loses them too: 3e-3 at a hundred layers of erf or sin and weight_var 3. ``"triton"`` works in float32
        alone: near pairs lose 4e-5 in 20 layers and 1e-2 in 50 of erf or sin at weight_var 2, 1e-5 and 3e-3 of gelu at
        weight_var 3; equal and opposite examples stay exact but with gelu.

    Raises:
        ValueError: If inputs do not fit or are not finite, settings do not go together, or an activation is not
            elementwise or not finite.
        TypeError: If an input is no float32 or float64 tensor, or an activation neither a name nor callable.
        NotImplementedError: If ``backend`` has no code for this.
        RuntimeError: If ``backend`` cannot run here.

    Memory:
        The result, and numbers of each example: 4 to 7 a layer, 2 (order + 2) with a series.

    References:
        Jacot et al., Neural tangent kernel, NeurIPS 2018, arXiv 1806.07572; Alemohammad et al., NFT-K, ICASSP 2022,
        arXiv 2110.04945, theorem 1; Cho and Saul, Kernel methods for deep learning, NeurIPS 2009; Williams, Computing
        with infinite networks, NeurIPS 1996; Tsuchida et al., Avoiding kernel fixed points, AAAI 2021,
        arXiv 2002.08517.

    Example:
        >>> import torch, nftk
        >>> k = nftk.infinite_ntk(torch.eye(2), depth=3)
        >>> k.blocks.diagonal(dim1=1, dim2=2)  # relu at variance 2 keeps |x|^2 / m: (l + 1) times it
        tensor([[1.0000, 1.0000],
                [1.5000, 1.5000],
                [2.0000, 2.0000]])
        >>> k.combine(torch.ones(3)).shape
        torch.Size([2, 2])
    """
    _check_inputs(x1, x2)
    layers = _layers(
        x1.shape[1], depth, activation, weight_var, bias_var, readout_var, parameterization, widths, bias, order
    )
    check_choice(_OP, "get", get, ("ntk", "nngp"))
    factors, names = _weights(weights, len(layers), x1)
    with torch.no_grad():
        plain1, plain2 = x1.detach(), None if x2 is None else x2.detach()
        first = directions(plain1)
        second = None if plain2 is None else directions(plain2)
        root = math.sqrt(max(x1.shape[1], 1))
        rows1, tail1 = _rows(first[1] / root, layers)
        rows2, tail2 = (rows1, tail1) if second is None else _rows(second[1] / root, layers)
    wide = x1.dtype is torch.float32 and _beyond_float32(rows1, rows2, layers)
    lacks = {name: lacking(name, x1, layers, backend) for name in ("triton", "cpp")}
    if wide:
        lacks["triton"] = lacks["triton"] or "inputs so large that float32 does not hold their squares"
    chosen = resolve(_OP, backend, SUPPORTED, str(x1.device), lacks)
    _warn(max(tail1, tail2), layers)
    if differentiable:
        if out is not None or (backend != "auto" and chosen != "torch"):
            raise ValueError(
                f"nftk.{_OP}: differentiable must go without out and with backend 'torch', got {backend!r}"
            )
        norms = [None if x is None else directions(x)[1] / root for x in (x1, x2)]
        assert norms[0] is not None
        gap = cosine_gap(x1, x2)
        gap = gap.double() if wide else gap
        blocks = layer_recursion(gap, norms[0], norms[1], layers=layers, weights=factors, get=get, backend="torch")
        return LayerKernels(blocks.to(x1.dtype), names, "scalar", symmetric=x2 is None)
    with torch.no_grad():
        shape = (len(names), len(x1), len(rows2.mT))
        blocks = x1.new_empty(shape) if out is None else _given(out, shape, x1)
        gap = _gaps(blocks, first[0], None if second is None else second[0])
        fill(blocks, gap, rows1, rows2, layers, factors, get == "ntk", x2 is None, chosen, wide)
    return LayerKernels(blocks, names, "scalar", symmetric=x2 is None)


def _gaps(blocks: Tensor, u1: Tensor, u2: Tensor | None) -> Tensor:
    """Gaps of directions, in the memory of the last kernel, so that nothing of this size is held beside the result."""
    gap, dtype, upper = blocks[-1], blocks.dtype, u2 is None
    other = u1 if u2 is None else u2
    with precisions.full_precision(gap):
        torch.mm(u1.to(dtype), other.to(dtype).mT, out=gap)
    return from_gram(gap, u1, other, upper=upper)


def _rows(norms: Tensor, layers: list[RecursionLayer]) -> tuple[Tensor, float]:
    """Numbers of every example, see nftk/ops/duals.py, and what a series leaves out of a kernel."""
    rows, tail = rows_of(norms, layers)
    if any(p.dual.kind == "series" for p in layers) and not is_finite(rows):
        raise ValueError(f"nftk.{_OP}: activation must be finite on all that comes to it, got NaN or infinity")
    return rows, tail


def _beyond_float32(rows1: Tensor, rows2: Tensor, layers: list[RecursionLayer]) -> bool:
    norms = torch.cat([rows1[0], rows2[0]])
    largest = float(norms.max()) if len(norms) else 0.0
    return largest**2 * max(max(p.weight_var, p.own_weight, 1.0) for p in layers) > _LARGEST


def _warn(tail: float, layers: list[RecursionLayer]) -> None:
    if tail > _TAIL:
        order = max(p.dual.order for p in layers)
        warnings.warn(
            f"nftk.{_OP}: a series of order {order} leaves out up to {tail:.1e} of a kernel; more terms leave less",
            stacklevel=3,
        )


def series_error(x: Tensor, **arguments: Any) -> float:
    """Bound on what the series of an activation without a closed form leaves out, for these inputs.

    Args:
        x: Inputs, ``(n, m)``.
        **arguments: Those of :func:`nftk.infinite_ntk`: depth, activation, variances, order.

    Returns:
        The largest share of E[phi^2] or E[phi'^2] beyond the series' terms, over inputs and layers; 0 in closed form.
        An error of E[phi phi] is at most that times the roots of what the two examples have with themselves.

    Example:
        >>> x = torch.eye(3)
        >>> series_error(x, depth=2, activation="tanh") < 1e-6, series_error(x, depth=2, activation="gelu")
        (True, 0.0)
    """
    _check_inputs(x, None)
    usual: dict[str, Any] = {
        "activation": "relu", "weight_var": 2.0, "bias_var": 0.0, "readout_var": 1.0, "parameterization": "ntk",
        "widths": None, "bias": True, "order": 64,
    }  # fmt: skip
    layers = _layers(x.shape[1], **(usual | arguments))
    return _rows(directions(x)[1] / math.sqrt(max(x.shape[1], 1)), layers)[1]


def arguments_for(model: NFTKMLP) -> dict[str, Any]:
    """Arguments of :func:`nftk.infinite_ntk` for what a network is at its start, as its widths grow.

    In the standard parameterisation W and V are drawn from Xavier's normal distribution, of variance
    2 / (fan_in + fan_out): weight_var is 2 n_{l-1} / (n_{l-1} + n_l), readout_var 2 n_l / (n_l + d).

    Args:
        model: The network; its present parameters do not count.

    Returns:
        Keywords: depth, activation, the variances, parameterization, widths, bias.

    Raises:
        TypeError: If ``model`` is no NFTKMLP.

    Example:
        >>> import nftk
        >>> arguments = arguments_for(nftk.NFTKMLP(4, [12, 12], 3, parameterization="ntk"))
        >>> arguments["depth"], arguments["weight_var"], arguments["parameterization"]
        (2, (2.0, 2.0), 'ntk')
    """
    if not isinstance(model, NFTKMLP):
        raise TypeError(f"nftk.tangent.arguments_for: model must be an nftk.NFTKMLP, got {type(model).__name__}")
    widths, d = model.hidden_features, model.out_features
    phis = [phi.name or phi.function for phi in model._plan.activations]
    found: dict[str, Any] = {"depth": len(widths), "activation": phis}
    biased = [layer.bias is not None for layer in model.hidden]
    if model.parameterization == "ntk":
        # a layer without a bias has none at any width
        variances = tuple(v if some else 0.0 for v, some in zip(model.bias_var, biased, strict=True))
        return found | {
            "weight_var": model.weight_var, "bias_var": variances, "readout_var": model.readout_var,
            "parameterization": "ntk",
        }  # fmt: skip
    fan_in = (model.in_features, *widths[:-1])
    return found | {
        "weight_var": tuple(2 * m / (m + n) for m, n in zip(fan_in, widths, strict=True)),
        "bias_var": 0.0,
        "readout_var": tuple(2 * n / (n + d) for n in widths),
        "parameterization": "standard",
        "widths": widths,
        "bias": tuple(biased),
    }


def _layers(
    in_features: int,
    depth: int,
    activation: Any,
    weight_var: Numbers,
    bias_var: Numbers,
    readout_var: Numbers,
    parameterization: str,
    widths: Any,
    bias: Any,
    order: int,
) -> list[RecursionLayer]:
    depth = check_integer(_OP, "depth", depth, 1)
    check_choice(_OP, "parameterization", parameterization, ("ntk", "standard"))
    if (widths is None) == (parameterization == "standard"):
        raise ValueError(
            f"nftk.{_OP}: widths must be given with parameterization='standard', and only there, got {widths} with "
            f"{parameterization!r}"
        )
    order = check_integer(_OP, "order", order, 2)
    listed = isinstance(activation, Sequence) and not isinstance(activation, str)
    phis = list(activation) if listed else [activation] * depth
    if len(phis) != depth:
        raise ValueError(f"nftk.{_OP}: activation must be one or {depth}, one a layer, got {len(phis)}")
    s = _per_layer("weight_var", weight_var, depth, above=True)
    b = _per_layer("bias_var", bias_var, depth)
    r = _per_layer("readout_var", readout_var, depth, above=True)
    own_weight, own_bias, own_readout = s, b, r
    biased = list(bias) if isinstance(bias, Sequence) and not isinstance(bias, str) else [bias] * depth
    if len(biased) != depth or not all(isinstance(some, bool) for some in biased):
        raise ValueError(f"nftk.{_OP}: bias must be True or False, or {depth} of them, one a layer, got {bias!r}")
    for some, variance in zip(biased, b, strict=True):
        if variance and not some:
            raise ValueError(f"nftk.{_OP}: bias_var must be 0 where bias is False, got {variance:g}")
    if widths is not None:
        check_list(_OP, "widths", widths)
        sizes = [check_integer(_OP, "every width in widths", n, 1) for n in widths]
        if len(sizes) != depth:
            raise ValueError(f"nftk.{_OP}: widths must have {depth} entries, one a layer, got {len(sizes)}")
        own_weight, own_readout = [float(n) for n in (in_features, *sizes[:-1])], [float(n) for n in sizes]
        own_bias = [1.0 if some else 0.0 for some in biased]
    parts = zip([_dual(phi, order) for phi in phis], s, b, own_weight, own_bias, r, own_readout, strict=True)
    return [RecursionLayer(*part) for part in parts]


_SLOPES = {"relu": 0.0, "leaky_relu": 0.01, "identity": 1.0}


def _dual(phi: Any, order: int) -> Dual:
    if isinstance(phi, nn.LeakyReLU):
        return Dual("leaky_relu", phi.negative_slope)
    name = activations.canonical(_OP, phi)
    if isinstance(name, str) and name in _SLOPES:
        return Dual("leaky_relu", _SLOPES[name])
    if name in ("erf", "sin", "gelu"):
        return Dual(str(name))
    function = activations.resolve(name).function
    if not isinstance(name, str):
        _check_elementwise(phi, function)
    return Dual("series", 0.0, function, order)


def _check_elementwise(phi: Any, function: Callable[[Tensor], Tensor]) -> None:
    """Raise ValueError unless each number goes through by itself, in float64, as the integrals of a series take it."""
    points = torch.tensor([[-3.0, -1.1, -0.4, 0.0], [0.3, 0.9, 1.7, 2.5]], dtype=torch.float64)
    shown = " ".join(repr(phi).split())
    rule = f"nftk.{_OP}: activation must be elementwise on float64 tensors, got {shown}"
    values = []
    # all at once, then one by one
    for part in (points, *points.reshape(8, 1)):
        try:
            with torch.no_grad():
                value = function(part.clone())
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{rule}: {reason}") from error
        if not isinstance(value, Tensor) or value.shape != part.shape or not value.is_floating_point():
            found = f"a {value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{rule}, which makes {found} of a {list(part.shape)} tensor")
        if not is_finite(value):
            raise ValueError(f"nftk.{_OP}: activation must be finite on all that comes to it, got {shown}")
        values.append(value.reshape(-1))
    if not torch.allclose(values[0], torch.cat(values[1:]), rtol=1e-6, atol=1e-12):
        raise ValueError(f"{rule}, which makes of a number what its neighbours or chance say")


def _per_layer(name: str, value: Any, depth: int, *, above: bool = False) -> list[float]:
    values = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    numbers = list(values) if listed else [values] * depth
    if len(numbers) != depth:
        raise ValueError(f"nftk.{_OP}: {name} must be a number or {depth} numbers, one a layer, got {len(numbers)}")
    return [check_number(_OP, name, v, above=above) for v in numbers]


def _weights(weights: Any, depth: int, x: Tensor) -> tuple[Tensor | None, tuple[str, ...]]:
    if weights is None:
        return None, tuple(f"readout {i + 1}" for i in range(depth))
    factors = torch.as_tensor(weights, dtype=x.dtype, device=x.device)
    check_shape(_OP, "weights", factors, (depth,) if factors.ndim == 1 else ("k", depth))
    if not len(factors):
        raise ValueError(f"nftk.{_OP}: weights must have at least one row, got none")
    if not bool(torch.isfinite(factors).all()):
        raise ValueError(f"nftk.{_OP}: weights must be finite, got NaN or infinity")
    if factors.ndim == 1:
        return factors[None], ("weighted sum",)
    return factors, tuple(f"weighted sum {i + 1}" for i in range(len(factors)))


def _check_inputs(x1: Any, x2: Any) -> None:
    for name, x in {"x1": x1, "x2": x2}.items():
        if x is None and name == "x2":
            continue
        check_tensor(_OP, name, x)
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"nftk.{_OP}: {name} must be torch.float32 or torch.float64, got {x.dtype}")
        check_shape(_OP, name, x, ("n", "m"))
        if not bool(x.detach().isfinite().all()):
            raise ValueError(f"nftk.{_OP}: {name} must be finite, got NaN or infinity")
    if x2 is not None:
        check_shape(_OP, "x2", x2, ("n2", x1.shape[1]))
        check_same(_OP, "dtype", x1=x1, x2=x2)
        check_same(_OP, "device", x1=x1, x2=x2)


def _given(out: Any, shape: tuple[int, ...], x: Tensor) -> Tensor:
    target = given_output(_OP, out)
    check_tensor(_OP, "out", target)
    check_shape(_OP, "out", target, shape)
    check_same(_OP, "dtype", x1=x, out=target)
    check_same(_OP, "device", x1=x, out=target)
    if target.numel() and target.stride(2) != 1:
        raise ValueError(f"nftk.{_OP}: out must have contiguous rows, got strides {list(target.stride())}")
    if not _apart(target):
        raise ValueError(f"nftk.{_OP}: out must have an entry of memory each, got strides {list(target.stride())}")
    return target


def _apart(x: Tensor) -> bool:
    """Whether no two entries share memory, for strides that nest."""
    taken = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if stride < taken:
            return False
        taken = stride * (size - 1) + taken
    return True
