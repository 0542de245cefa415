"""network: x to f, the whole forward pass of an NFT-K network, as one operation."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from nftk._checks import check_choice, check_same, check_shape, check_tensor
from nftk._dispatch import BACKENDS, resolve
from nftk.ops import activations
from nftk.ops.activations import Activation

_OP = "ops.network"
_SUPPORTED = ("torch",)  # fastest first
# columns behind the hidden states: without them rows of 2,560 float32, ten layers of 256, would be a multiple of
# 2 KiB apart and crowd into the same few sets of the cache
_PADDING = 16


class Plan(NamedTuple):
    """What a network is besides its tensors; one entry a layer."""

    widths: tuple[int, ...]
    activations: tuple[Activation, ...]
    weight_scales: tuple[float, ...]
    bias_scales: tuple[float, ...]
    readout_scales: tuple[float, ...]


def network(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    readout_weight: Tensor,
    omega: Tensor,
    *,
    output_bias: Tensor | None = None,
    activation: str | Callable[[Tensor], Tensor] | Sequence[str | Callable[[Tensor], Tensor]] = "relu",
    weight_scales: Sequence[float] | None = None,
    bias_scales: Sequence[float] | None = None,
    readout_scales: Sequence[float] | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Output of an NFT-K network: all hidden layers, all readouts and their Omega-weighted sum.

    .. math::
        g_l = a_l W_l h_{l-1} + c_l b_l, \quad h_l = \phi_l(g_l), \quad h_0 = x, \quad
        f = c + \sum_l \omega_l \odot r_l V_l h_l

    All scales are 1 in the paper; the "ntk" parameterisation sets them (DESIGN.md, section 3).

    Two paths compute the same function. **The rule**: a call takes one autograd node for the whole network when it
    is an ordinary eager call on a CPU: every tensor a plain float32 or float64 tensor of one dtype there, every
    activation one of the named ones, no autocast, no ``torch.func`` transform, no forward-mode derivative, no
    ``torch.compile``, ``torch.export`` or ``torch.jit`` tracing. Every other call runs the plain formula in
    differentiable torch operations. The one node saves some hundred small operations a training step
    (bench/bench_training_step.py), and its second derivative goes through the plain formula.

    Args:
        x: Inputs, shape ``(..., m)``.
        weights: W_l, shape ``(n_l, n_{l-1})`` with ``n_0 = m``, L of them, L >= 1.
        biases: b_l, shape ``(n_l,)``, or None, L of them.
        readout_weight: All V_l side by side, shape ``(d, n_1 + ... + n_L)``.
        omega: Weights, shape ``(d, L)``.
        output_bias: c, shape ``(d,)``, or None.
        activation: One name or callable, or L of them. Names: relu, leaky_relu (slope 0.01), gelu, silu, tanh, erf,
            elu, sin, identity.
        weight_scales: a_l; None for 1.
        bias_scales: c_l; None for 1.
        readout_scales: r_l; None for 1.
        backend: ``"auto"`` or ``"torch"``.

    Returns:
        f, shape ``(..., d)``, in the dtype of the inputs (under autocast, in autocast's).

    Raises:
        ValueError: If shapes, dtypes or devices disagree, or a name is unknown.
        TypeError: If an input is not a floating tensor.
        NotImplementedError: If ``backend`` has no code for this operation.

    Derivatives:
        Any order in all tensors; ``vmap``, ``jacrev``, ``jvp`` and forward mode work.

    Memory:
        Both paths save the hidden states for backward (and the g_l, where phi' is a function of g). The largest
        temporary is all hidden states side by side.

    References:
        Alemohammad et al., NFT-K: Non-Fungible Tangent Kernels, ICASSP 2022, arXiv 2110.04945, equations 1-3, 7, 8.

    Example:
        >>> import torch, nftk
        >>> one = torch.ones(1, 1)
        >>> nftk.ops.network(3 * one, [one, 2 * one], [one[0], one[0]], torch.ones(1, 2), torch.tensor([[10.0, 1.0]]))
        tensor([[49.]])
    """
    check_choice(_OP, "backend", backend, BACKENDS)
    resolve(_OP, backend, _SUPPORTED)
    _check(x, weights, biases, readout_weight, omega, output_bias)
    layers = len(weights)
    phis = [activation] * layers if isinstance(activation, str) or callable(activation) else list(activation)
    ones = (1.0,) * layers
    plan = Plan(
        widths=tuple(weight.shape[0] for weight in weights),
        activations=tuple(activations.resolve(activations.canonical(_OP, phi)) for phi in phis),
        weight_scales=tuple(weight_scales or ones),
        bias_scales=tuple(bias_scales or ones),
        readout_scales=tuple(readout_scales or ones),
    )
    for name, values in plan._asdict().items():
        if len(values) != layers:
            raise ValueError(f"nftk.{_OP}: {name} must have {layers} entries, one a layer, got {len(values)}")
    return run(plan, x, weights, biases, readout_weight, omega, output_bias)


