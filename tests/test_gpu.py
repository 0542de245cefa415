"""What runs on a GPU, against the same thing on the CPU in float64; bench/gpu.sh calls it."""

import copy

import pytest
import torch

import nftk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def toy(n=600, dtype=torch.float32):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(n, 12, generator=g)
    return x.to(dtype), (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def make(**keywords):
    torch.manual_seed(2)
    return nftk.NFTKMLP(12, [64, 48, 64], 3, **keywords)


@pytest.mark.parametrize(
    "keywords", [{}, {"parameterization": "ntk", "bias_var": 0.1}, {"activation": "gelu"}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forward_and_gradients(dtype, keywords):
    wide = make(dtype=torch.float64, **keywords)
    model = copy.deepcopy(wide).to("cuda", dtype)
    x = toy(50, torch.float64)[0]
    f, want = model(x.to("cuda", dtype)), wide(x)
    bound = 1e-4 if dtype is torch.float32 else 1e-10
    torch.testing.assert_close(f.double().cpu(), want, rtol=bound, atol=bound)
    got = torch.autograd.grad(f.sin().sum(), list(model.parameters()))
    for ours, exact in zip(got, torch.autograd.grad(want.sin().sum(), list(wide.parameters())), strict=True):
        torch.testing.assert_close(ours.double().cpu(), exact, rtol=bound, atol=bound)


@pytest.mark.parametrize("name", ["nonnegative", "simplex", "l1ball", "groupsparse"])
def test_projections(name):
    constraint = nftk.constraints.resolve(name)
    omega = torch.randn(10, 20, dtype=torch.float64)
    torch.testing.assert_close(constraint.project(omega.cuda()).cpu(), constraint.project(omega))


@pytest.mark.parametrize("schedule", ["joint", "alternating"])
def test_fit_as_on_the_cpu(schedule):
    x, y = toy(dtype=torch.float64)
    a, b = make(dtype=torch.float64), make(dtype=torch.float64)
    here = nftk.fit(a, (x, y), (x, y), epochs=4, schedule=schedule)
    there = nftk.fit(b, (x, y), (x, y), epochs=4, schedule=schedule, device="cuda")
    assert b.omega.is_cuda
    assert here.column("test_accuracy") == pytest.approx(there.column("test_accuracy"), abs=0.01)
    assert here.column("loss") == pytest.approx(there.column("loss"), rel=1e-8)
    torch.testing.assert_close(b.omega.cpu(), a.omega)


def test_steps_do_not_wait_for_the_device():
    x, y = toy()
    model = make().cuda()
    data = x.cuda(), y.cuda()
    nftk.fit(model, data, epochs=1)
    synced = []

    def on_step(epoch, step, steps):
        # from the second step on, until the epoch's end, nothing may make the host wait
        torch.cuda.set_sync_debug_mode("default" if step == steps else "error")
        synced.append(step)

    try:
        nftk.fit(model, data, epochs=1, on_step=on_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(synced) == 12


def test_bad_loss_is_told_when_the_epoch_ends():
    x, y = toy()
    with pytest.raises(FloatingPointError, match=r"epoch \d+, step \d+ of 12; try a smaller lr"):
        nftk.fit(make(), (x, y), lr=1e20, lr_omega=1e20, epochs=5, device="cuda")


def test_resume_on_the_gpu(tmp_path):
    x, y = toy()
    nftk.fit(make(), (x, y), epochs=2, device="cuda", checkpoint=tmp_path / "run.pt")
    model = make()
    history = nftk.fit(model, (x, y), epochs=4, device="cuda", checkpoint=tmp_path / "run.pt", resume=True)
    assert len(history) == 4
    assert model.omega.is_cuda
