"""nftk info: what runs here, and for what does not, why and what would mend it."""

import importlib.metadata
import os
import platform
from typing import Any

import torch

import nftk
from nftk import _extension
from nftk._dispatch import BACKENDS, why_not
from nftk.ops.explain import explain

_OPTIONAL = {
    "typer": "app",
    "rich": "app",
    "matplotlib": "app",
    "scikit-learn": "app",
    "plotly": "app",
    "tokenizers": "text",
}
_DEVICE = {"cpp": "cpu"}  # all others are asked for a GPU
# the paper's four networks, and one for each thing that the kernels do not serve
_NETWORKS: dict[str, dict[str, Any]] = {
    "784-[256]*10-10": {"in_features": 784, "hidden_features": [256] * 10, "out_features": 10},
    "784-[256]*20-10": {"in_features": 784, "hidden_features": [256] * 20, "out_features": 10},
    "768-[128]*5-2": {"in_features": 768, "hidden_features": [128] * 5, "out_features": 2},
    "768-[128]*10-2": {"in_features": 768, "hidden_features": [128] * 10, "out_features": 2},
    "784-[256]*10-100": {"in_features": 784, "hidden_features": [256] * 10, "out_features": 100},
    "784-[2048]*4-10": {"in_features": 784, "hidden_features": [2048] * 4, "out_features": 10},
    "784-[256]*2-10, relu and tanh": {
        "in_features": 784, "hidden_features": [256] * 2, "out_features": 10, "activation": ["relu", "tanh"],
    },
    "784-[256]*10-10, float64": {
        "in_features": 784, "hidden_features": [256] * 10, "out_features": 10, "dtype": torch.float64,
    },
}  # fmt: skip


def info() -> dict[str, Any]:
    """Versions, devices, backends and optional packages, ready for JSON."""
    return {
        "nftk": nftk.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cpu_threads": torch.get_num_threads(),
        "devices": _devices(),
        "backends": {
            name: _state(why_not(name, "cpu" if name == "cpp" else "cuda")) for name in BACKENDS if name != "auto"
        },
        "nftk._C": _compiled(),
        "with backend='auto'": {"on a CPU": explain(784, [256] * 10, 10, device="cpu").why} | _networks(),
        "packages": {name: _package(name, extra) for name, extra in _OPTIONAL.items()},
        "NFTK_DATA": os.environ.get("NFTK_DATA"),
    }


def _networks() -> dict[str, str]:
    """Which kernels "auto" takes for some networks on a GPU where they run, and why."""
    served = {name: explain(**network) for name, network in _NETWORKS.items()}
    return {f"on a GPU, {name}": f"{found.path}: {found.why}" for name, found in served.items()}


def _devices() -> dict[str, Any]:
    found: dict[str, Any] = {"cpu": _state(None)}
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            found[f"cuda:{i}"] = {"usable": True, "name": torch.cuda.get_device_name(i)}
    elif torch.version.cuda is None:
        found["cuda"] = _state(
            "this torch is built without CUDA; install the CUDA build that pytorch.org names for your system"
        )
    else:
        found["cuda"] = _state(
            f"torch has CUDA {torch.version.cuda} but finds no GPU; `nvidia-smi` tells whether the driver does"
        )
    return found


def _compiled() -> dict[str, Any]:
    """The parts of nftk._C, whether or not a GPU is here."""
    found = {"C++": _state(_extension.NO_CPP), "CUDA": _state(_extension.NO_CUDA)}
    built = _extension.BUILT
    if built is not None:
        found["C++"] |= {"compiler": built["compiler"], "vectors": built["vectors"]}
        if built["cuda"]:
            found["CUDA"] |= {"version": built["cuda_version"], "for": ", ".join(built["architectures"])}
    return found


def _package(name: str, extra: str) -> dict[str, Any]:
    try:
        return {"usable": True, "version": importlib.metadata.version(name)}
    except importlib.metadata.PackageNotFoundError:
        return _state(f"not installed; run `pip install 'nftk[{extra}]'`")


def _state(why_not: str | None) -> dict[str, Any]:
    return {"usable": True} if why_not is None else {"usable": False, "why": why_not}
