"""ridge_from_proximal: which ridge a proximal penalty is."""

from typing import Literal

from nftk._checks import check_choice, check_integer, check_number

_LOSSES = ("mse", "half_mse", "mean_mse")


def ridge_from_proximal(
    proximal: float, n: int, d: int = 1, loss: Literal["mse", "half_mse", "mean_mse"] = "mse"
) -> float:
    r"""Ridge rho for which kernel regression is where training with the proximal term of equation 13 ends.

    .. math:: \nabla L + \lambda (\theta - \theta_0) = 0 \quad\Leftrightarrow\quad
        f = f_0 + K (K + \rho I)^{-1} (Y - f_0)

    True for a network that is linear in its parameters, and so in the limit of infinite width.

    Args:
        proximal: lambda, as :func:`nftk.fit` takes it: the update adds lambda (theta - theta_0) to the gradient.
        n: N, the number of training examples.
        d: Number of outputs; counts for ``"mean_mse"`` only.
        loss: ``"mse"``: (1/N) sum \|f - y\|^2, as in :func:`nftk.fit`: rho = lambda N / 2. ``"half_mse"``: half of
            that: lambda N. ``"mean_mse"``: averaged over the d outputs too, as ``torch.nn.MSELoss``: lambda N d / 2.

    Returns:
        rho.

    Raises:
        ValueError: If a number is out of range or the loss unknown; for cross-entropy there is no such ridge.

    References:
        Alemohammad et al., NFT-K: Non-Fungible Tangent Kernels, ICASSP 2022, arXiv 2110.04945, equations 9, 13, 14;
        docs/errata.md, 3.

    Example:
        >>> from nftk.regression import ridge_from_proximal
        >>> ridge_from_proximal(0.1, 50), ridge_from_proximal(0.1, 50, 10, loss="mean_mse")
        (2.5, 25.0)
    """
    op = "regression.ridge_from_proximal"
    check_choice(op, "loss", loss, _LOSSES)
    n, d = check_integer(op, "n", n, 1), check_integer(op, "d", d, 1)
    factor = {"mse": n / 2, "half_mse": n, "mean_mse": n * d / 2}[loss]
    return check_number(op, "proximal", proximal) * factor
