"""readout: all per-layer readouts and their Omega-weighted sum, as one operation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from nftk._checks import check_list, check_same, check_scales, check_shape, check_tensor
from nftk._dispatch import resolve
from nftk.ops import precision as precisions
from nftk.ops.batching import addressable, register_loop, rows_of
from nftk.ops.network_formula import is_batched, transform_active, weighted_sum

_OP = "ops.readout"
_SUPPORTED = ("triton", "torch")  # fastest first
# pointers, strides and widths of so many layers fit into a launch's arguments
_MOST_LAYERS = 100


def readout(
    hidden_states: Sequence[Tensor],
    readout_weight: Tensor,
    omega: Tensor,
    *,
    readout_scales: Sequence[float] | None = None,
    return_readouts: bool = False,
    precision: str = "highest",
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Omega-weighted sum of the readouts of all hidden layers, and on request every readout.

    .. math::
        f_l = r_l V_l h_l, \qquad f = \sum_l \omega_l \odot f_l

    On a GPU one kernel reads every h_l once and writes f; one more takes all gradients.

    Args:
        hidden_states: h_l, shape ``(..., n_l)``, L of them with the same leading dimensions; widths may differ.
            Any strides; nothing is copied where the leading dimensions can be one.
        readout_weight: All V_l side by side, shape ``(d, n_1 + ... + n_L)``. Any strides.
        omega: Weights, shape ``(d, L)``. Any strides.
        readout_scales: r_l; None for 1.
        return_readouts: Whether to return all f_l too.
        precision: Of float32 products: ``"highest"``, as exact as float32; ``"tf32"`` or ``"bf16"`` where that is
            faster (torch's "high" and "medium" are accepted). Sums are in float32 always. Where one passes float32's
            range, ``"highest"`` on ``"triton"`` may give NaN for the infinity; infinite inputs stay infinite.
        backend: ``"auto"``: ``"triton"`` on a GPU, outside ``torch.func`` transforms, for float32 and 16-bit
            inputs and at most 100 layers; else ``"torch"``. A named one is used or raises.

    Returns:
        f, shape ``(..., d)``; with ``return_readouts`` the pair of f and all f_l, shape ``(..., L, d)``. In the
        dtype of the inputs, or in autocast's on a device where it is enabled.

    Raises:
        ValueError: If shapes, dtypes or devices disagree, or a name is unknown.
        TypeError: If an input is not a floating tensor, or not a list of them where one is asked for.
        NotImplementedError: If ``backend`` has no code for this call: float64, forward-mode derivatives.
        RuntimeError: If ``backend`` exists but cannot run here; the message says why.

    Derivatives:
        Any order in all tensors. ``vmap`` and ``jacrev`` work; ``jvp`` works on ``"torch"`` and raises on
        ``"triton"``. The gradients are bit-identical from run to run.

    Memory:
        Backward saves the inputs. ``"torch"`` copies the states side by side; ``"triton"`` does not.

    References:
        Alemohammad et al., NFT-K: Non-Fungible Tangent Kernels, ICASSP 2022, arXiv 2110.04945, equations 7, 8.

    Example:
        >>> import torch, nftk
        >>> h = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])]
        >>> nftk.ops.readout(h, torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[10.0, 1.0]]))
        tensor([[36.]])
    """
    wanted = precisions.canonical(_OP, precision)
    _check(hidden_states, readout_weight, omega)
    depth = len(hidden_states)
    scales = check_scales(_OP, "readout_scales", readout_scales, depth)
    first = hidden_states[0]
    lacks = {"triton": triton_lacks((*hidden_states, readout_weight, omega), backend, depth)}
    chosen = resolve(_OP, backend, _SUPPORTED, str(first.device), lacks)
    return run(hidden_states, readout_weight, omega, scales, return_readouts, wanted, chosen)