def run(
    plan: Plan,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    readout_weight: Tensor,
    omega: Tensor,
    output_bias: Tensor | None,
) -> Tensor:
    """Compute f by the path that the rule of :func:`network` names; nothing is checked."""
    tensors = (omega, readout_weight, output_bias, *weights, *biases)
    if _ordinary_call() and _ordinary_tensors((x, *tensors)) and all(phi.gradient for phi in plan.activations):
        rows = x.reshape(-1, x.shape[-1])
        out: Tensor = _OneNode.apply(plan, rows, *tensors)  # type: ignore[no-untyped-call]
        return out if x.ndim == 2 else out.view(*x.shape[:-1], out.shape[-1])
    return _formula(plan, x, *tensors)  # type: ignore[arg-type]


def affine(h: Tensor, weight: Tensor, bias: Tensor | None, weight_scale: float, bias_scale: float) -> Tensor:
    """Affine map of one layer, h to g."""
    if weight_scale != 1.0:
        h = h * weight_scale
    if bias is not None and bias_scale != 1.0:
        bias = bias * bias_scale
    return functional.linear(h, weight, bias)


def weighted_sum(plan: Plan, states: Sequence[Tensor], readout_weight: Tensor, omega: Tensor) -> Tensor:
    """sum_l omega_l * f_l as one matrix product: Omega goes into V, which is smaller than the states."""
    folded = _fold(readout_weight, _scaled(plan, omega), plan.widths)
    return functional.linear(torch.cat(tuple(states), dim=-1), folded)


def _formula(
    plan: Plan, x: Tensor, omega: Tensor, readout_weight: Tensor, output_bias: Tensor | None, *layers: Tensor | None
) -> Tensor:
    depth = len(plan.widths)
    h, states = x, []
    for i, phi in enumerate(plan.activations):
        weight, bias = layers[i], layers[depth + i]
        assert weight is not None
        h = phi.function(affine(h, weight, bias, plan.weight_scales[i], plan.bias_scales[i]))
        states.append(h)
    f = weighted_sum(plan, states, readout_weight, omega)
    return f if output_bias is None else f + output_bias


