"""Triton kernels, installed as ``nftk.kernels``: launchers on plain tensors, without checks and without autograd.

``nftk.ops`` is the only caller: it checks, chooses the backend and owns the derivatives.
"""
