"""NFTKMLP: the contract, the equations from torch's own layers, both parameterisations, every option."""

import pytest
import torch
from nftk_mlp_examples import PlainTorch, inputs, make, square
from torch import nn

import nftk
from nftk.ops.activations import BY_NAME
from nftk.reference import hidden_states_reference, network_reference, readouts_reference


def test_contract_signature_and_defaults():
    model = nftk.NFTKMLP(784, [256] * 10, 10)
    assert model(torch.zeros(3, 784)).shape == (3, 10)
    assert isinstance(model.omega, nn.Parameter)
    assert model.omega.shape == (10, 10)
    assert torch.equal(model.omega, torch.full((10, 10), 0.1))
    assert model.output_bias is None
    assert model.backend == "auto"
    assert model.parameterization == "standard"
    assert model.constraint == nftk.constraints.NonNegative()
    assert model.weight_var == (2.0,) * 10
    assert model.bias_var == (0.0,) * 10
    assert model.readout_var == (1.0,) * 10
    assert [layer.bias is not None for layer in model.hidden] == [True] * 10
    assert model.project_() is model
    assert next(model.parameters()).dtype is torch.float32
    names = dict(model.named_parameters())
    assert set(names) == {"omega", "readout_weight"} | {
        f"hidden.{i}.{p}" for i in range(10) for p in ("weight", "bias")
    }


@pytest.mark.parametrize(
    "name", [*BY_NAME, square, nn.PReLU(dtype=torch.float64)], ids=lambda a: getattr(a, "__name__", str(a))
)
def test_matches_torch_layers(name):
    model = make(activation=name)
    x = inputs()
    torch.testing.assert_close(model(x), PlainTorch(model)(x))
    got = torch.autograd.grad(model(x).sin().sum(), list(model.parameters()))
    want = torch.autograd.grad(PlainTorch(model)(x).sin().sum(), list(model.parameters()))
    for (key, _), ours, theirs in zip(model.named_parameters(), got, want, strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("widths", [(1,), (5,), (7, 7), (3, 11, 2)], ids=str)
@pytest.mark.parametrize("d", [1, 2, 50])
def test_parts_match_the_reference(widths, d):
    model = make(widths, d)
    x = inputs()
    weights, biases = [layer.weight for layer in model.hidden], [layer.bias for layer in model.hidden]
    states = hidden_states_reference(x, weights, biases, torch.relu)
    for ours, theirs in zip(model.hidden_states(x), states, strict=True):
        torch.testing.assert_close(ours, theirs)
    f_l = readouts_reference(states, model.readout_weights())
    torch.testing.assert_close(model.readouts(x), f_l)
    torch.testing.assert_close(model(x), (f_l * model.omega.T).sum(1))
    torch.testing.assert_close(
        model(x), network_reference(x, weights, biases, model.readout_weights(), model.omega, torch.relu)
    )


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,), (2, 0)], ids=str)
def test_leading_dimensions_as_in_linear(lead):
    model = make()
    x = torch.randn(*lead, 6, dtype=torch.float64)
    assert model(x).shape == nn.Linear(6, 4).double()(x).shape
    assert model.readouts(x).shape == (*lead, 3, 4)
    assert [h.shape for h in model.hidden_states(x)] == [(*lead, 16), (*lead, 9), (*lead, 16)]
    torch.testing.assert_close(model(x), PlainTorch(model)(x))


def test_empty_batch_trains():
    model = make()
    model(inputs(0)).sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


