"""Backend choice, made once per call and above the PyTorch dispatcher.

Triton kernels and the CUDA extension share the CUDA dispatch key, so PyTorch cannot choose between them.
"""

BACKENDS = ("auto", "torch", "cpp", "triton", "cuda")

# None: usable. Otherwise one sentence a user can act on.
WHY_NOT: dict[str, str | None] = {
    "torch": None,
    "cpp": "no operation of this version has a C++ form; use backend='torch'",
    "triton": "no operation of this version has a Triton kernel; use backend='torch'",
    "cuda": "no operation of this version has a CUDA kernel; use backend='torch'",
}


def resolve(op: str, backend: str, supported: tuple[str, ...]) -> str:
    """Turn a requested backend into one of supported (fastest first); only "auto" chooses, a name is used or raises."""
    if backend not in BACKENDS:
        raise ValueError(f"nftk.{op}: backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend == "auto":
        return next(b for b in supported if WHY_NOT[b] is None)
    if backend not in supported:
        raise NotImplementedError(f"nftk.{op}: backend must be one of {supported} or 'auto', got {backend!r}")
    reason = WHY_NOT[backend]
    if reason is not None:
        raise RuntimeError(f"nftk.{op}: backend {backend!r} is not available: {reason}")
    return backend