class _OneNode(torch.autograd.Function):
    """The whole network as one node of the autograd graph; eager CPU calls only, so no vmap or jvp rule."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        x: Tensor,
        omega: Tensor,
        readout_weight: Tensor,
        output_bias: Tensor | None,
        *layers: Tensor | None,
    ) -> Tensor:
        depth = len(plan.widths)
        buffer = x.new_empty(x.shape[0], sum(plan.widths) + _PADDING)
        states = buffer[:, :-_PADDING]  # [B, n_1 + ... + n_L]
        h, kept = x, []
        for i, (phi, state) in enumerate(zip(plan.activations, states.split(plan.widths, dim=1), strict=True)):
            weight, bias = layers[i], layers[depth + i]
            assert weight is not None
            if phi.in_place is not None:
                phi.in_place(_affine_out(h, weight, bias, plan.weight_scales[i], plan.bias_scales[i], state))
            else:
                g = h.new_empty(state.shape)
                kept.append(_affine_out(h, weight, bias, plan.weight_scales[i], plan.bias_scales[i], g))
                state.copy_(phi.function(g))
            h = state
        folded = _fold(readout_weight, _scaled(plan, omega), plan.widths)  # [d, n_1 + ... + n_L]
        # this order of the factors is the faster one for d much smaller than the batch
        f = torch.mm(folded, states.t()).t()
        ctx.plan = plan
        ctx.save_for_backward(x, omega, readout_weight, output_bias, *layers, states, folded, *kept)
        return f.contiguous() if output_bias is None else f + output_bias

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan: Plan = ctx.plan
        depth = len(plan.widths)
        tensors = ctx.saved_tensors  # unpacked anew at every access
        inputs = tensors[: 4 + 2 * depth]
        if torch.is_grad_enabled():
            return (None, *_backward_of_formula(plan, inputs, ctx.needs_input_grad[1:], grad))
        x, omega, readout_weight, _, *layers = inputs
        states, folded, *kept = tensors[4 + 2 * depth :]
        _, need_x, need_omega, need_readout, need_output_bias, *need_layers = ctx.needs_input_grad
        need_weights, need_biases = need_layers[:depth], need_layers[depth:]

        grad_omega = grad_readout = None
        if need_omega or need_readout:
            grad_folded = torch.mm(grad.t(), states)  # [d, n_1 + ... + n_L]
            if need_omega:
                grad_omega = _scaled(plan, _dot_by_layer(grad_folded, readout_weight, plan.widths))
            if need_readout:
                grad_readout = _fold_(grad_folded, _scaled(plan, omega), plan.widths)

        grad_weights: list[Tensor | None] = [None] * depth
        grad_biases: list[Tensor | None] = [None] * depth
        grad_x = None
        # the walk back ends at the first layer below which nothing wants a gradient
        first = next((i for i in range(depth) if need_x or need_weights[i] or need_biases[i]), depth)
        if first < depth:
            grad_states = _grad_of_states(grad, folded, plan.widths)
            by_layer = (x, *states.split(plan.widths, dim=1))
        delta: Tensor | None = None
        for i in reversed(range(first, depth)):
            grad_h = grad_states[i]
            if delta is not None:
                grad_h.addmm_(delta, layers[i + 1], alpha=plan.weight_scales[i + 1])
            phi = plan.activations[i]
            assert phi.gradient is not None
            delta = phi.gradient(grad_h, kept.pop() if phi.in_place is None else by_layer[i + 1])
            if need_weights[i]:
                grad_weights[i] = _times(torch.mm(delta.t(), by_layer[i]), plan.weight_scales[i])
            if need_biases[i]:
                grad_biases[i] = _times(delta.sum(0), plan.bias_scales[i])
        if need_x and delta is not None:
            grad_x = _times(torch.mm(delta, layers[0]), plan.weight_scales[0])
        grad_output_bias = grad.sum(0) if need_output_bias else None
        return (None, grad_x, grad_omega, grad_readout, grad_output_bias, *grad_weights, *grad_biases)


def _backward_of_formula(
    plan: Plan, inputs: Sequence[Tensor | None], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Gradients as differentiable functions of the inputs, for second and higher derivatives."""
    with torch.enable_grad():
        # aliases, so that an input which depends on another one is not differentiated through it twice
        aliases = [t.view_as(t) if t is not None else None for t in inputs]
        f = _formula(plan, *aliases)  # type: ignore[arg-type]
        wanted = [t for t, need in zip(aliases, needed, strict=True) if need and t is not None]
        grads = iter(torch.autograd.grad(f, wanted, grad, create_graph=True))
    return [next(grads) if need else None for need in needed]


def _scaled(plan: Plan, omega: Tensor) -> Tensor:
    """r_l omega_l, shape (d, L)."""
    if all(scale == 1.0 for scale in plan.readout_scales):
        return omega
    if len(set(plan.readout_scales)) == 1:
        return omega * plan.readout_scales[0]
    return omega * torch.tensor(plan.readout_scales, dtype=omega.dtype, device=omega.device)


def _fold(readout_weight: Tensor, omega: Tensor, widths: tuple[int, ...]) -> Tensor:
    """diag(omega_l) V_l, side by side, shape (d, n_1 + ... + n_L)."""
    if len(set(widths)) == 1:
        by_layer: Tensor = readout_weight.unflatten(1, (len(widths), widths[0]))  # [d, L, n]
        return (by_layer * omega.unsqueeze(-1)).flatten(1)
    pairs = zip(readout_weight.split(widths, dim=1), omega.split(1, dim=1), strict=True)
    return torch.cat([v * column for v, column in pairs], dim=1)


