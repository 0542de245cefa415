"""Exact leave-one-out of ridge regression: what each prediction loses without each training example."""

import torch
from torch import Tensor

from nftk._checks import check_number, check_shape, check_symmetric, check_tensor
from nftk.attribution.ranking import check_finite
from nftk.regression.solve import cholesky


def leave_one_out(k_train: Tensor, k_test: Tensor, y: Tensor, ridge: float) -> Tensor:
    r"""Change of kernel ridge regression's predictions by each training example, in closed form.

    .. math:: f(x) - f^{(-i)}(x) = \frac{(k(x)^\top G)_i \, \alpha_i}{G_{ii}}, \qquad G = (K + \rho I)^{-1}, \;
        \alpha = G y

    The counterfactual that scores A(x, x_i) = k(x, x_i) alpha_i stand in for: leaving x_i out also changes the other
    coefficients. The ridge rho stays (a :class:`nftk.surrogate.KernelSurrogate` has rho = n penalty).

    Args:
        k_train: K, ``(n, n)``.
        k_test: k(x), ``(n_test, n)``.
        y: Targets ``(n,)`` or ``(n, C)``, in a floating dtype; labels as one-hot rows.
        ridge: rho, at least 0.

    Returns:
        ``(n_test, n)``, or ``(n_test, n, C)``; float64.

    Raises:
        TypeError: If an argument is no floating tensor.
        ValueError: If shapes do not fit, a number is not finite, or the kernel is not symmetric and positive
            semi-definite.

    References:
        Cook, Detection of influential observation in linear regression, Technometrics 19, 1977, for kernels.

    Example:
        >>> import torch
        >>> from nftk.attribution import leave_one_out
        >>> leave_one_out(torch.eye(2), torch.tensor([[1.0, 1.0]]), torch.tensor([4.0, 2.0]), ridge=1.0)
        tensor([[2.0000, 1.0000]], dtype=torch.float64)
    """
    op = "attribution.leave_one_out"
    for name, x in (("k_train", k_train), ("k_test", k_test), ("y", y)):
        check_tensor(op, name, x)
    rho = check_number(op, "ridge", ridge)
    check_shape(op, "k_train", k_train, ("n", "n"))
    n = len(k_train)
    check_shape(op, "k_train", k_train, (n, n))
    check_shape(op, "k_test", k_test, ("n_test", n))
    check_shape(op, "y", y, (n,) if y.ndim == 1 else (n, "C"))
    for name, x in (("k_train", k_train), ("k_test", k_test), ("y", y)):
        check_finite(op, name, x)
    check_symmetric(op, "k_train", k_train, torch.finfo(k_train.dtype).eps)
    factor = cholesky(op, k_train.detach().to(torch.float64, copy=True)[None], rho)[0][0]
    inverse = torch.cholesky_inverse(factor)
    moved = k_test.detach().double() @ inverse / inverse.diagonal()
    alpha = inverse @ y.detach().double()
    return moved * alpha if y.ndim == 1 else moved[:, :, None] * alpha
