"""empirical_ntk: the tangent kernel of a network as it stands, kept apart by layer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nftk._checks import check_shape
from nftk.ops.tangent_gram_torch import as_blocks, as_memory, formula
from nftk.tangent.blocks import Rectangle, blocks_of, scaled
from nftk.tangent.blocks import self_kernels as self_kernels_of
from nftk.tangent.chain import Chain
from nftk.tangent.given_output import given_output
from nftk.tangent.layer_kernels import LayerKernels
from nftk.tangent.modules.examples import OutputFn
from nftk.tangent.plan import check_budget
from nftk.tangent.progress import Line
from nftk.tangent.request import Request, detached, prepare
from nftk.tangent.resumable import compute_to_file
from nftk.tangent.sweep import Sweep
from nftk.tangent.walk import tangents

_OP = "empirical_ntk"
Progress = bool | None | Callable[[int, int], None]


def empirical_ntk(
    model: nn.Module,
    x1: Tensor | Mapping[str, Tensor],
    x2: Tensor | Mapping[str, Tensor] | None = None,
    *,
    per: Literal["layer", "module", "model"] = "layer",
    reduction: Literal["full", "trace", "diagonal", "sum_logits"] = "full",
    normalize: Literal["cosine", "joint"] | None = None,
    weights: Tensor | Sequence[float] | None = None,
    include_omega: bool = False,
    out: Any = None,
    memory_budget: int | None = None,
    backend: str = "auto",
    precision: str = "highest",
    progress: Progress = False,
    differentiable: bool = False,
    output_fn: OutputFn | None = None,
) -> LayerKernels:
    r"""Empirical neural tangent kernel of a network at its present parameters, kept apart by layer.

    .. math::
        \Theta_l[i,j](x,x') = 1_{i=j} \langle h_l, h_l' \rangle + \sum_{k \le l} (\langle h_{k-1}, h_{k-1}' \rangle + 1)
        \langle \delta_{l,k,i}, \delta_{l,k,j}' \rangle, \qquad \delta_{l,k,i} = \partial f_{l,i} / \partial g_k

    Exact, and without a Jacobian over parameters: one pass forward, one walk back in which all readouts go together,
    and then tiles of matrix products. All parameters count, those that are frozen too.

    Args:
        model: An :class:`nftk.NFTKMLP`, or an ``nn.Sequential`` of ``nn.Linear`` and elementwise activations; in eval
            mode where it has a dropout. A callable activation is differentiated by autograd. With ``per="module"`` and
            ``"model"`` any module that treats every example by itself: what its parameters are used for is seen in a
            run of three examples and checked against autograd; :func:`nftk.tangent.plan` tells what was found.
        x1: First inputs, ``(n1, m)``, in the model's dtype and on its device; for any module its input of any shape
            and dtype, or a mapping of its keyword arguments, examples along the first dimension.
        x2: Second inputs, ``(n2, m)``. None: the first; then half of the work is done, and the result is exactly
            symmetric.
        per: ``"layer"``: the kernel Theta_l of each readout f_l; on a plain network, its one kernel. ``"module"``: what
            each module's own parameters add to the kernel of the output f. ``"model"``: their sum, the kernel of f.
        reduction: Of the (d, d) block of a pair: ``"full"``; ``"trace"``, the sum over i = j (trNTK);
            ``"diagonal"``, i = j apart; ``"sum_logits"``, the sum of all entries (d times the literature's pNTK).
        normalize: ``"cosine"``: each block is divided by the roots of its own two self-kernels, in full and diagonal
            output by output. ``"joint"``: all blocks by those of their sum, so that they still add up. A self-kernel
            of 0 makes its row 0.
        weights: One number a block: only the weighted sum of the blocks is formed, tile by tile.
        include_omega: Whether Omega counts among the parameters of f (``per="module"`` and ``"model"``).
        out: Where to write: a tensor or a numpy array or memmap of the shape and dtype of the result's ``blocks``.
            Fastest in the memory order of :class:`nftk.LayerKernels`. Or the path of a file that is not there yet, in
            the form of :meth:`LayerKernels.save`: killed or interrupted, the same call goes on after the last tile that
            has reached the disk.
        memory_budget: Bytes for everything beside model, inputs and output; None for half of what is free. The result
            does not depend on it beyond rounding.
        backend: ``"auto"``, ``"cuda"`` or ``"torch"``; see :func:`nftk.ops.tangent_gram`.
        precision: Of float32 products on a GPU: ``"highest"``, ``"tf32"`` or ``"bf16"``, as there.
        progress: True for a line on standard error with an estimate of the time left; or a function called with the
            pairs of examples done and all of them.
        differentiable: Whether the result keeps its graph, in torch operations with every product whole in memory:
            gradients in the parameters and the inputs, of any order. Goes with backend ``"auto"`` and ``"torch"``,
            without ``out`` or ``memory_budget``, and with an NFTKMLP or a plain network.
        output_fn: Takes what the model returns to the outputs ``(n, d)``; None: a tensor, or its ``.logits``.

    Returns:
        The kernels, detached (but with ``differentiable``). float64 stays float64; a network in 16 bits is taken over
        into float32. With a path they are on the CPU, read from the file when they are used.

    Raises:
        ValueError: If inputs do not fit, are not finite, or settings do not go together; if dropout is active; if
            ``memory_budget`` is too small; if ``out`` is a file already, or was begun with another kernel.
        TypeError: If an input is no floating tensor, or the model no module.
        NotImplementedError: If the model is another than above, or with ``per="layer"`` uses a module twice or has
            hooks; if ``backend`` has no code.
        RuntimeError: If ``backend`` cannot run here.

    Memory:
        Beside the output at most ``memory_budget``: states and deltas of as many examples as fit, some (d, d) tiles.
        Not counted: a float32 copy of a network in 16 bits, what autograd keeps inside a callable activation, and what
        functions of torch take inside.

    References:
        Alemohammad et al., NFT-K: Non-Fungible Tangent Kernels, ICASSP 2022, arXiv 2110.04945, section 3; Novak et al.,
        Fast Finite Width Neural Tangent Kernel, ICML 2022, arXiv 2206.08720.

    Example:
        >>> import torch, nftk
        >>> model, x = nftk.NFTKMLP(4, [16, 16], 3), torch.randn(6, 4)
        >>> k = nftk.empirical_ntk(model, x)
        >>> k.blocks.shape  # two layers, 6 x 6 examples, 3 x 3 outputs
        torch.Size([2, 6, 6, 3, 3])
        >>> trace = nftk.empirical_ntk(model, x, reduction="trace")
        >>> torch.allclose(trace.blocks, k.blocks.diagonal(dim1=3, dim2=4).sum(-1), rtol=1e-4)
        True
    """
    network, first, second = prepare(model, x1, x2, _OP, per=per, output_fn=output_fn)
    device = network.device
    request = Request.checked(
        network, per, reduction, normalize, weights, include_omega, precision, backend, device=device, op=_OP
    )
    if differentiable:
        if out is not None or memory_budget is not None or request.backend != "torch":
            raise ValueError(
                f"nftk.{_OP}: differentiable must go without out and memory_budget and with backend 'torch', got "
                f"out={'None' if out is None else 'given'}, memory_budget={memory_budget} and {request.backend!r}"
            )
        if isinstance(weights, Tensor) and weights.requires_grad:
            raise ValueError(
                f"nftk.{_OP}: weights must not require gradients, got some that do; combine(omega) is differentiable"
            )
        if not isinstance(network, Chain):
            raise NotImplementedError(
                f"nftk.{_OP}: differentiable must go with an NFTKMLP or a plain multilayer perceptron, got "
                f"{type(model).__name__}"
            )
        with torch.autocast(device.type, enabled=False):
            return _differentiable(network, first, second, request)
    network, first, second = detached(network, first, second)
    budget, tell = check_budget(memory_budget, device, _OP), _teller(progress)
    if isinstance(out, str | Path):
        compute_to_file(network, first, second, request, Path(out), budget=budget, progress=tell, op=_OP)
        return LayerKernels.load(out)
    given = None if out is None else given_output(_OP, out)
    sweep = Sweep(network, first, second, request, budget=budget, op=_OP)
    shape = sweep.memory_shape()
    if given is None:
        memory = sweep.like.new_empty(shape)
    else:
        blocks_shape = tuple(as_blocks(request.form, torch.empty(shape, device="meta")).shape)
        check_shape(_OP, "out", given, blocks_shape)
        if given.dtype is not network.dtype:
            raise ValueError(f"nftk.{_OP}: out must have dtype {network.dtype}, as the kernels, got {given.dtype}")
        if any(size > 1 and stride == 0 for size, stride in zip(given.shape, given.stride(), strict=True)):
            raise ValueError(f"nftk.{_OP}: out must have a place for every entry, got strides {given.stride()}")
        memory = as_memory(request.form, given)
    sweep.run(memory, tile_done=None if tell is None else lambda tile, done, total: tell(done, total))
    return LayerKernels(as_blocks(request.form, memory), tuple(sweep.names), reduction, normalize, x2 is None)


def self_kernels(
    model: nn.Module,
    x: Tensor | Mapping[str, Tensor],
    *,
    per: Literal["layer", "module", "model"] = "layer",
    reduction: Literal["full", "trace", "diagonal", "sum_logits"] = "full",
    include_omega: bool = False,
    memory_budget: int | None = None,
    output_fn: OutputFn | None = None,
) -> Tensor:
    """Kernels of every example with itself, without those of any pair; what :meth:`LayerKernels.normalize` wants.

    Args:
        model: As for :func:`nftk.empirical_ntk`.
        x: Inputs, ``(n, m)``.
        per: As there.
        reduction: As there.
        include_omega: As there.
        memory_budget: As there.
        output_fn: As there.

    Returns:
        ``(L, n)``; for diagonal and full ``(L, n, d)``, the blocks' diagonals.

    Raises:
        ValueError: As there.

    Example:
        >>> import torch, nftk
        >>> model, x = nftk.NFTKMLP(4, [16], 3), torch.randn(6, 4)
        >>> nftk.tangent.self_kernels(model, x).shape
        torch.Size([1, 6, 3])
    """
    op = "tangent.self_kernels"
    network, given, _ = prepare(model, x, None, op, per=per, output_fn=output_fn)
    request = Request.checked(
        network, per, reduction, None, None, include_omega, "highest", "torch", device=network.device, op=op
    )
    network, given, _ = detached(network, given, None)
    sweep = Sweep(network, given, None, request, budget=check_budget(memory_budget, network.device, op), op=op)
    found = sweep.self_kernels(given)
    if per == "model":
        found = found.sum(0, keepdim=True)
    return found if reduction in ("full", "diagonal") else found[..., 0]


def _differentiable(chain: Chain, x1: Tensor, x2: Tensor | None, request: Request) -> LayerKernels:
    """Everything at once, in operations that autograd follows."""
    sweep = Sweep(chain, x1, x2, request, budget=2**62, op=_OP)
    blocks, form = blocks_of(chain, request.per, request.include_omega), request.form
    outputs = [0] * len(blocks) if sweep.one_output else list(range(len(blocks)))
    wanted = range(len(blocks)) if request.per == "layer" else None
    kinds = {"summed": request.reduction == "sum_logits", "with_readouts": request.include_omega}
    left = tangents(chain, x1, wanted, **kinds)
    right = left if x2 is None else tangents(chain, x2, wanted, **kinds)
    scales: tuple[Tensor | None, Tensor | None] = (None, None)
    if request.normalize is not None or request.weights is not None:
        squares: list[Tensor | None] = [None, None]
        if request.normalize is not None:
            squares = [self_kernels_of(chain, blocks, side, form=form) for side in (left, right)]
        scales = sweep.scales(*squares)
        left, right = scaled(left, blocks, scales[0]), scaled(right, blocks, scales[1])
    rectangle = Rectangle(chain, left, right)
    identities = rectangle.identities(blocks, outputs, *scales)
    memory = formula(rectangle.terms(blocks, outputs), form, x2 is None, sweep.memory_shape(), x1, identities)
    return LayerKernels(as_blocks(form, memory), tuple(sweep.names), request.reduction, request.normalize, x2 is None)


def _teller(progress: Progress) -> Callable[[int, int], None] | None:
    if progress is False or progress is None:
        return None
    tell = Line() if progress is True else progress
    if not callable(tell):
        raise TypeError(f"nftk.{_OP}: progress must be True, False or a function of two numbers, got {progress!r}")
    return tell
