"""Layerwise tangent kernels for PyTorch: networks with a readout on every hidden layer."""

import importlib
from typing import TYPE_CHECKING, Any

from nftk import constraints, ops
from nftk.modules import NFTKMLP
from nftk.training import History, evaluate, fit

if TYPE_CHECKING:
    from nftk import attribution, data, interpret, reference, regression, surrogate, tangent
    from nftk.interpret.importance import importance
    from nftk.interpret.plot_omega import plot_omega
    from nftk.regression.kernel_prediction import kernel_prediction
    from nftk.regression.kernel_ridge import KernelRidge
    from nftk.regression.multiple_kernel_ridge import MultipleKernelRidge
    from nftk.tangent.empirical_ntk import empirical_ntk
    from nftk.tangent.infinite_ntk import infinite_ntk
    from nftk.tangent.layer_kernels import LayerKernels

__version__ = "0.1.0.dev0"
__all__ = [
    "History",
    "KernelRidge",
    "LayerKernels",
    "MultipleKernelRidge",
    "NFTKMLP",
    "attribution",
    "constraints",
    "data",
    "empirical_ntk",
    "evaluate",
    "fit",
    "importance",
    "infinite_ntk",
    "interpret",
    "kernel_prediction",
    "ops",
    "plot_omega",
    "reference",
    "regression",
    "surrogate",
    "tangent",
]

# imported when first asked for: one who trains a network need not wait for what looks at it afterwards
_LATER = {
    "KernelRidge": "regression",
    "LayerKernels": "tangent",
    "MultipleKernelRidge": "regression",
    "empirical_ntk": "tangent",
    "importance": "interpret",
    "infinite_ntk": "tangent",
    "kernel_prediction": "regression",
    "plot_omega": "interpret",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        found = getattr(importlib.import_module(f"nftk.{_LATER[name]}"), name)
    elif name in __all__:
        found = importlib.import_module(f"nftk.{name}")
    else:
        raise AttributeError(f"module 'nftk' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
