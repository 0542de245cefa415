"""NFTKMLP under everything that torch does to modules: hooks, copies, compilation, transforms, autocast."""

import copy
import io
import pickle

import pytest
import torch
from nftk_mlp_examples import PlainTorch, inputs, make, square
from torch import nn
from torch.nn.utils import parametrize

import nftk


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
