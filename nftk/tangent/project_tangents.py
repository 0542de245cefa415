"""project_tangents: random projections of a network's tangents, for kernels of many examples."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nftk._checks import check_choice
from nftk._dispatch import resolve
from nftk.ops.project import SUPPORTED, checked_matrix
from nftk.tangent.chain import Chain
from nftk.tangent.chain_projection import ChainProjection
from nftk.tangent.choose_k import KINDS
from nftk.tangent.feature_file import FeatureFile, held
from nftk.tangent.modules.examples import Examples, OutputFn
from nftk.tangent.modules.network import Network
from nftk.tangent.modules.projection import ModuleProjection
from nftk.tangent.plan import check_budget
from nftk.tangent.progress import Line
from nftk.tangent.projected_tangents import ProjectedTangents, factors
from nftk.tangent.request import detached, prepare
from nftk.tangent.tangent_projection import PIECE

_OP = "tangent.project_tangents"
# examples at a time: P is made anew for every so many
_MOST = 512


def project_tangents(
    model: nn.Module,
    x: Tensor | Mapping[str, Tensor],
    k: int,
    *,
    per: Literal["layer", "module", "model"] = "layer",
    kind: Literal["rademacher", "gaussian", "sjlt", "kronecker"] = "rademacher",
    seed: int = 0,
    reduction: Literal["trace", "sum_logits", "full"] = "trace",
    nonzeros: int = 4,
    out: str | Path | None = None,
    memory_budget: int | None = None,
    backend: str = "auto",
    progress: bool | Callable[[int, int], None] = False,
    output_fn: OutputFn | None = None,
) -> ProjectedTangents:
    r"""Random projections of the gradients of a network's outputs, for kernels of many examples.

    .. math:: \phi_{l,i}(x) = P \, \partial f_{l,i}(x) / \partial \theta, \qquad
        E \langle \phi_{l,i}(x), \phi_{l,j}(x') \rangle = \Theta_l[i,j](x, x')

    Of a linear map gradients are never formed: that of a weight is delta (x) h, so a row of the weight needs P's
    columns of that row times h, once for all outputs and layers. P's columns are those of :func:`nftk.ops.project`. In
    a multilayer perceptron they are the parameters in the order of the layers (each row of a weight, and its bias),
    then of the readouts; in any other module the parameters in the order of ``named_parameters()``, whose gradients are
    found as for :func:`nftk.empirical_ntk`, and formed where they are smaller than their factors.

    Args:
        model: An :class:`nftk.NFTKMLP`, or a plain multilayer perceptron, as for :func:`nftk.empirical_ntk`; with
            ``per="module"`` and ``"model"`` any module, as there.
        x: Inputs, ``(n, m)``; for any module of any shape, or a mapping of its keyword arguments, as there.
        k: Size of a projection; :func:`choose_k` finds it.
        per: ``"layer"``: of each readout f_l. ``"module"``: what each module's parameters add to f. ``"model"``: of f.
        kind: As for :func:`nftk.ops.project`; or ``"kronecker"``: P1 delta (x) P2 h with signs of sizes k1 k2 = k,
            nearly free, but with an error as if k were k / (k1 + k2 + 2); for linear maps, and convolutions of one
            group, summed over positions.
        seed: Which P.
        reduction: Which kernel is meant, as there: ``"trace"`` and ``"full"`` need all outputs, ``"sum_logits"`` one.
        nonzeros: Of ``"sjlt"``.
        out: A folder to write to, mapped, with a header; where it was begun with the same network, inputs and settings
            it is finished, to the same bits. None: in memory.
        memory_budget: Bytes for what is held of examples at a time and for pieces; None for half of what is free. At
            most 512 examples are held. Pieces take at most 16 MiB of float32; with ``per="module"`` and ``"model"``
            48 MiB; twice that in float64.
        backend: Of the projection.
        progress: True for a line on standard error; or a function of the examples done and all of them.
        output_fn: Takes what the model returns to the outputs ``(n, d)``, as there.

    Returns:
        The features, in the dtype of the network (float32 for 16 bits), and their errors.

    Raises:
        ValueError: If inputs do not fit or settings are out of range; if ``out`` holds something else.
        TypeError: If an input is of another kind.
        NotImplementedError: If the model is another than above, or for ``"kronecker"`` a parameter is no linear map's;
            if ``backend`` has no code.
        RuntimeError: If ``backend`` cannot run here.

    References:
        Park et al., TRAK, ICML 2023, arXiv 2303.14186; Engel et al., Faithful and Efficient Explanations for Neural
        Networks via NTK Surrogate Models, ICLR 2024, arXiv 2305.14585, appendix.

    Example:
        >>> import torch, nftk
        >>> model, x = nftk.NFTKMLP(4, [8], 3), torch.randn(5, 4)
        >>> nftk.tangent.project_tangents(model, x, 64, kind="kronecker", reduction="full").kernel().blocks.shape
        torch.Size([1, 5, 5, 3, 3])
    """
    check_choice(_OP, "per", per, ("layer", "module", "model"))
    network, inputs, _ = prepare(model, x, None, _OP, per=per, output_fn=output_fn)
    check_choice(_OP, "kind", kind, KINDS)
    check_choice(_OP, "reduction", reduction, ("trace", "sum_logits", "full"))
    dense = "rademacher" if kind == "kronecker" else kind
    matrix = checked_matrix(_OP, k, seed, dense, 0, 1, nonzeros, 0)
    if kind == "kronecker" and matrix.k > 3 and factors(matrix.k)[0] == 1:
        raise ValueError(f"nftk.{_OP}: k must be a product of two numbers for kind 'kronecker', got {k}")
    double = network.dtype is torch.float64
    lacks = {"triton": "torch.float64" if double else "kind 'sjlt'" if kind == "sjlt" else None}
    chosen = resolve(_OP, backend, SUPPORTED, str(network.device), lacks)
    tell = Line("features") if progress is True else progress or None
    if tell is not None and not callable(tell):
        raise TypeError(f"nftk.{_OP}: progress must be True, False or a function of two numbers, got {progress!r}")
    network, inputs, _ = detached(network, inputs, None)
    how = per, kind, reduction == "sum_logits", matrix.k, matrix.seed, matrix.nonzeros, chosen
    work = ChainProjection(network, *how) if isinstance(network, Chain) else ModuleProjection(network, *how)
    n, like = len(inputs), torch.empty(0, dtype=network.dtype, device=network.device)
    settings: dict[str, Any] = {
        "names": list(work.names), "reduction": reduction, "per": per, "kind": kind, "seed": matrix.seed,
        "nonzeros": matrix.nonzeros, "columns": work.columns, "order": work.order,
    }  # fmt: skip
    shapes = work.shapes(n)
    at_once = _at_once(work, check_budget(memory_budget, network.device, _OP), like.element_size())
    if out is None:
        arrays = [like.new_zeros(shape) for shape in shapes]
        for start in range(0, n, at_once):
            stop = min(start + at_once, n)
            work.fill([a[:, start:stop] for a in arrays], inputs[start:stop])
            if tell is not None:
                tell(stop, n)
        features, own = arrays
    else:
        folder = Path(out).resolve()
        told = settings | {"k": matrix.k, "examples": n, "dtype": str(like.dtype)}
        with held(_OP, folder):
            file = FeatureFile(_OP, folder, told, _identity(network, inputs, chosen), shapes, like.dtype, at_once)
            for start in range(file.done, n, file.at_once):
                stop = min(start + file.at_once, n)
                held_here = [like.new_zeros(shape) for shape in work.shapes(stop - start)]
                work.fill(held_here, inputs[start:stop])
                for target, source in zip(file.tensors(), held_here, strict=True):
                    target[:, start:stop] = source.to(target.device)
                file.note(stop, last=stop == n)
                if tell is not None:
                    tell(stop, n)
        return ProjectedTangents.load(folder)
    return ProjectedTangents(features, own, **settings | {"names": work.names})


def _at_once(work: ChainProjection | ModuleProjection, budget: int, itemsize: int) -> int:
    """Examples that fit a budget, beside a piece."""
    each, piece = work.entries(), work.pieces * PIECE
    found = (budget // itemsize - piece) // each
    if found < 1:
        least = (each + piece) * itemsize
        raise ValueError(f"nftk.{_OP}: memory_budget must be at least {least} bytes for this network, got {budget}")
    return min(found, _MOST)


def _identity(network: Chain | Network, x: Any, backend: str) -> str:
    """Checksum of everything beside the settings that the numbers depend on."""
    total = hashlib.sha256(backend.encode())

    def add(t: Tensor) -> Tensor:
        total.update(f"{tuple(t.shape)} {t.dtype}".encode())
        total.update(t.detach().cpu().contiguous().numpy().data)
        return t

    if isinstance(network, Chain):
        network.map(add)
        layers = [(layer.name, layer.activation.name, layer.scale, layer.bias_scale) for layer in network.layers]
        told: list[Any] = [layers, [(r.layer, r.scale, r.bias) for r in network.readouts]]
    else:
        told = [*network.describe(add), list(x.tensors)]
    total.update(json.dumps(told).encode())
    for t in x if isinstance(x, Examples) else (x,):
        add(t)
    return total.hexdigest()