class TestParameterization:
    def test_xavier(self):
        torch.manual_seed(0)
        model = nftk.NFTKMLP(400, [300, 500], 200)
        for layer, n_in, n_out in zip(model.hidden, (400, 300), (300, 500), strict=True):
            assert layer.weight.std().item() == pytest.approx((2 / (n_in + n_out)) ** 0.5, rel=0.02)
            assert not layer.bias.any()
        for v, n in zip(model.readout_weights(), (300, 500), strict=True):
            assert v.std().item() == pytest.approx((2 / (n + 200)) ** 0.5, rel=0.02)

    @pytest.mark.parametrize("path", ["one node", "modules"])
    def test_ntk_formula(self, path):
        model = make(parameterization="ntk", weight_var=1.7, bias_var=0.3, readout_var=[0.5, 1.0, 2.0])
        if path == "modules":
            model.hidden[0].register_forward_hook(lambda *_: None)
        x = inputs()
        h, f, n_in = x, 0, 6
        for i, layer in enumerate(model.hidden):
            n = layer.weight.shape[0]
            g = (1.7 / n_in) ** 0.5 * h @ layer.weight.T + 0.3**0.5 * layer.bias
            h, n_in = torch.relu(g), n
            f_l = (model.readout_var[i] / n) ** 0.5 * h @ model.readout_weights()[i].T
            torch.testing.assert_close(model.readouts(x)[:, i], f_l)
            f = f + model.omega[:, i] * f_l
        torch.testing.assert_close(model(x), f)

    def test_ntk_draws_everything_from_the_standard_normal(self):
        torch.manual_seed(0)
        model = nftk.NFTKMLP(100, [200, 150], 50, parameterization="ntk", bias_var=1.0)
        for p in (*(layer.weight for layer in model.hidden), model.readout_weight):
            assert p.std().item() == pytest.approx(1, rel=0.05)
        assert model.hidden[0].bias.std().item() == pytest.approx(1, rel=0.3)

    def test_ntk_without_bias_variance_has_no_bias(self):
        assert all(layer.bias is None for layer in nftk.NFTKMLP(4, [3, 3], 2, parameterization="ntk").hidden)
        some = nftk.NFTKMLP(4, [3, 3], 2, parameterization="ntk", bias_var=[0.0, 1.0])
        assert [layer.bias is not None for layer in some.hidden] == [False, True]


