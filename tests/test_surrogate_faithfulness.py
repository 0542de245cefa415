"""Measures of faithfulness by hand and against scipy, and their bootstrap intervals."""

import json
import math

import numpy as np
import pytest
import torch

from nftk.surrogate import accuracy_difference, faithfulness, kendall_tau, r2_after_link, r_miss
from nftk.surrogate.bootstrap import bootstrap
from nftk.surrogate.measures import _tau

stats = pytest.importorskip("scipy.stats", reason="scipy comes with scikit-learn")


def soft(n, classes=3, seed=0, noise=0.0):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, classes)) * 2
    with_noise = logits + noise * random.normal(size=(n, classes))
    y = (logits + random.normal(size=(n, classes))).argmax(1)
    each = [np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (logits, with_noise)]
    return each[0], each[1], y


def test_tau_of_the_correct_class_and_of_all():
    p, q, y = soft(50, noise=1.0)
    rows = np.arange(50)
    want = stats.kendalltau(p[rows, y], q[rows, y]).statistic
    assert kendall_tau(p, q, y, resamples=0).value == pytest.approx(want, abs=1e-14)
    want = np.mean([stats.kendalltau(p[:, c], q[:, c]).statistic for c in range(3)])
    assert kendall_tau(p, q, y, classes="all", resamples=0).value == pytest.approx(want, abs=1e-14)
    as_tensors = kendall_tau(torch.tensor(p), torch.tensor(q), torch.tensor(y), classes="all", resamples=0)
    assert as_tensors.value == pytest.approx(want, abs=1e-14)


@pytest.mark.parametrize("tile", [1024, 7])
def test_tau_of_a_resample_is_scipys_of_its_examples(tile, monkeypatch):
    """With ties, as saturated probabilities and resamples have them."""
    monkeypatch.setattr("nftk.surrogate.measures.TILE", tile)
    random = np.random.default_rng(0)
    a, b = random.integers(0, 6, 40) / 5, random.integers(0, 4, 40) / 3
    counts = random.multinomial(40, np.full(40, 1 / 40), 20).astype(float)
    for found, drawn in zip(_tau(a, b, counts), counts.astype(int), strict=True):
        want = stats.kendalltau(np.repeat(a, drawn), np.repeat(b, drawn)).statistic
        assert found == pytest.approx(want, abs=1e-6)
    assert math.isnan(kendall_tau([0.5, 0.5], [0.1, 0.2], [0, 1]).value)
    assert kendall_tau([0.5, 0.5], [0.1, 0.2], [0, 0], resamples=5).undefined == 5


def test_accuracies_and_common_errors_by_hand():
    network, surrogate = [0.9, 0.2, 0.7, 0.4, 0.6], [0.8, 0.6, 0.3, 0.3, 0.9]
    y = [1, 0, 0, 1, 1]  # network misses examples 2, 3; surrogate 1, 3
    assert accuracy_difference(network, surrogate, y).value == 0
    assert r_miss(network, surrogate, y).value == pytest.approx(1 / 3)
    assert accuracy_difference(network, [0.1] * 5, y).value == pytest.approx(-0.2)
    none = r_miss([0.9, 0.1], [0.8, 0.2], [1, 0], resamples=10)
    assert math.isnan(none.value)
    assert math.isnan(none.low)
    assert none.undefined == 10


def test_r2_by_hand():
    a = np.array([-1.0, 0.0, 2.0, 3.0])
    b = np.array([-2.0, 1.0, 3.0, 7.0])
    p, q = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b))
    want = np.corrcoef(a, b)[0, 1] ** 2
    assert r2_after_link(p, q, [1] * 4, resamples=0).value == pytest.approx(want, rel=1e-12)
    # the logit of the other class is the same with the other sign
    assert r2_after_link(p, q, [0] * 4, resamples=0).value == pytest.approx(want, rel=1e-12)
    assert r2_after_link(p, 1 / (1 + np.exp(-3 * a + 1)), [1] * 4).value == pytest.approx(1)
    assert math.isnan(r2_after_link(p, [0.5] * 4, [1] * 4).value)
    # constant but for rounding, on either side
    nearly = np.array([0.5, 0.5, 0.5, 0.5 + 1e-15])
    assert math.isnan(r2_after_link(p, nearly, [1] * 4).value)
    assert math.isnan(r2_after_link(nearly, p, [1] * 4).value)


def test_saturated_probabilities_are_clipped_and_counted():
    network, surrogate = [1.0, 0.0, 0.5, 0.25], [0.9, 0.2, 1 - 1e-9, 0.4]
    found = faithfulness(network, surrogate, [1, 1, 1, 0], clip=1e-3, resamples=50)
    assert (found.network_saturated, found.saturated) == (2, 1)
    bounds = [1 - 1e-3, 1e-3, 0.5, 0.75], [0.9, 0.2, 1 - 1e-3, 0.6]
    a, b = (np.log(np.array(z) / (1 - np.array(z))) for z in bounds)
    assert found.r2.value == pytest.approx(np.corrcoef(a, b)[0, 1] ** 2)
    assert "saturated, set to the bounds: 1, the network's 2" in repr(found)


