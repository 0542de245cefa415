"""nftk reproduce projections on a few points of a small network: what is measured is what the record says."""

import pytest
import torch
from torch import nn

import nftk
from nftk.experiments import projections, sample_by_sample
from nftk.experiments.networks import Place
from nftk.experiments.record import Request


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(108, 4))


def test_errors_are_those_of_the_kernel_and_within_their_bounds():
    model, x, said = small(), torch.randn(8, 1, 28, 28), []
    rows = projections.compare("small", model, x, "module", (64, 256), said.append)
    assert [(r["kind"], r["k"]) for r in rows[1:]] == [(kind, k) for kind in projections.KINDS for k in (64, 256)]
    exact = nftk.empirical_ntk(model, x, per="module", reduction="trace").blocks
    p = nftk.tangent.project_tangents(model, x, 64, per="module", seed=projections.SEED)
    own = exact.diagonal(dim1=1, dim2=2).sqrt()
    relative = (p.kernel().blocks - exact) / (own[:, :, None] * own[:, None])
    apart = relative[:, ~torch.eye(8, dtype=torch.bool)]
    assert rows[1]["rms"] == pytest.approx(float(apart.square().mean().sqrt()), rel=1e-4)
    assert rows[1]["percentile_95"] == pytest.approx(float(apart.abs().flatten().quantile(0.95)), rel=1e-4)
    for r in rows[1:]:
        assert r["rms"] < 1.5 * r["bound_rms"]
        assert r["within_two_bounds"] > 0.8
    assert rows[2]["bound_rms"] == pytest.approx(rows[1]["bound_rms"] / 2, rel=0.1)
    assert len(said) == 8


def test_the_record(monkeypatch, tmp_path):
    model = nftk.NFTKMLP(784, [6, 5], 4)
    digits = type("Digits", (), {"x": torch.randn(60, 1, 28, 28), "y": torch.randint(0, 4, (60,))})
    monkeypatch.setattr(projections, "digits", lambda place: digits)
    monkeypatch.setattr(projections, "trained_cnn", lambda *args, **settings: small())
    monkeypatch.setattr(projections, "train_all", lambda *args, **settings: None)
    monkeypatch.setattr(projections, "load", lambda *args: model)
    record = projections.run(Request(Place(tmp_path), quick=True, say=lambda line: None))
    kinds = [line.split(" | ")[1] for line in record.markdown.splitlines() if line.startswith("| NFTKMLP")]
    assert kinds == ["exact", *(kind for kind in projections.KINDS for _ in projections.QUICK_KS)]
    assert "50 images, 466 parameters" in record.markdown
    names = {path.name for path in record.write(tmp_path / "out", Request(Place(tmp_path), quick=True))}
    assert names == {"projections.md", "projections.json", "projections.png"}


def test_ways_example_by_example_find_the_same_kernel():
    found = sample_by_sample.run(small(), torch.randn(12, 1, 28, 28), 4, lambda line: None)
    assert found["difference"] < 1e-5
    assert (found["outputs"], found["parameters"], found["timed_examples"]) == (4, 466, 4)
    assert found["one by one"] == found["one by one, gradients"] + found["products"]