class TestOptions:
    def test_no_bias_and_output_bias(self):
        model = make(bias=False, output_bias=True)
        assert all(layer.bias is None for layer in model.hidden)
        assert not model.output_bias.any()
        with torch.no_grad():
            model.output_bias.normal_()
        x = inputs()
        torch.testing.assert_close(model(x), PlainTorch(model)(x) + model.output_bias)
        torch.testing.assert_close((model.readouts(x) * model.omega.T).sum(1) + model.output_bias, model(x))

    def test_omega_init(self):
        assert torch.equal(nftk.NFTKMLP(2, [3, 3], 2, omega_init=0.7).omega, torch.full((2, 2), 0.7))
        start = torch.rand(2, 2)
        assert torch.equal(nftk.NFTKMLP(2, [3, 3], 2, omega_init=start).omega, start)

    def test_activation_per_layer(self):
        model = make(activation=["relu", "tanh", square])
        x = inputs()
        torch.testing.assert_close(model(x), PlainTorch(model)(x))

    def test_project(self):
        model = make(constraint="simplex")
        with torch.no_grad():
            model.omega.normal_()
        torch.testing.assert_close(model.project_().omega.sum(1), torch.ones(4).double())
        free = make(constraint=None)
        with torch.no_grad():
            free.omega.fill_(-1)
        assert (free.project_().omega == -1).all()

    def test_own_constraint(self):
        class Half:
            def project_(self, omega):
                return omega.fill_(0.5)

        assert (make(constraint=Half()).project_().omega == 0.5).all()

    def test_dropout(self):
        model = make(dropout=[0.5, 0.0, 0.0])
        x = inputs(2000)
        states = model.hidden_states(x)
        dropped = (states[0] == 0) & (make().hidden_states(x)[0] != 0)
        assert 0.4 < dropped.sum() / (make().hidden_states(x)[0] != 0).sum() < 0.6
        assert not torch.equal(model(x), model(x))
        model.eval()
        torch.testing.assert_close(model(x), make()(x))

    def test_repr_says_what_it_is(self):
        text = repr(nftk.NFTKMLP(784, [256] * 10, 10))
        assert "784, [256] * 10, 10, activation=relu" in text
        assert "constraint=NonNegative()" in text
        assert "[3, 4], 2" in repr(nftk.NFTKMLP(5, [3, 4], 2))

    def test_device_and_dtype(self):
        model = nftk.NFTKMLP(4, [3], 2, device="meta", dtype=torch.bfloat16)
        assert {p.device.type for p in model.parameters()} == {"meta"}
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("arguments", "keywords", "kind", "message"),
    [
        ((0, [3], 2), {}, ValueError, "in_features must be at least 1, got 0"),
        ((4, [3, 0], 2), {}, ValueError, "every width in hidden_features must be at least 1, got 0"),
        ((4, [], 2), {}, ValueError, r"hidden_features must list a width a layer, .*got \[\]"),
        ((4, 3, 2), {}, ValueError, "hidden_features must list a width a layer, .*got 3"),
        ((4, [3], -1), {}, ValueError, "out_features must be at least 1, got -1"),
        ((4, [2.5], 2), {}, TypeError, "every width in hidden_features must be an integer, got 2.5"),
        ((4, [3], 2), {"activation": "swish"}, ValueError, "activation must be one of 'relu', .* got 'swish'"),
        ((4, [3], 2), {"activation": nn.ReLU}, TypeError, "activation must be a name or a callable on tensors"),
        ((4, [3, 3], 2), {"activation": ["relu"]}, ValueError, "activation must be one or 2, one a layer, got 1"),
        ((4, [3], 2), {"parameterization": "mup"}, ValueError, "parameterization must be one of 'standard', 'ntk'"),
        ((4, [3], 2), {"omega_init": torch.ones(3, 1)}, ValueError, r"omega_init .* shape \[2, 1\], got \[3, 1\]"),
        ((4, [3], 2), {"omega_init": float("nan")}, ValueError, "omega_init must be finite, got nan"),
        ((4, [3], 2), {"weight_var": 1.0}, ValueError, "weight_var, .* must go with parameterization='ntk'"),
        ((4, [3], 2), {"omega_init": "uniform"}, TypeError, "omega_init must be a number, got 'uniform'"),
        ((4, [3], 2), {"constraint": "box"}, ValueError, "constraint must be one of"),
        ((4, [3], 2), {"backend": "cuda"}, NotImplementedError, "backend must be one of .* got 'cuda'"),
        ((4, [3], 2), {"backend": "gpu"}, ValueError, "backend must be one of 'auto'"),
        ((4, [3], 2), {"dropout": 1.0}, ValueError, "dropout must be below 1, got 1"),
        ((4, [3], 2), {"dropout": -0.1}, ValueError, "dropout must be finite and at least 0, got -0.1"),
        (
            (4, [3], 2),
            {"weight_var": 0.0, "parameterization": "ntk"},
            ValueError,
            "weight_var must be finite and above 0, got 0",
        ),
        (
            (4, [3], 2),
            {"readout_var": [1.0, 2.0], "parameterization": "ntk"},
            ValueError,
            "readout_var must be a number or 1 numbers",
        ),
    ],
)
def test_errors(arguments, keywords, kind, message):
    with pytest.raises(kind, match=message):
        nftk.NFTKMLP(*arguments, **keywords)


@pytest.mark.parametrize("method", ["__call__", "readouts", "hidden_states"])
def test_wrong_input(method):
    with pytest.raises(ValueError, match=r"x must have shape \[\.\.\., 6\], got \[5, 7\]"):
        getattr(make(), method)(torch.ones(5, 7).double())
    with pytest.raises(ValueError, match=r"x must have shape \[\.\.\., 6\], got \[\]"):
        getattr(make(), method)(torch.ones(()).double())
