"""network: x to f, the whole forward pass of an NFT-K network, as one operation."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from nftk._checks import check_choice, check_same, check_shape, check_tensor
from nftk._dispatch import BACKENDS, resolve
from nftk.ops import activations
from nftk.ops.network_formula import Plan, formula
from nftk.ops.network_node import OneNode

_OP = "ops.network"
_SUPPORTED = ("torch",)  # fastest first


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

    All scales are 1 in the paper; the "ntk" parameterisation sets them (see NFTKMLP).

    Two paths compute the same function. **The rule**: a call takes one autograd node for the whole network when it
    is an ordinary eager call on a CPU: every tensor a plain float32 or float64 tensor of one dtype there, every
    activation one of the named ones, no autocast, no ``torch.func`` transform, no forward-mode derivative, no
    ``torch.compile``, ``torch.export`` or ``torch.jit`` tracing. Every other call runs the plain formula in
    differentiable torch operations. The one node saves some hundred small operations a training step
    (bench/bench_training_step.py); its second derivative, and a batch of gradients at once, go through the formula.

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
        out: Tensor = OneNode.apply(plan, rows, *tensors)  # type: ignore[no-untyped-call]
        return out if x.ndim == 2 else out.view(*x.shape[:-1], out.shape[-1])
    return formula(plan, x, *tensors)  # type: ignore[arg-type]


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
