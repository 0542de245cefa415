"""layer_recursion: the tangent kernels of every layer of an infinitely wide network, in one pass over the pairs."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from nftk._checks import check_choice, check_list, check_number, check_same, check_shape, check_tensor
from nftk._dispatch import resolve
from nftk.ops import duals
from nftk.ops.batching import register_loop
from nftk.ops.duals import Dual
from nftk.ops.network_formula import transform_active

_OP = "ops.layer_recursion"
SUPPORTED = ("triton", "cpp", "torch")  # fastest first
# pairs that torch's operations take at a time, so that what they leave stays in a core's cache
_TILE = 1 << 15
# float32 would lose near pairs: a rounding of their gap grows with depth where kernels tell near inputs apart ever
# better (sin, tanh), and where states grow gelu turns into a relu, whose slope feels the root of it
_IN_FLOAT64 = ("sin", "gelu", "series")
# erf grows apart too, but so many layers at so large a weight_var leave 5e-6, and float32 takes half of the time
_ERF_LAYERS, _ERF_WEIGHT_VAR = 10, 2.0


class RecursionLayer(NamedTuple):
    """A layer of the recursion: the numbers of :func:`layer_recursion`'s formula, and the activation.

    Attributes:
        dual: The activation.
        weight_var: s^2.
        bias_var: b^2.
        own_weight: a, of Lambda_{l-1} in the layer's own term of the tangent; s^2 in the "ntk" parameterisation.
        own_bias: c, that of 1; b^2 there.
        readout_var: r^2.
        own_readout: v, of Lambda_l in Theta_l; r^2 there.
    """

    dual: Dual
    weight_var: float = 2.0
    bias_var: float = 0.0
    own_weight: float = 2.0
    own_bias: float = 0.0
    readout_var: float = 1.0
    own_readout: float = 1.0


def layer_recursion(
    gap: Tensor,
    norms1: Tensor,
    norms2: Tensor | None = None,
    *,
    layers: Sequence[RecursionLayer],
    weights: Tensor | None = None,
    get: str = "ntk",
    backend: str = "auto",
) -> Tensor:
    r"""Tangent kernels of the readouts of all layers, at infinite width, from the angles between inputs.

    .. math::
        \Sigma_l = s_l^2 \Lambda_{l-1} + b_l^2, \qquad \Lambda_l = E[\phi(u) \phi(v)], \quad
        \dot\Lambda_l = E[\phi'(u) \phi'(v)], \quad (u, v) \sim N(0, \Sigma_l), \\
        T_l = a_l \Lambda_{l-1} + c_l + s_l^2 \dot\Lambda_{l-1} T_{l-1}, \qquad
        \Theta_l = v_l \Lambda_l + r_l^2 \dot\Lambda_l T_l

    A pair goes through all layers in registers (in cache, with ``"torch"``); only what is asked for is written.

    Args:
        gap: Of each pair, ``(n1, n2)``, as :func:`nftk.ops.cosine_gap` gives it; float32 or float64.
        norms1: Roots of Lambda_0(x, x), ``(n1,)``: for inputs of m entries |x| / sqrt(m). float64 keeps most.
        norms2: Those of the second examples. None: the first, and ``gap`` is symmetric: half is computed.
        layers: One entry a layer.
        weights: ``(k, L)``: only the k sums over layers of weights[i, l] Theta_l are formed.
        get: ``"ntk"``: Theta. ``"nngp"``: the covariances r^2 Lambda of the readouts.
        backend: ``"auto"``: ``"triton"`` on a GPU in float32, ``"cpp"`` on a CPU where nftk._C is, outside
            ``torch.func`` transforms; else ``"torch"``. A named one is used or raises.

    Returns:
        ``(L, n1, n2)``, or ``(k, n1, n2)`` with weights, in gap's dtype. float32 is computed in float64, except by
        ``"triton"``, where a layer is no relu, leaky_relu or erf, and beyond 10 of erf or a weight_var of 2 with it.

    Raises:
        ValueError: If shapes, dtypes or devices disagree, or a name is unknown.
        TypeError: If an input is no dense floating tensor.
        NotImplementedError: If ``backend`` has no code for this call.
        RuntimeError: If ``backend`` cannot run here.

    Derivatives:
        In gap, norms and weights, of any order on ``"torch"``, under every transform. The others go back through that
        formula, which then holds every layer's matrices; ``jvp`` raises there. A gap of 0 has no finite derivative
        under relu.

    Memory:
        The result; ``"torch"`` some more tiles of 2^15 pairs, if nothing is to be differentiated.

    References:
        Jacot et al., Neural tangent kernel, NeurIPS 2018, arXiv 1806.07572; Lee et al., Wide neural networks of any
        depth evolve as linear models, NeurIPS 2019, arXiv 1902.06720, appendix E.

    Example:
        >>> layer = RecursionLayer(Dual("leaky_relu"))
        >>> gap, norms = torch.zeros(1, 1), torch.ones(1)
        >>> layer_recursion(gap, norms, layers=[layer, layer]).flatten()  # of relu: l + 1
        tensor([2., 3.])
    """
    symmetric = norms2 is None
    _check(gap, norms1, norms2, layers, weights)
    check_choice(_OP, "get", get, ("ntk", "nngp"))
    lacks = {name: lacking(name, gap, layers, backend) for name in ("triton", "cpp")}
    chosen = resolve(_OP, backend, SUPPORTED, str(gap.device), lacks)
    rows1, _ = rows_of(norms1, layers)
    rows2 = rows1 if norms2 is None else rows_of(norms2, layers)[0]
    if chosen == "torch":
        tangent = get == "ntk"
        tensors = (gap, rows1, rows2, weights)
        if transform_active() or torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            return _formula(gap, rows1, rows2, layers, weights, tangent)
        return fill(_new(gap, layers, weights), gap, rows1, rows2, layers, weights, tangent, symmetric, "torch")
    settings = (tuple(layers), get == "ntk", symmetric, chosen)
    out: Tensor = _LayerRecursion.apply(settings, gap, rows1, rows2, weights)  # type: ignore[no-untyped-call]
    return out


def rows_of(norms: Tensor, layers: Sequence[RecursionLayer]) -> tuple[Tensor, float]:
    """What belongs to one example, see nftk/ops/duals.py, in float64; and the share that a series leaves out."""
    return duals.sample_rows(
        norms, [p.dual for p in layers], [p.weight_var for p in layers], [p.bias_var for p in layers]
    )


def lacking(backend: str, gap: Tensor, layers: Sequence[RecursionLayer], asked: str) -> str | None:
    """What of a call a backend has no code for; None for nothing."""
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return "forward-mode derivatives (jvp)"
    if backend == "triton" and gap.dtype is torch.float64:
        return "torch.float64"
    if backend == "triton" and any(p.dual.kind == "series" for p in layers):
        return "activations without a closed form"
    if backend == "triton" and len({p.dual.kind for p in layers}) > 1:
        return "layers with different kinds of activations"
    if asked == "auto" and transform_active():
        return "torch.func transforms as fast as torch's own operations"
    return None


def fill(
    out: Tensor,
    gap: Tensor,
    rows1: Tensor,
    rows2: Tensor,
    layers: Sequence[RecursionLayer],
    weights: Tensor | None,
    tangent: bool,
    symmetric: bool,
    backend: str,
    wide: bool = False,
) -> Tensor:
    """Write the kernels; gap may be out's last matrix, because each tile of it is read before it is written."""
    if gap.numel() == 0:
        return out
    # wide asks for float64 in all work, which "triton" has not, whatever the dtype of gap and out
    number = torch.float64 if backend != "triton" and (wide or _wide(layers)) else gap.dtype
    rows1, rows2 = rows1.to(number).contiguous(), rows2.to(number).contiguous()
    if backend == "cpp":
        return _fill_cpp(out, gap, rows1, rows2, layers, weights, tangent, symmetric)
    if backend == "triton":
        from nftk.kernels.layer_recursion import layer_recursion_fwd

        layer_recursion_fwd(out, gap, rows1, rows2, layers, weights, tangent, symmetric)
        return out
    n1, n2 = gap.shape
    side = max(1, _TILE // n2) if not symmetric else max(1, min(256, _TILE // n2))
    across = max(1, _TILE // side)
    for top in range(0, n1, side):
        rows = slice(top, min(top + side, n1))
        for left in range(top if symmetric else 0, n2, across):
            cols = slice(left, min(left + across, n2))
            tile, i, j = gap[rows, cols].to(number, copy=True), rows1[:, rows], rows2[:, cols]
            if weights is None:
                for target, theta in zip(out, _layers(tile, i, j, layers, tangent), strict=True):
                    target[rows, cols] = theta
            else:
                out[:, rows, cols] = _formula(tile, i, j, layers, weights, tangent)
        if symmetric:
            # what lies in the tiles on the diagonal was computed twice, alike to rounding
            below = slice(rows.stop, n1)
            out[:, below, rows] = out[:, rows, below].mT
            square = out[:, rows, rows]
            square.copy_(square.triu() + square.triu(1).mT)
    return out


def _wide(layers: Sequence[RecursionLayer]) -> bool:
    """Whether float32 would lose more than it should: see _IN_FLOAT64."""
    erf = [p.weight_var for p in layers if p.dual.kind == "erf"]
    deep = len(erf) > _ERF_LAYERS or max(erf, default=0.0) > _ERF_WEIGHT_VAR
    return deep or any(p.dual.kind in _IN_FLOAT64 for p in layers)


def _new(gap: Tensor, layers: Sequence[RecursionLayer], weights: Tensor | None) -> Tensor:
    return gap.new_empty(len(layers) if weights is None else weights.shape[0], *gap.shape)


def _layers(
    gap: Tensor, rows1: Tensor, rows2: Tensor, layers: Sequence[RecursionLayer], tangent: bool
) -> Iterator[Tensor]:
    """Yield Theta_1 .. Theta_L in plain differentiable torch operations."""
    dtype, gap = gap.dtype, gap.double() if _wide(layers) else gap
    rows1, rows2 = rows1.to(gap.dtype), rows2.to(gap.dtype)
    first, passed = 1, None
    kernel = rows1[0][:, None] * rows2[0] * duals.cosine(gap) if tangent else gap
    for p in layers:
        i, j = rows1[first : first + p.dual.rows], rows2[first : first + p.dual.rows]
        first += p.dual.rows
        if p.bias_var:
            gap = duals.into_layer(gap, i, j)
        if tangent:
            own = p.own_weight * kernel + p.own_bias
            tangents = own if passed is None else own + p.weight_var * passed
        gap, slopes = duals.through(p.dual, gap, i, j)
        kernel = i[0][:, None] * j[0] * duals.cosine(gap)
        if tangent:
            passed = slopes * tangents
            yield (p.own_readout * kernel + p.readout_var * passed).to(dtype)
        else:
            yield (p.readout_var * kernel).to(dtype)


def _formula(
    gap: Tensor,
    rows1: Tensor,
    rows2: Tensor,
    layers: Sequence[RecursionLayer],
    weights: Tensor | None,
    tangent: bool,
) -> Tensor:
    found = _layers(gap, rows1, rows2, layers, tangent)
    if weights is None:
        return torch.stack(list(found))
    total = gap.new_zeros(())
    for theta, w in zip(found, weights.unbind(1), strict=True):
        total = total + w.to(gap.dtype)[:, None, None] * theta
    return total


def _fill_cpp(
    out: Tensor,
    gap: Tensor,
    rows1: Tensor,
    rows2: Tensor,
    layers: Sequence[RecursionLayer],
    weights: Tensor | None,
    tangent: bool,
    symmetric: bool,
) -> Tensor:
    from nftk import _C

    wide = None if weights is None else weights.detach().double().contiguous()
    _C.layer_recursion(
        [(duals.KINDS.index(p.dual.kind), p.dual.order, p.dual.slope, *p[1:]) for p in layers],
        gap=gap.data_ptr(), gap_strides=gap.stride(), sizes=gap.shape, rows1=rows1.data_ptr(), rows2=rows2.data_ptr(),
        out=out.data_ptr(), out_strides=out.stride(), weights=0 if wide is None else wide.data_ptr(),
        outputs=out.shape[0], tangent=tangent, symmetric=symmetric,
        number="float32" if gap.dtype is torch.float32 else "float64", wide=rows1.dtype is torch.float64,
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return out


_SCHEMA = (
    "(Tensor gap, Tensor rows1, Tensor rows2, Tensor? weights, str[] kinds, int[] orders, float[] numbers, "
    "bool tangent, bool symmetric, str backend) -> Tensor"
)


@torch.library.custom_op("nftk::layer_recursion", mutates_args=(), schema=_SCHEMA)
def _fwd(
    gap: Tensor,
    rows1: Tensor,
    rows2: Tensor,
    weights: Tensor | None,
    kinds: Sequence[str],
    orders: Sequence[int],
    numbers: Sequence[float],
    tangent: bool,
    symmetric: bool,
    backend: str,
) -> Tensor:
    layers = _layers_from(kinds, orders, numbers)
    return fill(_new(gap, layers, weights), gap, rows1, rows2, layers, weights, tangent, symmetric, backend)


@_fwd.register_fake
def _(
    gap: Tensor,
    rows1: Tensor,
    rows2: Tensor,
    weights: Tensor | None,
    kinds: Sequence[str],
    orders: Sequence[int],
    numbers: Sequence[float],
    tangent: bool,
    symmetric: bool,
    backend: str,
) -> Tensor:
    return gap.new_empty(len(kinds) if weights is None else weights.shape[0], *gap.shape)


register_loop(_fwd)
_NUMBERS = len(RecursionLayer._fields)  # the slope, and all but the dual


def _layers_from(kinds: Sequence[str], orders: Sequence[int], numbers: Sequence[float]) -> list[RecursionLayer]:
    parts = [numbers[i : i + _NUMBERS] for i in range(0, len(numbers), _NUMBERS)]
    return [
        RecursionLayer(Dual(kind, part[0], None, order), *part[1:])
        for kind, order, part in zip(kinds, orders, parts, strict=True)
    ]


class _LayerRecursion(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(settings: Any, gap: Tensor, rows1: Tensor, rows2: Tensor, weights: Tensor | None) -> Any:
        layers, tangent, symmetric, backend = settings
        numbers = [number for p in layers for number in (p.dual.slope, *p[1:])]
        kinds, orders = [p.dual.kind for p in layers], [p.dual.order for p in layers]
        return _fwd(gap, rows1, rows2, weights, kinds, orders, numbers, tangent, symmetric, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.settings, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        layers, tangent, _, _ = ctx.settings
        gap, rows1, rows2, weights = ctx.saved_tensors

        def again(*tensors: Tensor) -> Tensor:
            gap, rows1, rows2, *rest = tensors
            return _formula(gap, rows1, rows2, layers, rest[0] if rest else None, tangent)

        tensors = (gap, rows1, rows2) if weights is None else (gap, rows1, rows2, weights)
        pull = torch.func.vjp(again, *tensors)[1]
        return None, *pull(grad), *((None,) if weights is None else ())


def _check(gap: Tensor, norms1: Tensor, norms2: Tensor | None, layers: Any, weights: Tensor | None) -> None:
    tensors = {"gap": gap, "norms1": norms1, "norms2": norms2, "weights": weights}
    given = {name: t for name, t in tensors.items() if t is not None}
    for name, t in given.items():
        check_tensor(_OP, name, t)
    check_same(_OP, "device", **given)
    if gap.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"nftk.{_OP}: gap must be torch.float32 or torch.float64, got {gap.dtype}")
    check_list(_OP, "layers", layers)
    if len(layers) == 0:
        raise ValueError(f"nftk.{_OP}: layers must have an entry a layer, got none")
    check_shape(_OP, "norms1", norms1, ("n1",))
    if norms2 is not None:
        check_shape(_OP, "norms2", norms2, ("n2",))
    check_shape(_OP, "gap", gap, (len(norms1), len(norms1 if norms2 is None else norms2)))
    if weights is not None:
        check_shape(_OP, "weights", weights, ("k", len(layers)))
    for i, p in enumerate(layers):
        check_choice(_OP, f"layers[{i}].dual.kind", p.dual.kind, duals.KINDS)
        check_number(_OP, f"layers[{i}].weight_var", p.weight_var, above=True)
        check_number(_OP, f"layers[{i}].bias_var", p.bias_var)
