"""What kernel is asked for, checked."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nftk._checks import check_choice, check_number, check_tensor, is_finite
from nftk._dispatch import resolve
from nftk.ops import precision as precisions
from nftk.ops.network_formula import is_vmapped
from nftk.ops.tangent_gram import SUPPORTED
from nftk.tangent.chain import Chain, chain_of
from nftk.tangent.modules.examples import OutputFn
from nftk.tangent.modules.network import Network
from nftk.tangent.modules.study import network_of

# how ops.tangent_gram sums: sum_logits is the trace of d = 1, its outputs being summed before
_FORMS = {"full": "full", "trace": "trace", "diagonal": "diagonal", "sum_logits": "trace"}
_PER = ("layer", "module", "model")
_NORMALIZE = ("cosine", "joint")


@dataclasses.dataclass(frozen=True)
class Request:
    """Which blocks, reduced and normalised how, and computed by what."""

    per: str
    reduction: str
    normalize: str | None
    weights: tuple[float, ...] | None
    include_omega: bool
    precision: str
    backend: str

    @classmethod
    def checked(
        cls,
        network: Chain | Network,
        per: str,
        reduction: str,
        normalize: str | None,
        weights: Any,
        include_omega: bool,
        precision: str,
        backend: str,
        *,
        device: torch.device,
        op: str,
    ) -> "Request":
        """Raise unless the settings go together and with the network."""
        check_choice(op, "per", per, _PER)
        check_choice(op, "reduction", reduction, _FORMS)
        if normalize is not None:
            check_choice(op, "normalize", normalize, _NORMALIZE)
        if include_omega and (per == "layer" or not network.has_omega):
            rule = "per='module' or 'model', because Omega's tangent is that of f" if per == "layer" else "an NFTKMLP"
            raise ValueError(f"nftk.{op}: include_omega must go with {rule}, got per={per!r}")
        request = cls(
            per,
            reduction,
            normalize,
            None,
            bool(include_omega),
            precisions.canonical(op, precision),
            resolve(op, backend, SUPPORTED, str(device)),
        )
        return (
            request if weights is None else dataclasses.replace(request, weights=request._weights(network, weights, op))
        )

    def _weights(self, network: Chain | Network, weights: Any, op: str) -> tuple[float, ...]:
        if self.per == "model":
            raise ValueError(f"nftk.{op}: weights must go with per='layer' or 'module', got per='model'")
        values = weights.tolist() if hasattr(weights, "tolist") else weights
        size = len(self.block_names(network))
        if not isinstance(values, list | tuple) or len(values) != size or getattr(weights, "ndim", 1) != 1:
            got = getattr(weights, "shape", None)
            told = list(got) if got is not None else values
            raise ValueError(f"nftk.{op}: weights must have {size} numbers, one a block, got {told}")
        return tuple(check_number(op, f"weights[{i}]", w, -math.inf) for i, w in enumerate(values))

    @property
    def form(self) -> str:
        """The form of ops.tangent_gram."""
        return _FORMS[self.reduction]

    @property
    def one_output(self) -> bool:
        """Whether all blocks are summed."""
        return self.per == "model" or self.weights is not None

    def block_names(self, network: Chain | Network) -> tuple[str, ...]:
        """What the blocks are of."""
        return network.block_names(self.per, self.include_omega)

    def names(self, network: Chain | Network) -> tuple[str, ...]:
        """Names of the outputs."""
        if self.one_output:
            return ("model",) if self.per == "model" else ("weighted sum",)
        return self.block_names(network)


def prepare(
    model: nn.Module, x1: Any, x2: Any, op: str, *, per: str = "layer", output_fn: OutputFn | None = None
) -> tuple[Chain | Network, Any, Any]:
    """Read the network and check the inputs; 16 bits are taken over into float32."""
    check_choice(op, "per", per, _PER)
    if output_fn is not None and per == "layer":
        raise ValueError(f"nftk.{op}: output_fn must go with per='module' or 'model', got per='layer'")
    if output_fn is not None and not callable(output_fn):
        raise TypeError(f"nftk.{op}: output_fn must be a function of what the model returns, got {output_fn!r}")
    if per != "layer" and (output_fn is not None or isinstance(x1, Mapping)):
        return network_of(model, x1, x2, output_fn, op)
    try:
        chain = chain_of(model, op)
    except NotImplementedError as refusal:
        if per == "layer":
            raise NotImplementedError(f"{refusal}; per='module' and per='model' take any module") from None
        return network_of(model, x1, x2, output_fn, op)
    first = _check_input(chain, "x1", x1, op)
    second = None if x2 is None else _check_input(chain, "x2", x2, op)
    if chain.dtype in (torch.float16, torch.bfloat16):
        chain, first = chain.map(Tensor.float), first.float()
        second = None if second is None else second.float()
    return chain, first, second


def detached(network: Chain | Network, x1: Any, x2: Any) -> tuple[Chain | Network, Any, Any]:
    """Cut the parameters and inputs off from any graph."""
    if isinstance(network, Network):
        # it cuts off both as it runs
        return network, x1, x2
    return network.map(Tensor.detach), x1.detach(), None if x2 is None else x2.detach()


def _check_input(chain: Chain, name: str, x: Any, op: str) -> Tensor:
    check_tensor(op, name, x)
    if chain.flattens and x.ndim > 2:
        x = x.flatten(1)
    if x.ndim != 2 or x.shape[1] != chain.in_features:
        raise ValueError(f"nftk.{op}: {name} must have shape [n, {chain.in_features}], got {list(x.shape)}")
    for attribute in ("dtype", "device"):
        wanted, got = getattr(chain, attribute), getattr(x, attribute)
        if wanted != got:
            raise ValueError(f"nftk.{op}: {name} must have the model's {attribute}, {wanted}, got {got}")
    if is_vmapped(x):
        raise NotImplementedError(f"nftk.{op}: {name} must be all inputs at once, got one inside torch.vmap")
    if not is_finite(x):
        raise ValueError(f"nftk.{op}: {name} must be finite, got NaN or infinity")
    return x  # type: ignore[no-any-return]