def test_all_at_once():
    p, q, y = soft(200, noise=0.5)
    found = faithfulness(p, q, y, resamples=200, seed=3)
    settings = {"resamples": 200, "seed": 3}
    assert found.tau_correct == kendall_tau(p, q, y, **settings)
    assert found.tau_all == kendall_tau(p, q, y, classes="all", **settings)
    assert found.accuracy_difference == accuracy_difference(p, q, y, **settings)
    assert found.r_miss == r_miss(p, q, y, **settings)
    assert found.r2 == r2_after_link(p, q, y, **settings)
    assert found.accuracy - found.network_accuracy == pytest.approx(found.accuracy_difference.value)
    assert found.agreement == (p.argmax(1) == q.argmax(1)).mean()
    told = json.loads(json.dumps(found.to_dict()))
    assert told["tau_correct"]["low"] < told["tau_correct"]["value"] < told["tau_correct"]["high"]
    assert repr(found).splitlines()[0] == "Faithfulness on 200 examples, 95 % intervals:"
    assert f"Kendall tau, correct class   {found.tau_correct.value:.4f} [" in repr(found)
    perfect = faithfulness(p, p, y, resamples=20)
    assert (perfect.tau_all.value, perfect.r_miss.value, perfect.agreement) == (1, 1, 1)
    assert perfect.r2.low == pytest.approx(1)


def test_intervals_cover_what_they_should():
    """Of 200 samples of a mean with a known value, near 90 of 100 intervals hold it."""
    random = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        x = random.normal(size=60) + 1.0
        found = bootstrap("op", lambda counts, x=x: counts @ x / 60, 60, resamples=300, confidence=0.9, seed=seed)
        assert found.value == pytest.approx(x.mean())
        held += found.low <= 1.0 <= found.high
    assert 165 <= held <= 192


def test_intervals_of_tau_cover_it():
    """tau of a normal pair with correlation r is 2 / pi arcsin r."""
    random, r, held = np.random.default_rng(1), 0.7, 0
    for seed in range(60):
        a = random.normal(size=100)
        b = r * a + (1 - r * r) ** 0.5 * random.normal(size=100)
        p, q = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b))
        found = kendall_tau(p, q, [1] * 100, resamples=200, seed=seed)
        held += found.low <= 2 / np.pi * np.arcsin(r) <= found.high
    assert held >= 51


def test_seeds_and_resamples():
    p, q, y = soft(60, noise=1.0)
    one, two, three = (kendall_tau(p, q, y, resamples=100, seed=seed) for seed in (0, 0, 1))
    assert one == two != three
    assert one.value == three.value
    wide, narrow = (kendall_tau(p, q, y, resamples=400, confidence=c) for c in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert math.isnan(kendall_tau(p, q, y, resamples=0).low)


def test_without_resamples_no_interval_is_shown():
    p, q, y = soft(40, noise=1.0)
    found = faithfulness(p, q, y, resamples=0)
    assert "nan" not in repr(found)
    assert "interval" not in repr(found)
    assert repr(found).splitlines()[0] == "Faithfulness on 40 examples:"
    assert str(found.tau_all) == f"{found.tau_all.value:.4f}"
    # that no resample had a value is told
    assert str(r_miss([0.9], [0.9], [1], resamples=5)) == "nan [nan, nan]"


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "sentence"),
    [
        (([0.1, 0.2], [0.1, 0.2, 0.3], [0, 1]), {}, ValueError, r"surrogate must have the shape of network, \[2, 2\]"),
        (([[0.5, 0.6]], [[0.5, 0.5]], [0]), {}, ValueError, "network must be probabilities, at least 0 with rows that"),
        (([0.5], [-0.5], [0]), {}, ValueError, "surrogate must be probabilities"),
        (([float("nan")], [0.5], [0]), {}, ValueError, "network must be finite, got NaN or infinity"),
        (([0.5], [float("inf")], [0]), {}, ValueError, "surrogate must be finite, got NaN or infinity"),
        ((["a"], [0.5], [0]), {}, TypeError, "network must be real numbers, got list"),
        (([0.5], None, [0]), {}, TypeError, "surrogate must be real numbers, got NoneType"),
        (([[1.0]], [[1.0]], [0]), {}, ValueError, r"network must have shape \[n, C\], or \[n\] for two classes"),
        (([0.5], [0.5], [2]), {}, ValueError, "y must be classes from 0 to 1, got 2"),
        (([0.5], [0.5], [0.0]), {}, TypeError, "y must be classes, integers from 0 to 1, got float64"),
        (([0.5], [0.5], [0, 1]), {}, ValueError, r"y must have shape \[1\], an entry an example, got \[2\]"),
        (([0.5], [0.5], [0]), {"clip": 0.5}, ValueError, "clip must be below 0.5, got 0.5"),
        (([0.5], [0.5], [0]), {"clip": 1e-17}, ValueError, "clip must be so large that 1 - clip is below 1, got 1e-17"),
        (([0.5], [0.5], [0]), {"confidence": 1.0}, ValueError, "confidence must be below 1, got 1.0"),
        (([0.5], [0.5], [0]), {"resamples": -1}, ValueError, "resamples must be at least 0, got -1"),
    ],
)
def test_refusals(arguments, settings, error, sentence):
    with pytest.raises(error, match=r"nftk.surrogate.\w+: " + sentence):
        faithfulness(*arguments, **settings)
    if "clip" not in settings:
        with pytest.raises(error, match=sentence):
            r_miss(*arguments, **settings)
