"""Support vector machines on a kernel: scikit-learn's, one against the rest."""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC
from torch import Tensor

from nftk.regression.solve import MOST_JITTER
from nftk.surrogate.solver import Solution, check_definite, unit_of

# libsvm's steps, each of two coefficients, for each of max_iterations: at least, and for each example. Where it ended
# by itself it took at most 33 000 (30 to 2000 examples, linear and RBF kernels, penalties from 0.1 to 1e-8); a million
# take 1 to 3 s for 300 examples
STEPS, STEPS_EACH = 200, 0.1


def support_vectors(
    k: Tensor, places: Tensor, classes: int, penalty: float, *, tolerance: float, seed: int, max_iterations: int
) -> Solution:
    """Coefficients of the machines that tell each class from all others; of two classes one machine does.

    Args:
        k: Training kernel ``(n, n)``, float64.
        places: Class of each example, 0 to classes - 1, each of them met.
        classes: C, at least 2.
        penalty: lambda: mean hinge loss plus lambda / 2 times the squared norm, scikit-learn's C = 1 / (n lambda).
        tolerance: Of libsvm's stopping rule.
        seed: Of libsvm.
        max_iterations: Bounds libsvm's steps for each machine, which at small penalties may not end: times 200, or
            from 2000 examples on a tenth of n.

    Returns:
        The solution; ``stopped`` says where a machine met that bound. Of two classes the outputs are -h / 2 and h / 2,
        whose difference is the machine's own h.

    Raises:
        ValueError: If the kernel is not positive semi-definite.
    """
    # libsvm keeps the kernel in float32, and its thresholds are for numbers near 1
    n, unit = len(k), unit_of(k)
    scaled, penalty = k / unit, penalty / unit
    # a factor, which costs a tenth of the eigenvalues, says enough where there is one
    lifted = scaled + MOST_JITTER * scaled.diagonal().mean().clamp(min=0) * torch.eye(n, dtype=k.dtype)
    if torch.linalg.cholesky_ex(lifted).info:
        check_definite("KernelSurrogate", torch.linalg.eigvalsh(k))
    gram = np.ascontiguousarray(scaled.numpy())
    alpha, intercept = np.zeros((n, classes)), np.zeros(classes)
    columns = range(classes) if classes > 2 else [1]
    objective, cut = 0.0, 0
    # a C int
    steps = min(int(max_iterations * max(STEPS, STEPS_EACH * n)), 2**31 - 1)
    for c in columns:
        sign = np.where(places.numpy() == c, 1, -1)
        machine = SVC(C=1 / (n * penalty), kernel="precomputed", tol=tolerance, random_state=seed, max_iter=steps)
        with warnings.catch_warnings():
            # told by who asked
            warnings.simplefilter("ignore", ConvergenceWarning)
            machine.fit(gram, sign)
        cut += machine.fit_status_
        alpha[machine.support_, c], intercept[c] = machine.dual_coef_[0], machine.intercept_[0]
        h = gram @ alpha[:, c]
        hinge = np.maximum(0, 1 - sign * (h + intercept[c])).mean()
        objective += float(hinge + penalty / 2 * (alpha[:, c] @ h))
    if classes == 2:
        alpha, intercept = np.stack((-alpha[:, 1], alpha[:, 1]), 1) / 2, np.array([-intercept[1], intercept[1]]) / 2
    return Solution(
        torch.from_numpy(alpha / unit),
        torch.from_numpy(intercept),
        objective,
        energy=2.0 if classes == 2 else 1.0,
        stopped=f"libsvm's bound of {steps} steps, in {cut} of {len(columns)} machines" if cut else "",
    )