def run(
    hidden_states: Sequence[Tensor],
    readout_weight: Tensor,
    omega: Tensor,
    scales: tuple[float, ...],
    return_readouts: bool,
    precision: str,
    backend: str,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute on a backend that resolve has named; nothing is checked."""
    first = hidden_states[0]
    cast = precisions.autocast_dtype(first)
    if backend == "torch" and not (precision == "highest" and cast is None and precisions.torch_would_round(first)):
        return _formula(hidden_states, readout_weight, omega, scales, return_readouts)
    rows = [rows_of(h) for h in hidden_states]
    settings = (scales, return_readouts, precision, cast or first.dtype, backend)
    f: Tensor
    readouts: Tensor
    f, readouts = _Readout.apply(settings, readout_weight, omega, *rows)  # type: ignore[no-untyped-call]
    lead = first.shape[:-1]
    f = f if first.ndim == 2 else f.view(*lead, f.shape[-1])
    if not return_readouts:
        return f
    return f, readouts if first.ndim == 2 else readouts.view(*lead, *readouts.shape[1:])


def triton_lacks(tensors: Sequence[Tensor], backend: str, layers: int) -> str | None:
    """What of a call the Triton kernels have no code for; None for nothing."""
    if any(t.dtype is torch.float64 for t in tensors):
        return "torch.float64, because Triton sums in float32"
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return "forward-mode derivatives (jvp)"
    if layers > _MOST_LAYERS:
        return f"more than {_MOST_LAYERS} layers, got {layers}"
    if len({t.dtype for t in tensors[:-2]}) > 1:
        return "hidden states of different dtypes"
    if backend == "auto" and transform_active():
        return "torch.func transforms as fast as torch's own operations"
    return None


def _formula(
    hs: Sequence[Tensor], readout_weight: Tensor, omega: Tensor, scales: tuple[float, ...], return_readouts: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """Plain differentiable torch operations, on any device and under any transform."""
    widths = tuple(h.shape[-1] for h in hs)
    if not return_readouts:
        return weighted_sum(widths, scales, hs, readout_weight, omega)
    triples = zip(hs, readout_weight.split(widths, dim=1), scales, strict=True)
    # torch.mul takes a Python number, so that a scale of 1 costs one small pass and no branch
    readouts = torch.stack([torch.nn.functional.linear(h, v) * r for h, v, r in triples], dim=-2)  # [..., L, d]
    return torch.einsum("...ld,dl->...d", readouts, omega), readouts


_SCHEMA = (
    "(Tensor[] hs, Tensor readout_weight, Tensor omega, float[] scales, bool with_readouts, str precision, "
    "ScalarType out_dtype, str backend) -> (Tensor, Tensor)"
)
_SCHEMA_BWD = (
    "(Tensor grad, Tensor? grad_readouts, Tensor[] hs, Tensor readout_weight, Tensor omega, float[] scales, "
    "bool need_h, bool need_v, str precision, str backend) -> (Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("nftk::readout", mutates_args=(), schema=_SCHEMA)
def _fwd(
    hs: Sequence[Tensor],
    readout_weight: Tensor,
    omega: Tensor,
    scales: Sequence[float],
    with_readouts: bool,
    precision: str,
    out_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if backend == "triton":
        from nftk.kernels import choice
        from nftk.kernels.readout import readout_fwd

        word = choice.kernel_precision(hs[0].dtype, precision, out_dtype)
        tiles = choice.readout_fwd_tiles(hs, omega.shape[0], word)
        v, weights = addressable(readout_weight), addressable(omega)
        with torch.cuda.device_of(omega):
            return readout_fwd(hs, v, weights, scales, with_readouts, word, out_dtype, tiles)  # type: ignore[no-any-return]
    with precisions.full_precision(hs[0]):
        found = _formula(hs, readout_weight, omega, tuple(scales), with_readouts)
    f, readouts = found if isinstance(found, tuple) else (found, found.new_empty(0))
    return f.to(out_dtype), readouts.to(out_dtype)


@_fwd.register_fake
def _(
    hs: Sequence[Tensor],
    readout_weight: Tensor,
    omega: Tensor,
    scales: Sequence[float],
    with_readouts: bool,
    precision: str,
    out_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    rows, (d, depth) = hs[0].shape[0], omega.shape
    shape = (rows, depth, d) if with_readouts else (0,)
    return hs[0].new_empty(rows, d, dtype=out_dtype), hs[0].new_empty(shape, dtype=out_dtype)


@torch.library.custom_op("nftk::readout_bwd", mutates_args=(), schema=_SCHEMA_BWD)
def _bwd(
    grad: Tensor,
    grad_readouts: Tensor | None,
    hs: Sequence[Tensor],
    readout_weight: Tensor,
    omega: Tensor,
    scales: Sequence[float],
    need_h: bool,
    need_v: bool,
    precision: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "triton":
        from nftk.kernels import choice
        from nftk.kernels.readout import readout_bwd

        word = choice.kernel_precision(hs[0].dtype, precision, grad.dtype)
        tiles = choice.readout_bwd_tiles(hs, omega.shape[0], word, grad_readouts is not None)
        v, weights, grad = addressable(readout_weight), addressable(omega), addressable(grad)
        per_layer = None if grad_readouts is None else addressable(grad_readouts)
        with torch.cuda.device_of(omega):
            return readout_bwd(  # type: ignore[no-any-return]
                grad, per_layer, hs, v, weights, scales, need_h, need_v, word, tiles
            )
    with precisions.full_precision(hs[0]):
        grad_h, grad_v, grad_omega = _gradients(grad, grad_readouts, hs, readout_weight, omega, tuple(scales))
    empty = grad.new_empty(0)
    side_by_side = torch.cat(grad_h, 1) if need_h else hs[0].new_empty(0)
    return side_by_side, grad_v if need_v else empty, grad_omega if need_v else empty.clone()


@_bwd.register_fake
def _(
    grad: Tensor,
    grad_readouts: Tensor | None,
    hs: Sequence[Tensor],
    readout_weight: Tensor,
    omega: Tensor,
    scales: Sequence[float],
    need_h: bool,
    need_v: bool,
    precision: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    total = sum(h.shape[1] for h in hs)
    return (
        hs[0].new_empty((hs[0].shape[0], total) if need_h else (0,)),
        readout_weight.new_empty((omega.shape[0], total) if need_v else (0,)),
        omega.new_empty(omega.shape if need_v else (0,)),
    )


register_loop(_fwd)
register_loop(_bwd)


def _gradients(
    grad: Tensor,
    grad_readouts: Tensor | None,
    hs: Sequence[Tensor],
    readout_weight: Tensor,
    omega: Tensor,
    scales: tuple[float, ...],
) -> tuple[list[Tensor], Tensor, Tensor]:
    """All gradients in differentiable torch operations: with G = grad^T h, no f_l is needed."""
    grad_h, grad_v, grad_omega = [], [], []
    vs = readout_weight.split([h.shape[-1] for h in hs], dim=1)
    for i, (h, v, r) in enumerate(zip(hs, vs, scales, strict=True)):
        sums = grad.to(h.dtype).mT @ h  # [d, n_l]
        u, weighted = grad * omega[:, i], sums * omega[:, i, None]
        if grad_readouts is not None:
            u = u + grad_readouts[:, i]
            weighted = weighted + grad_readouts[:, i].to(h.dtype).mT @ h
        grad_h.append((u.to(v.dtype) @ v) * r)
        grad_v.append(weighted * r)
        grad_omega.append((sums * v).sum(1) * r)
    return grad_h, torch.cat(grad_v, 1), torch.stack(grad_omega, 1)


class _Readout(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(settings: Any, readout_weight: Tensor, omega: Tensor, *hs: Tensor) -> Any:
        return _fwd(hs, readout_weight, omega, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.settings, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(ctx.settings[1])
        if not ctx.settings[1]:
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_readouts: Tensor | None) -> Any:
        readout_weight, omega, *hs = ctx.saved_tensors
        scales, with_readouts, precision, _, backend = ctx.settings
        if not with_readouts:
            grad_readouts = None
        if grad is None:
            return (None,) * (3 + len(hs))
        need_h, need_v = any(ctx.needs_input_grad[3:]), any(ctx.needs_input_grad[1:3])
        if torch.is_grad_enabled() or is_batched(grad):
            # the gradients are to be differentiated themselves, or come many at once
            per_layer, grad_v, grad_omega = _gradients(grad, grad_readouts, hs, readout_weight, omega, scales)
            return None, grad_v, grad_omega, *per_layer
        grad_h, grad_v, grad_omega = _bwd(
            grad, grad_readouts, hs, readout_weight, omega, scales, need_h, need_v, precision, backend
        )
        split = grad_h.split([h.shape[1] for h in hs], dim=1) if need_h else [None] * len(hs)
        return None, grad_v if need_v else None, grad_omega if need_v else None, *split


def _check(hidden_states: Any, readout_weight: Tensor, omega: Tensor) -> None:
    check_list(_OP, "hidden_states", hidden_states)
    if len(hidden_states) == 0:
        raise ValueError(f"nftk.{_OP}: hidden_states must have an entry a layer, got none")
    named = {f"hidden_states[{i}]": h for i, h in enumerate(hidden_states)}
    named |= {"readout_weight": readout_weight, "omega": omega}
    for name, t in named.items():
        check_tensor(_OP, name, t)
    lead = tuple(hidden_states[0].shape[:-1])
    for i, h in enumerate(hidden_states):
        if h.ndim and h.shape[-1] == 0:
            raise ValueError(f"nftk.{_OP}: hidden_states[{i}] must have at least one column, got {list(h.shape)}")
        check_shape(_OP, f"hidden_states[{i}]", h, (*lead, f"n{i + 1}"))
    total = sum(h.shape[-1] for h in hidden_states)
    check_shape(_OP, "readout_weight", readout_weight, ("d", total))
    check_shape(_OP, "omega", omega, (readout_weight.shape[0], len(hidden_states)))
    if not torch.is_autocast_enabled(hidden_states[0].device.type):
        check_same(_OP, "dtype", **named)
    check_same(_OP, "device", **named)
