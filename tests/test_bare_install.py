"""What pip install nftk alone runs: torch, numpy and safetensors, without scipy, matplotlib and scikit-learn."""

import subprocess
import sys

import pytest
import torch

CODE = """
import sys
for name in ("scipy", "matplotlib", "sklearn"):
    sys.modules[name] = None
import torch, nftk, nftk.attribution
model, x = nftk.NFTKMLP(4, [8] * 3, 2), torch.randn(9, 4)
y = torch.zeros(9, dtype=torch.int64)
for kind in ("omega", "contribution", "ablation"):
    print(list(nftk.importance(model, x, y, kind).shape))
print(len(nftk.interpret.deletion_curve(model, x, y, model.omega).shares))
for call in (
    lambda: nftk.importance(model, x, y, "ablation", refit=True),
    lambda: nftk.interpret.rank_correlation(x, x),
):
    try:
        call()
    except ImportError as error:
        print(error)
"""


def test_importance_needs_no_more_than_the_package_does():
    # one process for all: what takes long is to import torch
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[2, 3]",
        "[2, 3]",
        "[2, 3]",
        "7",
        "nftk: importance with refit needs scipy; run `pip install 'nftk[app]'`",
        "nftk: rank_correlation needs scipy; run `pip install 'nftk[app]'`",
    ]


def test_agreement_names_what_it_lacks(monkeypatch):
    from nftk.attribution import rank_agreement

    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match="nftk: attribution.rank_agreement needs scipy; run `pip install"):
        rank_agreement(torch.rand(2, 3), torch.rand(2, 3))