def _fold_(readout_weight: Tensor, omega: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Like _fold, in place."""
    if len(set(widths)) == 1:
        by_layer: Tensor = readout_weight.unflatten(1, (len(widths), widths[0]))  # [d, L, n]
        by_layer.mul_(omega.unsqueeze(-1))
    else:
        for v, column in zip(readout_weight.split(widths, dim=1), omega.split(1, dim=1), strict=True):
            v.mul_(column)
    return readout_weight


def _dot_by_layer(a: Tensor, b: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Row-wise inner products of a and b over the columns of each layer, shape (d, L)."""
    if len(set(widths)) == 1:
        shape = (len(widths), widths[0])
        dots: Tensor = torch.linalg.vecdot(a.unflatten(1, shape), b.unflatten(1, shape))
        return dots
    pairs = zip(a.split(widths, dim=1), b.split(widths, dim=1), strict=True)
    return torch.stack([torch.linalg.vecdot(u, v) for u, v in pairs], dim=1)


def _grad_of_states(grad: Tensor, folded: Tensor, widths: tuple[int, ...]) -> Sequence[Tensor]:
    """What reaches each h_l through its own readout, shape (B, n_l); fresh memory, to be added to."""
    if len(set(widths)) > 1:
        parts: Sequence[Tensor] = torch.mm(grad, folded).split(widths, dim=1)
        return parts
    by_layer: Tensor = folded.unflatten(1, (len(widths), widths[0]))  # [d, L, n]
    return torch.bmm(grad.expand(len(widths), *grad.shape), by_layer.transpose(0, 1)).unbind(0)


def _affine_out(
    h: Tensor, weight: Tensor, bias: Tensor | None, weight_scale: float, bias_scale: float, out: Tensor
) -> Tensor:
    """Like affine, into out."""
    if bias is not None:
        return torch.addmm(bias, h, weight.t(), beta=bias_scale, alpha=weight_scale, out=out)
    return _times(torch.mm(h, weight.t(), out=out), weight_scale)


def _times(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1.0 else x.mul_(scale)


# private names of torch, in one place; where a future torch lacks one, a transform that meets the one node raises
_transform_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


def _ordinary_call() -> bool:
    return not (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or _transform_active()
        or getattr(forward_ad, "_current_level", -1) >= 0
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def _ordinary_tensors(tensors: Sequence[Tensor | None]) -> bool:
    dtype = tensors[0].dtype if tensors[0] is not None else None
    if dtype is not torch.float32 and dtype is not torch.float64:
        return False
    return all(t is None or (type(t) in _ORDINARY and t.dtype is dtype and t.is_cpu) for t in tensors)


_ORDINARY = frozenset((Tensor, torch.nn.Parameter))


def _check(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    readout_weight: Tensor,
    omega: Tensor,
    output_bias: Tensor | None,
) -> None:
    if not weights or len(biases) != len(weights):
        raise ValueError(
            f"nftk.{_OP}: weights and biases must have one entry a layer, got {len(weights)} and {len(biases)}"
        )
    named: dict[str, Tensor | None] = {"x": x, "omega": omega, "readout_weight": readout_weight}
    named |= {f"weights[{i}]": weight for i, weight in enumerate(weights)}
    named |= {f"biases[{i}]": bias for i, bias in enumerate(biases)} | {"output_bias": output_bias}
    present = {name: t for name, t in named.items() if t is not None}
    for name, t in present.items():
        check_tensor(_OP, name, t)
    fan_in = weights[0].shape[-1] if weights[0].ndim else 0
    check_shape(_OP, "x", x, ("...", fan_in))
    for i, weight in enumerate(weights):
        check_shape(_OP, f"weights[{i}]", weight, (f"n{i + 1}", fan_in))
        fan_in = weight.shape[0]
        bias = biases[i]
        if bias is not None:
            check_shape(_OP, f"biases[{i}]", bias, (fan_in,))
    total = sum(weight.shape[0] for weight in weights)
    check_shape(_OP, "readout_weight", readout_weight, ("d", total))
    check_shape(_OP, "omega", omega, (readout_weight.shape[0], len(weights)))
    if output_bias is not None:
        check_shape(_OP, "output_bias", output_bias, (readout_weight.shape[0],))
    check_same(_OP, "dtype", **present)
    check_same(_OP, "device", **present)
