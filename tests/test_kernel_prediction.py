"""kernel_prediction: exact for a model that is linear, near for a wide network, far for a narrow one."""

import copy

import pytest
import torch
from torch import nn

import nftk


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(width, d=2, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    model = nftk.NFTKMLP(4, [width] * 2, d, parameterization="ntk", dtype=dtype, omega_init=0.7)
    model.omega.requires_grad_(False)
    return model


def by_gradients(model, x, y, x_test, ridge):
    """The definition, with Jacobians of all parameters but Omega by autograd."""
    theta = [p for name, p in model.named_parameters() if name != "omega"]

    def jacobian(inputs):
        rows = []
        for value in model(inputs).flatten():
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, theta, retain_graph=True)]))
        return torch.stack(rows)

    j, j_test = jacobian(x), jacobian(x_test)
    with torch.no_grad():
        f_0, f_0_test = model(x), model(x_test)
    alpha = torch.linalg.solve(j @ j.T + ridge * torch.eye(len(j)).double(), (y - f_0).flatten())
    return f_0_test, f_0_test + (j_test @ j.T @ alpha).reshape(f_0_test.shape)


def test_is_its_definition():
    model, x, y, x_test = network(16), draw(9, 4), draw(9, 2, seed=1), draw(5, 4, seed=2)
    f_0, want = by_gradients(model, x, y, x_test, 0.05 * 9 / 2)
    found = nftk.kernel_prediction(model, (x, y), x_test, proximal=0.05)
    torch.testing.assert_close(found.initial, f_0)
    torch.testing.assert_close(found.kernel, want, rtol=1e-8, atol=1e-10)
    assert found.ridge == pytest.approx(0.225)
    assert found.trained is None
    assert found.distance is None
    assert nftk.kernel_prediction(model, (x, y), x_test, ridge=0.225).kernel.equal(found.kernel)


def test_reductions_when_outputs_are_not_tied():
    """One output: all reductions are the same kernel."""
    model, x, y, x_test = network(16, d=1), draw(9, 4), draw(9, 1, seed=1), draw(5, 4, seed=2)
    full = nftk.kernel_prediction(model, (x, y), x_test, ridge=0.1).kernel
    for reduction in ("diagonal", "trace"):
        found = nftk.kernel_prediction(model, (x, y), x_test, ridge=0.1, reduction=reduction).kernel
        torch.testing.assert_close(found, full)


def test_theorem_1_at_the_small_end():
    """Trained by equation 13, a wider network is nearer its own kernel; the sum of squared weights is its limit."""
    x, y, x_test = draw(10, 4).float(), draw(10, 2, seed=1).float(), draw(20, 4, seed=2).float()
    distances = []
    for width in (32, 512):
        found = []
        for seed in (0, 1):
            model = network(width, seed=seed, dtype=torch.float32)
            with torch.no_grad():
                model.omega.copy_(torch.tensor([[0.2, 1.0], [1.2, 0.3]]))
            trained = copy.deepcopy(model)
            nftk.fit(trained, (x, y), loss="mse", proximal=0.5, epochs=150, batch_size=10, lr=0.05, weight_decay=0.0)
            found.append(nftk.kernel_prediction(model, (x, y), x_test, trained=trained, proximal=0.5).distance)
        distances.append(sum(found) / 2)
    assert distances[1] < 0.12
    assert distances[1] < distances[0] / 2


def test_labels():
    x = draw(30, 4)
    y = (x[:, 0] > 0).long()
    model = network(64)
    found = nftk.kernel_prediction(model, (x[:20], y[:20]), (x[20:], y[20:]), trained=model, ridge=0.1)
    one_hot = nn.functional.one_hot(y[:20], 2).double()
    torch.testing.assert_close(found.kernel, nftk.kernel_prediction(model, (x[:20], one_hot), x[20:], ridge=0.1).kernel)
    assert set(found.accuracy) == {"initial", "kernel", "trained"}
    assert found.accuracy["trained"] == found.accuracy["initial"] < found.accuracy["kernel"]
    assert found.distance == pytest.approx(1.0)
    assert "ridge 0.1; distance 1; accuracy initial" in repr(found)


def test_plain_network_and_ridge_by_leave_one_out():
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1)).double()
    x = draw(20, 4)
    y = x[:, :1] + 0.2 * draw(20, 1, seed=1)
    found = nftk.kernel_prediction(model.train(), (x, y), x, ridge="loo")
    assert found.ridge > 0
    assert float((found.kernel - y).norm()) < float((found.initial - y).norm())
    assert model.training


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ridge": None}, "ridge or proximal must be given, one of them"),
        ({"proximal": 0.1}, "ridge or proximal must be given, one of them"),
        ({"reduction": "scalar"}, "reduction must be one of 'full', 'diagonal', 'trace'"),
        ({"train": draw(9, 4)}, r"train must be a pair \(x, y\), got Tensor"),
        ({"train": (draw(9, 4), draw(9, 3))}, r"train's y must have shape \[n, 2\], got \[9, 3\]"),
        ({"train": (draw(9, 4), draw(8, 2))}, "train's y must have 9 entries"),
        ({"test": (draw(6, 4), torch.tensor([1]))}, "test's y must have 6 entries, one an example, got 1"),
        ({"test": (draw(6, 4), torch.ones(6, 1, dtype=torch.int64))}, r"test's y must be labels \[n\]"),
        ({"train": (draw(9, 4), torch.arange(9))}, r"must be labels \[n\] in 0..1 or targets \[n, 2\], got 0 to 8"),
        ({"trained": network(8, d=3)}, r"trained's output must have shape \[5, 2\], got \[5, 3\]"),
    ],
)
def test_errors(change, text):
    given = {"model": network(8), "train": (draw(9, 4), draw(9, 2)), "test": draw(5, 4), "ridge": 0.1} | change
    with pytest.raises(ValueError, match=text):
        nftk.kernel_prediction(given.pop("model"), given.pop("train"), given.pop("test"), **given)


def test_labels_are_tensors():
    model = nftk.NFTKMLP(4, [6], 2, parameterization="ntk")
    with pytest.raises(TypeError, match="train's y must be a torch.Tensor, got list"):
        nftk.kernel_prediction(model, (draw(3, 4).float(), [0, 1, 0]), draw(2, 4).float(), ridge=0.1)


def test_modes_of_submodules_stay():
    model = nftk.NFTKMLP(4, [6, 5], 2, dropout=0.0, dtype=torch.float64).train()
    model.hidden[0].eval()
    before = [module.training for module in model.modules()]
    x = draw(5, 4).double()
    nftk.kernel_prediction(model, (x, torch.tensor([0, 1, 0, 1, 1])), x, ridge=0.1)
    assert [module.training for module in model.modules()] == before
