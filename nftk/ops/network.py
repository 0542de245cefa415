"""network: x to f, the whole forward pass of an NFT-K network, as one operation."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from nftk._checks import check_list, check_same, check_scales, check_shape, check_tensor
from nftk._dispatch import check_backend, resolve, why_not
from nftk.ops import activations, network_triton
from nftk.ops import precision as precisions
from nftk.ops.network_formula import Plan, formula, hidden_states, transform_active
from nftk.ops.network_node import OneNode
from nftk.ops.readout import run as run_readout
from nftk.ops.readout import triton_lacks

_OP = "ops.network"
SUPPORTED = ("triton", "torch")  # fastest first


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
    precision: str = "highest",
    backend: str = "auto",
) -> Tensor:
    r"""Output of an NFT-K network: all hidden layers, all readouts and their Omega-weighted sum.

    .. math::
        g_l = a_l W_l h_{l-1} + c_l b_l, \quad h_l = \phi_l(g_l), \quad h_0 = x, \quad
        f = c + \sum_l \omega_l \odot r_l V_l h_l

    All scales are 1 in the paper; the "ntk" parameterisation sets them (see NFTKMLP).

    All paths compute the same function. Which one is taken follows from **the rule**; :func:`nftk.ops.explain` tells:

    - ``"triton"``: by name, and from "auto" on a CUDA GPU outside ``torch.func`` transforms, where the kernels serve
      the call: float32, bfloat16 or float16, one of the named activations for all layers, at most 64 outputs, no
      layer wider than 1,024, at most 100 layers. One launch forward, two backward.
    - ``"layers"``: from "auto" where these serve all but the shape or the activations: torch's own operations layer
      by layer, then the one launch of :func:`nftk.ops.readout`.
    - ``"node"``: one autograd node of torch operations, for other ordinary eager calls: every tensor a plain float32
      or float64 tensor of one dtype and device, every activation one of the named ones, no autocast, no
      ``torch.func`` transform, no forward-mode derivative, no ``torch.compile``, ``torch.export`` or ``torch.jit``
      tracing. On a CPU it saves some hundred small operations a training step (bench/bench_step.py).
    - ``"formula"``: plain differentiable torch operations, for all else.

    Second derivatives, and a batch of gradients at once, go through the formula on every path.

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
        precision: Of float32 products: ``"highest"``, as exact as float32; ``"tf32"`` or ``"bf16"`` where that is
            faster (torch's "high" and "medium" are accepted). On the "formula" and "layers" paths the products of
            the layers themselves follow ``torch.set_float32_matmul_precision``. Where a sum passes float32's range,
            ``"highest"`` on ``"triton"`` may give NaN for the infinity.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``; a named one is used or raises.

    Returns:
        f, shape ``(..., d)``, in the dtype of the inputs (under autocast, in autocast's).

    Raises:
        ValueError: If shapes, dtypes or devices disagree, or a name is unknown.
        TypeError: If an input is not a floating tensor.
        NotImplementedError: If ``backend`` has no code for this call; the message says what of it.
        RuntimeError: If ``backend`` exists but cannot run here; the message says why.

    Derivatives:
        Any order in all tensors; ``vmap``, ``jacrev``, ``jvp`` and forward mode work, except forward mode on
        ``"triton"`` by name, which raises. Gradients are bit-identical from run to run.

    Memory:
        Every path saves the hidden states for backward (and the g_l, where phi' is a function of g). The largest
        temporary is all hidden states side by side; ``"triton"`` without gradients keeps two layers of each block of
        rows in work.

    References:
        Alemohammad et al., NFT-K: Non-Fungible Tangent Kernels, ICASSP 2022, arXiv 2110.04945, equations 1-3, 7, 8.

    Example:
        >>> import torch, nftk
        >>> one = torch.ones(1, 1)
        >>> nftk.ops.network(3 * one, [one, 2 * one], [one[0], one[0]], torch.ones(1, 2), torch.tensor([[10.0, 1.0]]))
        tensor([[49.]])
    """
    wanted = precisions.canonical(_OP, precision)
    check_backend(_OP, backend, SUPPORTED)
    _check(x, weights, biases, readout_weight, omega, output_bias)
    layers = len(weights)
    phis = list(activation) if isinstance(activation, list | tuple) else [activation] * layers
    if len(phis) != layers:
        raise ValueError(f"nftk.{_OP}: activation must be one or {layers}, one a layer, got {len(phis)}")
    plan = Plan(
        widths=tuple(weight.shape[0] for weight in weights),
        activations=tuple(activations.resolve(activations.canonical(_OP, phi)) for phi in phis),
        weight_scales=check_scales(_OP, "weight_scales", weight_scales, layers),
        bias_scales=check_scales(_OP, "bias_scales", bias_scales, layers),
        readout_scales=check_scales(_OP, "readout_scales", readout_scales, layers),
    )
    return run(plan, wanted, backend, x, weights, biases, readout_weight, omega, output_bias)


def run(
    plan: Plan,
    precision: str,
    backend: str,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    readout_weight: Tensor,
    omega: Tensor,
    output_bias: Tensor | None,
) -> Tensor:
    """Compute f by the path that the rule of :func:`network` names; shapes and names are not checked."""
    tensors = (omega, readout_weight, output_bias, *weights, *biases)
    taken = path(plan, backend, x, tensors)
    if taken == "triton":
        return network_triton.run(plan, precision, x, *tensors)  # type: ignore[arg-type]
    if taken == "node":
        rows = x.reshape(-1, x.shape[-1])
        out: Tensor = OneNode.apply(plan, rows, *tensors)  # type: ignore[no-untyped-call]
        return out if x.ndim == 2 else out.view(*x.shape[:-1], out.shape[-1])
    if taken == "layers":
        states = hidden_states(plan, x, *weights, *biases)
        # under autocast a user's own activation may return another dtype than the rest
        backend = "triton" if len({h.dtype for h in states}) == 1 else "torch"
        f = run_readout(states, readout_weight, omega, plan.readout_scales, False, precision, backend)
        assert isinstance(f, Tensor)
        return f if output_bias is None else f + output_bias.to(f.dtype)
    return formula(plan, x, *tensors)  # type: ignore[arg-type]


def path(plan: Plan, backend: str, x: Tensor, tensors: Sequence[Tensor | None]) -> str:
    """Which path a call takes: "triton", "layers", "node" or "formula".

    Args:
        plan: The network.
        backend: What was asked for.
        x: Inputs.
        tensors: Omega, readout weight, output bias, weights, biases.

    Returns:
        The path's name, see :func:`network`.

    Raises:
        NotImplementedError: If a backend was named that has no code for the call.
        RuntimeError: If a backend was named that cannot run here.
    """
    device = x.device.type
    if backend != "torch" and (backend != "auto" or device == "cuda"):
        omega = tensors[0]
        assert omega is not None
        everything = (x, *tensors)
        lack = network_triton.unserved(plan, everything, x.shape[-1], omega.shape[0], backend)
        if resolve(_OP, backend, SUPPORTED, str(x.device), {"triton": lack}) == "triton":
            return "triton"
        named = [t for t in everything if t is not None]
        served = why_not("triton", str(x.device)) is None and triton_lacks(named, "auto", len(plan.widths)) is None
        # where torch's setting rounds, the one node is the exact way
        if served and (not precisions.torch_would_round(x) or any(phi.gradient is None for phi in plan.activations)):
            return "layers"
    if _ordinary_call(device) and _ordinary_tensors((x, *tensors)) and all(phi.gradient for phi in plan.activations):
        return "node"
    return "formula"


def _ordinary_call(device: str) -> bool:
    return not (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled(device)
        or transform_active()
        or getattr(forward_ad, "_current_level", -1) >= 0
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def _ordinary_tensors(tensors: Sequence[Tensor | None]) -> bool:
    first = tensors[0]
    assert first is not None
    dtype, device = first.dtype, first.device
    if (dtype is not torch.float32 and dtype is not torch.float64) or device.type not in ("cpu", "cuda"):
        return False
    return all(t is None or (type(t) in _ORDINARY and t.dtype is dtype and t.device == device) for t in tensors)


_ORDINARY = frozenset((Tensor, torch.nn.Parameter))


def _check(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    readout_weight: Tensor,
    omega: Tensor,
    output_bias: Tensor | None,
) -> None:
    check_list(_OP, "weights", weights)
    check_list(_OP, "biases", biases)
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
        if 0 in weight.shape:
            raise ValueError(f"nftk.{_OP}: weights[{i}] must have no size of 0, got {list(weight.shape)}")
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
    if not torch.is_autocast_enabled(x.device.type):
        check_same(_OP, "dtype", **present)
    check_same(_OP, "device", **present)
