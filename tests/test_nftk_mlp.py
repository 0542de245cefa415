"""NFTKMLP as a module: the contract, the drop-in, and everything that torch does to modules."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import nftk
from nftk.ops.activations import BY_NAME
from nftk.reference import hidden_states_reference, network_reference, readouts_reference


def square(g):
    return g * g


class PlainTorch(nn.Module):
    """The paper's network from torch's own layers, with the parameters of an NFTKMLP: the truth of this file."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        out = 0
        for i, layer in enumerate(self.model.hidden):
            x = self.model._plan.activations[i].function(nn.functional.linear(x, layer.weight, layer.bias))
            out = out + self.model.omega[:, i] * nn.functional.linear(x, self.model.readout_weights()[i])
        return out


def make(hidden=(16, 9, 16), d=4, **keywords):
    torch.manual_seed(1)
    keywords.setdefault("dtype", torch.float64)
    model = nftk.NFTKMLP(6, list(hidden), d, **keywords)
    with torch.no_grad():
        model.omega.copy_(torch.rand(d, len(hidden)))
        for layer in model.hidden:
            if layer.bias is not None:
                layer.bias.normal_(std=0.3)
    return model


def inputs(*lead, dtype=torch.float64):
    return torch.randn(*(lead or (5,)), 6, dtype=dtype)


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


class TestHooksAreHonoured:
    """Whoever puts something on a hidden layer sees it act: the shortcut past the modules steps aside."""

    def test_forward_hook(self):
        model, seen = make(), []
        handle = model.hidden[1].register_forward_hook(lambda module, args, out: seen.append(out) or out * 0)
        x = inputs()
        assert not torch.allclose(model(x), PlainTorch(model)(x))
        assert len(seen) == 1
        handle.remove()
        torch.testing.assert_close(model(x), PlainTorch(model)(x))

    @pytest.mark.parametrize(
        "kind", ["register_forward_pre_hook", "register_full_backward_hook", "register_full_backward_pre_hook"]
    )
    def test_other_hooks(self, kind):
        model, seen = make(), []
        getattr(model.hidden[0], kind)(lambda *args: seen.append(1))
        model(inputs().requires_grad_()).sum().backward()
        assert seen

    def test_global_hook(self):
        seen = []
        handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
        try:
            make()(inputs())
        finally:
            handle.remove()
        assert seen.count("HiddenLinear") == 3

    def test_replaced_layer_and_patched_forward(self):
        model = make()
        model.hidden[1] = nn.Sequential(model.hidden[1], nn.Dropout(0.0))
        x = inputs()
        torch.testing.assert_close(model(x), make()(x))
        patched = make()
        patched.hidden[0].forward = lambda h: torch.zeros(len(h), 16, dtype=h.dtype)
        assert not torch.allclose(patched(x), make()(x))

    def test_parametrization(self):
        class Halve(nn.Module):
            def forward(self, w):
                return w / 2

        model = make()
        x = inputs()
        with torch.no_grad():
            want = make()
            want.hidden[0].weight /= 2
        parametrize.register_parametrization(model.hidden[0], "weight", Halve())
        torch.testing.assert_close(model(x), want(x))


