"""What KernelRidge refuses, in fit, in predict and in score, with the sentence that it says."""

import math

import numpy as np
import pytest
import torch
from regression_problems import (
    draw,
    layers,
    rbf,
    ridge_problem,  # noqa: F401  (a fixture)
)

import nftk

pytest.importorskip("sklearn", reason="scikit-learn is an optional package")


@pytest.mark.parametrize("form", ["matrix", "array", "by output", "layers", "inputs"])
def test_no_examples_are_refused_in_every_form(problem, form):
    k, _, y = problem
    given, empty, ridge = {
        "matrix": (k, k[:0], nftk.KernelRidge()),
        "array": (k.numpy(), k[:0].numpy(), nftk.KernelRidge()),
        "by output": (k.expand(3, -1, -1), k.expand(3, -1, -1)[:, :0], nftk.KernelRidge()),
        "layers": (layers("full"), layers("full", 0, 30), nftk.KernelRidge(omega=[1.0, 1.0])),
        "inputs": (draw(30, 4), draw(0, 4), nftk.KernelRidge(kernel=rbf)),
    }[form]
    ridge.fit(given, y)
    text = "Found array with 0 sample" if form == "array" else r"X must (have shape .* at least 1|hold .* example)"
    for call in (ridge.predict, ridge.outputs, lambda x: ridge.fit(x, y[:0])):
        with pytest.raises(ValueError, match=text):
            call(empty)


def of_nan(reduction):
    k = layers(reduction)
    return nftk.LayerKernels(k.blocks * math.nan, k.names, reduction)


@pytest.mark.parametrize(
    ("settings", "change", "text"),
    [
        ({"ridge": -1.0}, {}, "ridge must be finite and at least 0, got -1.0"),
        ({"ridge": "aic"}, {}, "ridge must be one of 'loo', 'gcv', got 'aic'"),
        ({"ridges": [1.0]}, {}, "ridges must go with ridge 'loo' or 'gcv'"),
        ({"ridge": "loo", "ridges": []}, {}, "ridges must hold at least one number, got none"),
        ({"ridge": "loo", "ridges": 1.0}, {}, r"ridges must be a list of numbers, got 1\.0"),
        ({"ridge": "loo", "ridges": "1"}, {}, "ridges must be a list of numbers, got '1'"),
        ({"ridge": "loo", "ridges": ["a"]}, {}, r"ridges\[0\] must be a number, got 'a'"),
        ({"ridge": "loo", "ridges": [1.0, -1.0]}, {}, r"ridges\[1\] must be finite and at least 0, got -1\.0"),
        ({"ridge": "loo", "ridges": np.array([math.nan])}, {}, r"ridges\[0\] must be finite and at least 0, got nan"),
        ({"ridge": "loo", "solver": "cg"}, {}, "ridge must be a number for solver 'cg'"),
        ({"ridge": 0.0, "solver": "cg"}, {}, "ridge must be above 0 for conjugate gradients"),
        ({"solver": "lu"}, {}, "solver must be one of"),
        ({"kernel": "linear"}, {}, "kernel must be one of 'precomputed', 'infinite'"),
        ({"task": "ranking"}, {}, "task must be one of"),
        ({"omega": [1.0]}, {}, "omega must be None where the kernel is a tensor"),
        ({}, {"k": draw(30, 29)}, "must be square"),
        ({}, {"k": draw(30, 30)}, "must be symmetric"),
        ({}, {"k": draw(2, 30, 30, 2)}, r"X must have shape \[n1, n2\], \[d, n1, n2\] or"),
        ({}, {"k": torch.full((30, 30), math.nan)}, "X must be finite"),
        ({}, {"y": draw(29, 3)}, r"y must have shape \[30\] or \[30, d\], an entry an example, got \[29, 3\]"),
        ({}, {"y": torch.full((30,), math.inf)}, "y must be finite"),
        ({}, {"y": None}, "y must be labels or targets, got None"),
        ({}, {"y": ["a", None, "b"] * 10}, "y must be labels without None or NaN, got None"),
        ({}, {"y": np.array(["a", math.nan] * 15, dtype=object)}, "y must be labels without None or NaN, got nan"),
        ({}, {"y": np.array(["a", 1] * 15, dtype=object)}, "y must be labels that have an order, .* type int, str"),
        ({}, {"y": [[1.0, 2.0], [3.0]] * 15}, "y must be labels or targets of one shape, got "),
        ({}, {"y": torch.eye(30).to_sparse()}, "y must be dense"),
        ({}, {"y": [["a", "b"]] * 30}, "y must be numbers to serve as targets, got <U1"),
        ({}, {"offset": "x"}, "offset must be numbers, shape .*, got str"),
        ({}, {"offset": draw(30, 2)}, r"offset must have shape \[30, 3\], as the targets, got \[30, 2\]"),
        ({}, {"k": layers("scalar")}, r"omega must be given for the kernels of 2 layers, shape \[2\]"),
        ({"omega": [1.0] * 3}, {"k": layers("scalar")}, r"omega must have shape \[2\], got \[3\]"),
        ({"omega": torch.ones(2, 2)}, {"k": layers("scalar")}, "y must have 2 columns, one for each output"),
        ({"omega": [[1.0, 2], [2, 1]]}, {"k": layers("scalar")}, "y must have 2 columns, one for each output"),
        ({"omega": [math.nan, 1.0]}, {"k": layers("scalar")}, "omega must be finite"),
        ({"omega": "x"}, {"k": layers("scalar")}, "omega must be numbers"),
        ({"omega": [1.0, 1.0]}, {"k": of_nan("scalar")}, "kernels must be finite, got NaN or infinity"),
        ({"omega": [1.0, 1.0]}, {"k": of_nan("full")}, "kernels must be finite, got NaN or infinity"),
        ({}, {"offset": torch.full((30, 3), math.inf)}, "offset must be finite"),
        ({}, {"y": draw(30, 3).to(torch.complex64)}, "y must be real numbers, got complex64"),
        ({"kernel": "infinite", "kernel_params": {"depth": 0}}, {}, "depth in kernel_params must be at least 1, got 0"),
        ({"kernel": "infinite", "kernel_params": {"depth": "2"}}, {}, "depth in kernel_params must be an integer"),
        ({"kernel": "infinite", "kernel_params": {"weights": [1.0]}}, {}, "kernel_params must leave weights"),
        (
            {"kernel": "infinite", "omega": [1.0, 2.0]},
            {},
            "omega must have 3 columns, one a layer of kernel 'infinite'",
        ),
    ],
)
def test_errors(problem, settings, change, text):
    given = {"k": problem[0], "y": problem[2], "offset": None} | change
    with pytest.raises((ValueError, TypeError), match=text):
        nftk.KernelRidge(**settings).fit(given["k"], given["y"], offset=given["offset"])


