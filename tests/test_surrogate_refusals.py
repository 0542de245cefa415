"""What a surrogate refuses in a sentence of its own, where scikit-learn or numpy would have theirs."""

import numpy as np
import pytest
import torch

from nftk.surrogate import KernelSurrogate

pytest.importorskip("sklearn", reason="scikit-learn is an optional package")

K = torch.eye(4).double() + 1


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
@pytest.mark.parametrize("estimator", ["logistic", "svm", "ridge"])
def test_labels_that_are_not_finite(estimator, kind, wrong):
    with pytest.raises(
        ValueError, match=f"^nftk.KernelSurrogate: y must be labels without NaN or infinity, got {wrong}$"
    ):
        KernelSurrogate(estimator, 0.1).fit(K, kind([0.0, 1.0, wrong, 1.0]))
    KernelSurrogate(estimator, 0.1).fit(K, kind([0.0, 1.0, 2.0, 1.0]))


@pytest.mark.parametrize(("wrong", "name"), [("a", "str"), (None, "NoneType"), (b"a", "bytes"), (1.0, "float")])
def test_what_is_no_kernel(wrong, name):
    sentence = f"^nftk.KernelSurrogate: X must be LayerKernels or a kernel, a tensor or an array, got {name}$"
    fitted = KernelSurrogate(penalty=0.1).fit(K, [0, 1, 0, 1])
    for call in (fitted.predict, fitted.outputs, fitted.layer_outputs, fitted.predict_proba):
        with pytest.raises(TypeError, match=sentence):
            call(wrong)
    with pytest.raises(TypeError, match=sentence):
        fitted.fit(wrong, [0, 1, 0, 1])
    assert fitted.predict(K.tolist()).tolist() == [0, 1, 0, 1]