class TestTorchMachinery:
    def test_deepcopy_and_pickle(self):
        for model in (
            make(),
            make(activation=["tanh", square, "relu"]),
            make(activation=nn.PReLU(dtype=torch.float64)),
        ):
            x = inputs()
            for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
                assert torch.equal(twin(x), model(x))
                with torch.no_grad():
                    for p in twin.parameters():
                        p.add_(1)
                assert not torch.allclose(twin(x), model(x))
                assert len(list(twin.parameters())) == len(list(model.parameters()))

    def test_deepcopied_activation_module_is_the_registered_one(self):
        twin = copy.deepcopy(make(activation=nn.PReLU(dtype=torch.float64)))
        assert twin._plan.activations[0].function is twin.activation_modules[0]

    def test_state_dict_strict_round_trip(self):
        model, other = make(output_bias=True), nftk.NFTKMLP(6, [16, 9, 16], 4, output_bias=True, dtype=torch.float64)
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        buffer.seek(0)
        other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
        x = inputs()
        assert torch.equal(model(x), other(x))
        with pytest.raises(RuntimeError, match="size mismatch"):
            nftk.NFTKMLP(6, [16, 9, 15], 4, output_bias=True).load_state_dict(model.state_dict())

    @pytest.mark.parametrize(
        "keywords",
        [{}, {"parameterization": "ntk", "bias_var": 0.1}, {"activation": "gelu", "output_bias": True}],
        ids=str,
    )
    @pytest.mark.parametrize("hidden", [(8, 8, 8), (8, 5)], ids=str)
    def test_compile_fullgraph(self, hidden, keywords):
        model = make(hidden, **keywords)
        x = inputs()
        want = torch.autograd.grad(model(x).sin().sum(), list(model.parameters()))
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x))
        got = torch.autograd.grad(compiled(x).sin().sum(), list(model.parameters()))
        for ours, exact in zip(got, want, strict=True):
            torch.testing.assert_close(ours, exact)

    def test_compile_fullgraph_inductor(self):
        model = make()
        compiled = torch.compile(model, fullgraph=True)
        x = inputs()
        torch.testing.assert_close(compiled(x), model(x))
        compiled(x).sum().backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_export(self):
        model = make().eval()
        batch = torch.export.Dim("batch", min=2)
        program = torch.export.export(model, (inputs(5),), dynamic_shapes=({0: batch},))
        x = inputs(11)
        torch.testing.assert_close(program.module()(x), model(x))

    def test_functional_call_and_transforms(self):
        model = make(activation="tanh")
        x = inputs()
        params = dict(model.named_parameters())
        plain = PlainTorch(model)

        def f(params):
            return torch.func.functional_call(model, params, (x,))

        def want(params):
            return torch.func.functional_call(plain, {f"model.{k}": v for k, v in params.items()}, (x,))

        torch.testing.assert_close(f(params), want(params))
        for ours, theirs in zip(
            torch.func.jacrev(f)(params).values(), torch.func.jacrev(want)(params).values(), strict=True
        ):
            torch.testing.assert_close(ours, theirs)
        tangents = {k: torch.randn_like(v) for k, v in params.items()}
        torch.testing.assert_close(
            torch.func.jvp(f, (params,), (tangents,)), torch.func.jvp(want, (params,), (tangents,))
        )
        stack = {k: torch.stack([v, 2 * v]) for k, v in params.items()}
        torch.testing.assert_close(torch.func.vmap(f)(stack)[1], want({k: 2 * v for k, v in params.items()}))
        per_sample = torch.func.vmap(torch.func.jacrev(lambda x: model(x)))(x)
        torch.testing.assert_close(per_sample[2], torch.func.jacrev(plain)(x[2]))

    def test_autocast_bfloat16(self):
        model = make(dtype=torch.float32)
        x = inputs(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            f = model(x)
        assert f.dtype is torch.bfloat16
        torch.testing.assert_close(f.float(), model(x), rtol=0.05, atol=0.02)
        f.float().sum().backward()
        assert all(p.grad.dtype is torch.float32 for p in model.parameters())

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    def test_dtypes(self, dtype):
        model = make().to(dtype)
        x = inputs().to(dtype)
        f = model(x)
        assert f.dtype is dtype
        wide = copy.deepcopy(model).double()
        bound = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(f.double(), PlainTorch(wide)(x.double()), rtol=bound, atol=bound)

    def test_no_grad_and_inference_mode(self):
        model = make()
        x = inputs()
        with torch.no_grad():
            assert model(x).grad_fn is None
        with torch.inference_mode():
            torch.testing.assert_close(model(x).clone(), PlainTorch(model)(x).clone())

    def test_reset_parameters(self):
        model = make()
        before = model.hidden[0].weight.detach().clone()
        model.reset_parameters()
        assert not torch.equal(before, model.hidden[0].weight)
        torch.testing.assert_close(model.omega, torch.full((4, 3), 1 / 3).double())


class TestFile:
    @pytest.mark.parametrize(
        "keywords",
        [
            {},
            {"activation": ["relu", "tanh", "sin"], "output_bias": True, "constraint": "simplex"},
            {"parameterization": "ntk", "bias_var": [0.0, 0.1, 0.2], "constraint": None, "dropout": 0.2},
            {"bias": False, "dtype": torch.bfloat16, "constraint": nftk.constraints.GroupSparse(max_layers=2)},
        ],
        ids=["defaults", "tanh", "ntk", "bfloat16"],
    )
    def test_round_trip(self, keywords, tmp_path):
        model = make(**keywords).eval()
        model.save(tmp_path / "model.safetensors")
        twin = nftk.NFTKMLP.load(tmp_path / "model.safetensors")
        x = inputs().to(model.omega.dtype)
        assert torch.equal(twin(x), model(x))
        assert twin.constraint == model.constraint
        assert repr(twin) == repr(model)
        assert not twin.training
        assert all(p.requires_grad for p in twin.parameters())
        assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]

    def test_what_no_file_can_hold(self, tmp_path):
        with pytest.raises(ValueError, match=r"activation must be a named one, got a callable"):
            make(activation=square).save(tmp_path / "m")
        own = type("Own", (), {"project_": lambda self, omega: omega})()
        with pytest.raises(ValueError, match="constraint must be one of nftk.constraints"):
            make(constraint=own).save(tmp_path / "m")
        assert not list(tmp_path.iterdir())

    def test_tied_and_parametrized_weights(self, tmp_path):
        model = make((8, 8, 8))
        model.hidden[2].weight = model.hidden[1].weight
        model.save(tmp_path / "tied")
        x = inputs()
        assert torch.equal(nftk.NFTKMLP.load(tmp_path / "tied")(x), model(x))
        torch.nn.utils.parametrizations.weight_norm(model.hidden[0])
        with pytest.raises(ValueError, match="model must have no parameters but its own, got hidden.0.param"):
            model.save(tmp_path / "normed")

    def test_bad_files(self, tmp_path):
        path = tmp_path / "model.safetensors"
        with pytest.raises(ValueError, match="must be a file, got none there"):
            nftk.NFTKMLP.load(path)
        path.write_bytes(b"not a network")
        with pytest.raises(ValueError, match="must be a whole safetensors file, got"):
            nftk.NFTKMLP.load(path)
        make().save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[:-10])
        with pytest.raises(ValueError, match="must be a whole safetensors file, got"):
            nftk.NFTKMLP.load(path)
        from safetensors.torch import save_file

        save_file({"a": torch.ones(1)}, path)
        with pytest.raises(ValueError, match="must be a network that nftk saved, got a header without"):
            nftk.NFTKMLP.load(path)
        path.write_bytes(whole.replace(b'\\"out_features\\": 4', b'\\"out_features\\": 5'))
        with pytest.raises(ValueError, match="must be a network that nftk saved, got .*size mismatch"):
            nftk.NFTKMLP.load(path)


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