def test_errors_of_predict(problem):
    k, k_test, y = problem
    with pytest.raises(ValueError, match="must be fitted before it predicts"):
        nftk.KernelRidge().predict(k_test)
    with pytest.raises(ValueError, match="X must have 30 features, as in fit, got 29"):
        nftk.KernelRidge().fit(k, y).predict(k_test[:, 1:])
    by_output = k.expand(3, -1, -1)
    with pytest.raises(ValueError, match="the kernel must have 30 columns, one a training example, got 29"):
        nftk.KernelRidge().fit(by_output, y).predict(k_test[:, 1:].expand(3, -1, -1))
    ridge = nftk.KernelRidge(omega=[1.0, 1.0]).fit(layers("diagonal"), y)
    with pytest.raises(ValueError, match=r"must be \('diagonal', None\), as in fit, got \('trace', None\)"):
        ridge.predict(layers("trace"))
    with pytest.raises(ValueError, match="the kernel must have 3 outputs, as the targets, got 2"):
        nftk.KernelRidge().fit(by_output, y).predict(k_test.expand(2, -1, -1))


def test_errors_of_score(problem):
    k, k_test, y = problem
    ridge, named = nftk.KernelRidge().fit(k, y), nftk.KernelRidge().fit(k, y.argmax(1))
    one = nftk.KernelRidge().fit(k, y[:, 0])
    for fitted, given, text in (
        (ridge, y[:7, :2], r"y must have shape \[7, 3\], as the predictions, got \[7, 2\]"),
        (ridge, y[:7, 0], r"y must have shape \[7, 3\], as the predictions, got \[7\]"),
        (ridge, y[:6], r"y must have shape \[7, 3\], as the predictions, got \[6, 3\]"),
        (one, y[:7], r"y must have shape \[7\], as the predictions, got \[7, 3\]"),
        (named, y[:7], r"y must have shape \[7\], as the predictions, got \[7, 3\]"),
        (named, 1, r"y must have shape \[7\], as the predictions, got \[\]"),
        (named, None, "y must be labels or targets, got None"),
    ):
        with pytest.raises(ValueError, match=text):
            fitted.score(k_test, given)
    assert one.score(k_test, y[:7, :1]) == one.score(k_test, y[:7, 0])
    for weights, text in (
        ([1.0] * 6, r"sample_weight must have shape \[7\], an entry an example, got \[6\]"),
        ([-1.0] + [1.0] * 6, "sample_weight must be finite and at least 0, got -1"),
        ([math.nan] * 7, "sample_weight must be finite and at least 0, got nan"),
        ([0.0] * 7, "sample_weight must have an entry above 0, got zeros"),
        ("heavy", "sample_weight must be numbers, got str"),
    ):
        with pytest.raises((ValueError, TypeError), match=text):
            one.score(k_test, y[:7, 0], weights)
