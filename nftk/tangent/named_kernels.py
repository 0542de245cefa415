"""The kernels that the trNTK paper compares, by its names, with one stated normalisation each."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nftk._checks import check_choice
from nftk.modules import NFTKMLP
from nftk.tangent.empirical_ntk import empirical_ntk
from nftk.tangent.layer_kernels import LayerKernels
from nftk.tangent.modules.checks import check_model
from nftk.tangent.modules.examples import Examples, check_examples
from nftk.tangent.modules.recording import plain_torch

Inputs = Tensor | Mapping[str, Tensor]
Per = Literal["model", "module"]
Normalize = Literal["cosine", "joint"] | None
Loss = Callable[[Tensor, Tensor], Tensor]
_HOOKS = threading.RLock()
# examples whose embeddings are held at once, of each side
_AT_ONCE = 256


def trntk(
    model: nn.Module, x1: Inputs, x2: Inputs | None = None, *, per: Per = "model", normalize: Normalize = "cosine",
    **settings: Any,
) -> LayerKernels:  # fmt: skip
    r"""Trace kernel, sum_c <g_c(x), g_c(x')> over classes c, divided by the roots of its two self-kernels.

    g_c is the gradient of output c in all parameters, Omega's too. A sum, not a mean, over classes; it is normalised
    after that sum.

    Args:
        model: As for :func:`nftk.empirical_ntk`.
        x1: First inputs.
        x2: Second inputs; None: the first.
        per: ``"model"``; ``"module"``: a block for each module.
        normalize: ``"cosine"``; ``"joint"``, blocks of modules that add up to trNTK; None: trNTK0.
        settings: Others of :func:`nftk.empirical_ntk`.

    Returns:
        The kernels, reduction ``"trace"``.

    References:
        Engel et al., Faithful and Efficient Explanations for Neural Networks via Neural Tangent Kernel Surrogate
        Models, ICLR 2024, arXiv 2305.14585.

    Example:
        >>> import torch, nftk
        >>> k = nftk.tangent.trntk(torch.nn.Linear(3, 2), torch.randn(4, 3))
        >>> torch.allclose(k.diagonal(), torch.ones(1, 4))
        True
    """
    return _gradients(model, x1, x2, "trace", per, normalize, settings)


def trntk0(
    model: nn.Module, x1: Inputs, x2: Inputs | None = None, *, per: Per = "model", **settings: Any
) -> LayerKernels:  # fmt: skip
    """The trace kernel as it is: :func:`trntk` without a normalisation, with the same arguments."""
    return _gradients(model, x1, x2, "trace", per, None, settings)


def pntk(
    model: nn.Module, x1: Inputs, x2: Inputs | None = None, *, per: Per = "model", normalize: Normalize = "cosine",
    **settings: Any,
) -> LayerKernels:  # fmt: skip
    """Kernel of the sum of the outputs, <g(x), g(x')> with g = sum_c g_c, divided by the roots of its self-kernels.

    Args:
        model: As for :func:`trntk`.
        x1: First inputs.
        x2: Second inputs; None: the first.
        per: As there.
        normalize: As there; None: without, and without the literature's factor of 1/d.
        settings: Others of :func:`nftk.empirical_ntk`.

    Returns:
        The kernels, reduction ``"sum_logits"``.
    """
    return _gradients(model, x1, x2, "sum_logits", per, normalize, settings)


def _gradients(
    model: nn.Module, x1: Inputs, x2: Inputs | None, reduction: Any, per: Per, normalize: Normalize, settings: Any
) -> LayerKernels:
    own = {"include_omega": isinstance(model, NFTKMLP), **settings}
    return empirical_ntk(model, x1, x2, per=per, reduction=reduction, normalize=normalize, **own)


def loss_gradient_kernel(
    model: nn.Module,
    x1: Inputs,
    y1: Tensor,
    x2: Inputs | None = None,
    y2: Tensor | None = None,
    *,
    loss: Literal["cross_entropy"] | Loss = "cross_entropy",
    per: Per = "model",
    normalize: Normalize = "cosine",
    output_fn: Callable[[Any], Tensor] | None = None,
    **settings: Any,
) -> LayerKernels:
    """Cosine of the gradients of each example's loss, which **uses labels**, those of the second examples too.

    A baseline: unlike all other kernels here it cannot be had for an example whose label is not known.

    Args:
        model: As for :func:`trntk`.
        x1: First inputs.
        y1: Their labels, ``(n1,)``, or targets.
        x2: Second inputs; None: the first.
        y2: Their labels.
        loss: ``"cross_entropy"``, or a function of outputs and labels to losses ``(n,)``.
        per: As for :func:`trntk`.
        normalize: As there.
        output_fn: As for :func:`nftk.empirical_ntk`.
        settings: Others of :func:`nftk.empirical_ntk`.

    Returns:
        The kernels, reduction ``"trace"`` of one output.

    Raises:
        ValueError: If labels are missing, or do not fit the inputs.
    """
    op = "tangent.loss_gradient_kernel"
    if (x2 is None) is not (y2 is None):
        raise ValueError(f"nftk.{op}: x2 and y2 must be given together, got one of them")
    if isinstance(loss, str):
        check_choice(op, "loss", loss, ("cross_entropy",))
    wrapped = _Losses(model, output_fn, _cross_entropy if isinstance(loss, str) else loss)
    first, second = _labelled(op, x1, y1), None if x2 is None or y2 is None else _labelled(op, x2, y2)
    k = empirical_ntk(wrapped, first, second, per=per, reduction="trace", normalize=normalize, **settings)
    names = tuple(name.removeprefix("model.") for name in k.names)
    return LayerKernels(k.blocks, names, k.reduction, k.normalization, k.symmetric)


def _labelled(op: str, x: Inputs, y: Tensor) -> dict[str, Tensor]:
    tensors = dict(x) if isinstance(x, Mapping) else {"_nftk_x": x}
    if not isinstance(y, Tensor) or len(y) != len(next(iter(tensors.values()))):
        got = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"nftk.{op}: labels must be a tensor with an entry an example, got {got}")
    return {**tensors, "_nftk_y": y}


def _cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y, reduction="none")


class _Losses(nn.Module):
    """A model whose one output is the loss."""

    def __init__(self, model: nn.Module, output_fn: Callable[[Any], Tensor] | None, loss: Loss) -> None:
        super().__init__()
        self.model, self._output_fn, self._loss = model, output_fn, loss
        self.train(model.training)

    def forward(self, _nftk_y: Tensor, **x: Tensor) -> Tensor:
        found = self.model(x["_nftk_x"]) if "_nftk_x" in x else self.model(**x)
        if self._output_fn is not None:
            found = self._output_fn(found)
        outputs = found if isinstance(found, Tensor) else found.logits
        return self._loss(outputs, _nftk_y).unsqueeze(1)


def embedding_kernel(
    model: nn.Module,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    modules: Sequence[str] | None = None,
    per: Per = "model",
    normalize: Normalize = "cosine",
) -> LayerKernels:
    """Em: sum over modules of <out(x), out(x')>, of what each module returns, flattened; and its cosine.

    Args:
        model: Any module.
        x1: First inputs.
        x2: Second inputs; None: the first.
        modules: Names of those that count; None: all that have parameters of their own.
        per: ``"model"``, the sum; ``"module"``: a block for each.
        normalize: As for :func:`trntk`.

    Returns:
        The kernels, reduction ``"trace"``.

    Raises:
        ValueError: If there is no such module, or it returns no tensor whose first dimension is of examples.
    """
    op = "tangent.embedding_kernel"
    parameters = check_model(model, op)
    own = dict.fromkeys(name.rpartition(".")[0] for name in parameters)
    names = [name for name in own if name] if modules is None else list(modules)
    return _of_embeddings(op, model, x1, x2, names, per, normalize, inputs=False)


def conjugate_kernel(
    model: nn.Module,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    module: str | None = None,
    normalize: Normalize = "cosine",
) -> LayerKernels:
    """CK: <h(x), h(x')> of the last embedding h, which is what the readout takes in; and its cosine.

    Args:
        model: Any module.
        x1: First inputs.
        x2: Second inputs; None: the first.
        module: Name of the readout; None: the last ``nn.Linear`` among the modules.
        normalize: As for :func:`trntk`.

    Returns:
        The kernel, reduction ``"trace"``.

    Raises:
        ValueError: If there is no such module, or it takes no tensor whose first dimension is of examples.
    """
    op = "tangent.conjugate_kernel"
    check_model(model, op)
    linear = [name for name, each in model.named_modules() if isinstance(each, nn.Linear)]
    if module is None and not linear:
        raise ValueError(f"nftk.{op}: module must be given for a model without an nn.Linear, got None")
    return _of_embeddings(
        op, model, x1, x2, [linear[-1] if module is None else module], "model", normalize, inputs=True
    )


def _of_embeddings(
    op: str, model: nn.Module, x1: Any, x2: Any, names: list[str], per: Per, normalize: Normalize, *, inputs: bool
) -> LayerKernels:
    check_choice(op, "per", per, ("model", "module"))
    parameter = next(model.parameters())
    first = check_examples(op, "x1", x1, parameter.dtype, parameter.device)
    second = first if x2 is None else check_examples(op, "x2", x2, parameter.dtype, parameter.device)
    known = dict(model.named_modules())
    for name in names:
        if name not in known:
            raise ValueError(f"nftk.{op}: modules must be among those of the model, got {name!r}")
    blocks = parameter.new_zeros(len(names), len(first), len(second))
    own = [parameter.new_zeros(len(names), len(x)) for x in (first, second)]
    for top in range(0, len(first), _AT_ONCE):
        rows = _embeddings(op, model, first[top : top + _AT_ONCE], names, inputs)
        for start in range(0, len(second), _AT_ONCE):
            columns = _embeddings(op, model, second[start : start + _AT_ONCE], names, inputs)
            for i, (a, b) in enumerate(zip(rows, columns, strict=True)):
                blocks[i, top : top + len(a), start : start + len(b)] = a @ b.mT
                own[1][i, start : start + len(b)] = b.square().sum(1)
        for i, a in enumerate(rows):
            own[0][i, top : top + len(a)] = a.square().sum(1)
    if per == "model":
        blocks, names = blocks.sum(0, keepdim=True), ["model"]
        own = [x.sum(0, keepdim=True) for x in own]
    k = LayerKernels((blocks + blocks.mT) / 2 if x2 is None else blocks, tuple(names), "trace", None, x2 is None)
    return k if normalize is None else k.normalize(normalize, *own)


def _embeddings(op: str, model: nn.Module, x: Examples, names: list[str], inputs: bool) -> list[Tensor]:
    """What each module returns, or takes, of every example, [n, all entries]; of several calls all."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    caller = threading.get_ident()

    def note(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_: Any, args: Any, out: Any) -> None:
            if threading.get_ident() != caller:
                return
            tensors = [t for t in (args if inputs else out if isinstance(out, tuple) else (out,))]
            given = tensors[0] if tensors else None
            if not isinstance(given, Tensor) or given.ndim == 0 or not len(x) or given.shape[0] % len(x):
                got = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
                what = "take" if inputs else "return"
                raise ValueError(
                    f"nftk.{op}: modules must {what} a tensor with examples along its first dimension, got {got} at "
                    f"{name!r}"
                )
            found[name].append(given.detach().reshape(len(x), -1).clone())

        return hook

    modules = dict(model.named_modules())
    with _HOOKS, plain_torch(), torch.no_grad():
        handles = [modules[name].register_forward_hook(note(name)) for name in names]
        try:
            x.given_to(model)
        finally:
            for handle in handles:
                handle.remove()
    for name, calls in found.items():
        if not calls:
            raise ValueError(f"nftk.{op}: modules must be called by the model, got {name!r}, which is not")
    return [torch.cat(calls, dim=1) for calls in found.values()]
