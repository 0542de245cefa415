"""Backend choice, made once per call and above the PyTorch dispatcher.

Triton kernels and the CUDA extension share the CUDA dispatch key, so PyTorch cannot choose between them.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping

import torch

from nftk import _extension

BACKENDS = ("auto", "torch", "cpp", "triton", "cuda")
# tuples of pointers as kernel arguments came with it
_OLDEST_TRITON = (3, 3)


def _triton_package() -> str | None:
    """Return None where a fit Triton is installed, without importing it."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; on Linux run `pip install triton`"
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_TRITON:
        oldest = ".".join(map(str, _OLDEST_TRITON))
        return f"Triton {version} is older than {oldest}; run `pip install --upgrade torch triton`"
    return None


# asked once, at import, because torch.compile cannot trace the questions
_TRITON_PACKAGE = _triton_package()
# Triton's interpreter runs the kernels on any machine, for tests
_TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_NO_CPP, _NO_CUDA = _extension.NO_CPP, _extension.NO_CUDA


def why_not(backend: str, device: str) -> str | None:
    """Return None where this machine can run a backend on a device, else one sentence a user can act on.

    device is a kind of device, or with its number, "cuda:1", that very one.
    """
    kind = device.partition(":")[0]
    if backend == "cpp":
        on_cpu = kind == "cpu"
        return _NO_CPP if on_cpu else f"it needs tensors on a CPU, and these are on {device!r}; use backend='torch'"
    if backend not in ("triton", "cuda"):
        return None
    if backend == "triton" and _TRITON_INTERPRETED:
        return _TRITON_PACKAGE
    if torch.version.hip is not None:
        return "it is written for NVIDIA GPUs, and this torch is built for AMD's; use backend='torch'"
    if kind != "cuda":
        return f"it needs tensors on a CUDA GPU, and these are on {device!r}; use backend='torch'"
    if not torch.cuda.is_available():
        # first: no package would mend this
        return "torch finds no CUDA GPU; use backend='torch'"
    if backend == "cuda":
        return _NO_CUDA or _too_old(device) or _not_built_for(device)
    return _TRITON_PACKAGE or _too_old(device)


def _too_old(device: str) -> str | None:
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 (Ampere) or above; use backend='torch'"
    return None


def _not_built_for(device: str) -> str | None:
    return _extension.not_for(torch.cuda.get_device_capability(device))


# what torch.compiler.assume_constant_result does, without its import of all of torch.compile: a GPU does not age
_too_old._dynamo_marked_constant = True  # type: ignore[attr-defined]
_not_built_for._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_backend(op: str, backend: str, supported: tuple[str, ...]) -> None:
    """Raise ValueError unless backend is a backend's name, NotImplementedError unless it is "auto" or in supported."""
    if backend not in BACKENDS:
        raise ValueError(f"nftk.{op}: backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend != "auto" and backend not in supported:
        raise NotImplementedError(f"nftk.{op}: backend must be one of {supported} or 'auto', got {backend!r}")


def resolve(
    op: str, backend: str, supported: tuple[str, ...], device: str, lacks: Mapping[str, str | None] | None = None
) -> str:
    """Turn a requested backend into one of supported (fastest first); only "auto" chooses, a name is used or raises.

    Args:
        op: The operation, for messages.
        backend: What was asked for.
        supported: Backends with code for the operation, fastest first; "torch" is the last.
        device: The device that the inputs are on, as str() gives it.
        lacks: Per backend, what of this call it has no code for; None for nothing.

    Returns:
        One of supported.

    Raises:
        ValueError: If backend is no backend's name.
        NotImplementedError: If it has no code for the operation, or for this call.
        RuntimeError: If this machine cannot run it.
    """
    check_backend(op, backend, supported)
    lacking = lacks or {}
    if backend == "auto":
        # Triton's interpreter is for tests that ask for it by name
        usable = [b for b in supported if b in ("torch", "cpp") or device.partition(":")[0] == "cuda"]
        return next(b for b in usable if lacking.get(b) is None and why_not(b, device) is None)
    lack = lacking.get(backend)
    if lack is not None:
        raise NotImplementedError(f"nftk.{op}: backend {backend!r} has no code for {lack}; use backend='torch'")
    reason = why_not(backend, device)
    if reason is not None:
        raise RuntimeError(f"nftk.{op}: backend {backend!r} is not available: {reason}")
    return backend
