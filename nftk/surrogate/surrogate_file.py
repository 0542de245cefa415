"""A fitted surrogate in a safetensors file."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nftk._files import replacing
from nftk.surrogate.kernel_surrogate import KernelSurrogate

FORMAT = "nftk.KernelSurrogate 1"


def save(surrogate: KernelSurrogate, path: Path, header: dict[str, Any]) -> None:
    """Write what predicting and attribution need, whole or not at all.

    Args:
        surrogate: A fitted one, whose classes are 0 to C - 1.
        path: The file.
        header: What else to keep, for JSON.
    """
    names, reduction, normalization = surrogate._kind
    known = {
        "estimator": surrogate.estimator,
        "target": surrogate.target,
        "penalty": surrogate.penalty_,
        "kind": [list(names), reduction, normalization],
    }
    tensors = {
        "dual_coef": surrogate.dual_coef_.contiguous(),
        "intercept": surrogate.intercept_.contiguous(),
        "weights": surrogate.weights_.contiguous(),
    }
    text = {"format": FORMAT, "surrogate": json.dumps(known), "header": json.dumps(header)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=text)


def load(path: Path) -> tuple[KernelSurrogate, dict[str, Any]] | None:
    """Read a surrogate and its header; None where there is no file, or one that holds none."""
    try:
        with safe_open(path, framework="pt") as file:
            text = file.metadata() or {}
            if text.get("format") != FORMAT:
                return None
            known, header = json.loads(text["surrogate"]), json.loads(text["header"])
            alpha, b, w = (file.get_tensor(name) for name in ("dual_coef", "intercept", "weights"))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    names, reduction, normalization = known["kind"]
    found = KernelSurrogate(known["estimator"], known["penalty"], target=known["target"], weights=w)
    found.dual_coef_, found.intercept_, found.weights_ = alpha, b, w
    found.penalty_, found.layer_names_, found.n_features_in_ = known["penalty"], tuple(names), len(alpha)
    found.classes_ = torch.arange(alpha.shape[1]).numpy()
    found._kind = tuple(names), reduction, normalization
    return found, header
