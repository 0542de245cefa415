"""What runs on a GPU, against the same thing on the CPU in float64; bench/gpu.sh calls it."""

import copy

import pytest
import torch

import nftk
from nftk.training.batches import TensorBatches
from nftk.training.evaluate import evaluate_batches
from nftk.training.losses import LOSSES, cross_entropy

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


class Launches:
    """Counts captures and replays of CUDA graphs."""

    def __init__(self, monkeypatch):
        self.captures = self.replays = 0
        for name, count in (("capture_begin", "captures"), ("replay", "replays")):
            monkeypatch.setattr(torch.cuda.CUDAGraph, name, self.counted(getattr(torch.cuda.CUDAGraph, name), count))

    def counted(self, method, count):
        def call(graph, *args, **keywords):
            setattr(self, count, getattr(self, count) + 1)
            return method(graph, *args, **keywords)

        return call


@pytest.fixture
def launches(monkeypatch):
    return Launches(monkeypatch)


def eager_and_graphed(model, data, **keywords):
    """Fit both ways on the GPU; returns both models and histories."""
    other = copy.deepcopy(model)
    eager = nftk.fit(model, data, data, device="cuda", cuda_graph=False, **keywords)
    graphed = nftk.fit(other, data, data, device="cuda", **keywords)
    return model, other, eager, graphed


def assert_close(model, other, eager, graphed):
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
    for column in ("loss", "test_loss"):
        assert graphed.column(column) == pytest.approx(eager.column(column), rel=1e-8)
    for column in ("train_accuracy", "test_accuracy"):
        assert graphed.column(column) == pytest.approx(eager.column(column), abs=0.01)
    for column in ("phase", "lr", "lr_omega", "zeros"):
        assert graphed.column(column) == eager.column(column)


@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable=True")
@pytest.mark.parametrize(
    ("keywords", "captures"),
    [
        ({}, 1),
        ({"loss": "mse"}, 1),
        ({"proximal": 0.7}, 1),
        *(({"constraint": name, "lr_omega": 0.5}, 1) for name in ("simplex", "l1ball", "groupsparse", "none")),
        ({"schedule": "alternating", "phase_epochs": 1, "phase_tolerance": 0.0}, 2),
        ({"lr_schedule": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5)}, 4),
        ({"optimizer": lambda ps: torch.optim.SGD(ps, lr=0.02, momentum=0.9)}, 1),
        ({"optimizer": lambda ps: torch.optim.Adam(ps, lr=1e-3, capturable=True)}, 1),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "-".join(value) + str(value.get("constraint", "")),
)
def test_graphed_as_eager(launches, keywords, captures):
    # 620 = 12 full batches and one of 20
    four = eager_and_graphed(make(dtype=torch.float64), toy(620, torch.float64), epochs=4, **keywords)
    assert_close(*four)
    # three eager steps before each capture, the short batches eager
    assert (launches.captures, launches.replays) == (captures, 4 * 12 - 3 * captures)


def test_graphed_as_eager_in_float32_and_a_plain_module(launches):
    torch.manual_seed(2)
    mlp = torch.nn.Sequential(torch.nn.Linear(12, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
    for model in (make(), mlp):
        a, b, eager, graphed = eager_and_graphed(model, toy(620), epochs=3)
        assert graphed.column("loss") == pytest.approx(eager.column("loss"), rel=1e-3)
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(q, p, rtol=1e-3, atol=1e-4)
    assert (launches.captures, launches.replays) == (2, 2 * (36 - 3))


def test_dropout_in_a_graph(launches):
    """Other masks at each step, the same ones for the same seed, and those of the eager steps."""
    x, y = toy(600, torch.float64)
    four = eager_and_graphed(make(dtype=torch.float64, dropout=0.5), (x, y), epochs=2)
    assert_close(*four)
    again, other = (make(dtype=torch.float64, dropout=0.5) for _ in range(2))
    nftk.fit(again, (x, y), epochs=2, device="cuda")
    nftk.fit(other, (x, y), epochs=2, device="cuda", seed=1)
    torch.testing.assert_close(again.omega, four[1].omega)
    assert not torch.allclose(other.omega, again.omega)

    # no update and the same examples in each batch, so only the masks can tell the steps' gradients apart
    model = make(dropout=0.5)
    seen = []
    nftk.fit(
        model, (x[:1].float().expand(600, 12).contiguous(), y[:1].expand(600).contiguous()), epochs=2, device="cuda",
        lr=0.0, lr_omega=0.0, weight_decay=0.0, on_step=lambda *_: seen.append(model.omega.grad.clone()),
    )  # fmt: skip
    assert len({tuple(grad.flatten().tolist()) for grad in seen}) == 24
    assert launches.captures == 4


def test_gradients_are_this_step_s(launches):
    model, other = make(), make()
    grads = {False: [], None: []}
    for m, cuda_graph in ((model, False), (other, None)):
        nftk.fit(
            m, toy(620), epochs=2, device="cuda", cuda_graph=cuda_graph,
            on_step=lambda *_, m=m, kept=grads[cuda_graph]: kept.append(m.omega.grad.clone()),
        )  # fmt: skip
    assert len(grads[None]) == 26
    for a, b in zip(grads[False], grads[None], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-2, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("cuda_graph", [False, None])
def test_steps_do_not_wait_for_the_device(cuda_graph):
    x, y = toy(620)
    model = make().cuda()
    data = x.cuda(), y.cuda()
    nftk.fit(model, data, epochs=1)
    synced = []

    def on_step(epoch, step, steps):
        # from the second step on, until the epoch's end, nothing may make the host wait, a capture neither
        torch.cuda.set_sync_debug_mode("default" if step == steps else "error")
        synced.append(step)

    try:
        nftk.fit(model, data, epochs=2, on_step=on_step, cuda_graph=cuda_graph)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert synced == [*range(1, 14)] * 2


@pytest.mark.filterwarnings("ignore")
def test_one_launch_a_step():
    model, data = make().cuda(), toy()
    # the second epoch is all replays
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    profiler = torch.profiler.profile(activities=activities)
    counts = {}

    def on_step(epoch, step, steps):
        if (epoch, step) == (2, 1):
            profiler.start()
        elif (epoch, step) == (2, 11):
            profiler.stop()
            for event in profiler.events():
                counts[event.name] = counts.get(event.name, 0) + 1

    nftk.fit(model, data, epochs=2, on_step=on_step)
    if not any(name.startswith("cuda") for name in counts):
        pytest.skip("the profiler sees no calls of the CUDA runtime here")
    assert counts.get("cudaGraphLaunch") == 10
    assert not any(name.startswith("cudaMemcpy") for name in counts)
    # torch itself may set the generator's seed and offset at each replay, by a kernel each
    assert {name for name in counts if name.startswith("aten::")} <= {"aten::fill_"}
    assert sum(count for name, count in counts.items() if name.startswith("cudaLaunchKernel")) <= 20


def test_evaluation_does_not_wait_for_each_batch(monkeypatch):
    x, y = toy(9000)
    model = make()
    want = nftk.evaluate(model, (x, y))
    model.cuda()
    waits = []
    for name in ("__float__", "__int__", "item"):
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, method=method: (self.is_cuda and waits.append(1), method(self))[1]
        )
    got = evaluate_batches(model, TensorBatches(x, y, 2048, torch.device("cuda"), False), cross_entropy)
    assert len(waits) <= 4  # one each for the loss and the accuracy, which may call one another
    assert got.loss == pytest.approx(want.loss, rel=1e-5)
    assert got.accuracy == pytest.approx(want.accuracy, abs=1e-3)


def own_loss(f, y):
    return torch.nn.functional.cross_entropy(f, y)


def waiting_loss(f, y):
    return own_loss(f, y) * float(own_loss(f, y).detach() < 1e9)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_code_of_the_caller(launches):
    assert_close(*eager_and_graphed(make(dtype=torch.float64), toy(620, torch.float64), epochs=2, loss=own_loss))
    assert launches.captures == 0
    nftk.fit(make(), toy(620), epochs=2, loss=own_loss, device="cuda", cuda_graph=True)
    assert (launches.captures, launches.replays) == (1, 2 * 12 - 3)
    with pytest.raises(RuntimeError, match="got True: it makes the host wait for the device"):
        nftk.fit(make(), toy(620), loss=waiting_loss, device="cuda", cuda_graph=True)
    assert launches.captures == 1


def test_a_failed_capture_costs_nothing(monkeypatch):
    """Of a kind that watching the step before cannot foresee; dropout, since torch's generator has to be put right."""

    def loss(f, y):
        value = own_loss(f, y)
        if torch.cuda.is_current_stream_capturing():
            value.item()
        return value

    data = toy(620, torch.float64)
    models = [make(dtype=torch.float64, dropout=0.3) for _ in range(3)]
    want = nftk.fit(models[0], data, data, epochs=3, device="cuda", cuda_graph=False)
    with pytest.raises(RuntimeError, match="cuda_graph must be None or False for this step, got True: capturing it"):
        nftk.fit(models[1], data, loss=loss, epochs=3, device="cuda", cuda_graph=True)
    monkeypatch.setitem(LOSSES, "cross_entropy", loss)
    loss.__module__ = "nftk.training.losses"
    with pytest.warns(
        UserWarning, match="goes on without a CUDA graph of its step, since capturing it failed: "
    ) as told:
        got = nftk.fit(models[2], data, data, epochs=3, device="cuda")
    assert sum("goes on without" in str(warning.message) for warning in told) == 1
    assert_close(models[0], models[2], want, got)
    monkeypatch.undo()
    # and the next run has its graph again
    assert_close(*eager_and_graphed(make(dtype=torch.float64, dropout=0.3), data, epochs=2))


def test_bad_loss_is_told_when_the_epoch_ends():
    x, y = toy()
    with pytest.raises(FloatingPointError, match=r"epoch \d+, step \d+ of 12; try a smaller lr"):
        nftk.fit(make(), (x, y), lr=1e20, lr_omega=1e20, epochs=5, device="cuda")


@pytest.mark.parametrize("bad", [3, 8])
def test_first_bad_step_is_told(bad):
    """In an eager step and in a graph."""
    x, y = toy()
    target = torch.nn.functional.one_hot(y, 3).float()
    torch.manual_seed(1)  # of epoch 1 with seed 0
    target[torch.randperm(600)[50 * bad - 1]] = 1e30  # its square is infinite
    with pytest.raises(FloatingPointError, match=f"epoch 1, step {bad} of 12; try a smaller lr"):
        nftk.fit(make(), (x, target), loss="mse", epochs=2, device="cuda")


def test_resume_on_the_gpu(tmp_path, launches):
    x, y = toy(620, torch.float64)
    keywords = {"device": "cuda", "optimizer": lambda ps: torch.optim.SGD(ps, lr=0.02, momentum=0.9)}
    whole, first, model = (make(dtype=torch.float64, dropout=0.1) for _ in range(3))
    want = nftk.fit(whole, (x, y), (x, y), epochs=4, **keywords)
    nftk.fit(first, (x, y), (x, y), epochs=2, checkpoint=tmp_path / "run.pt", **keywords)
    got = nftk.fit(model, (x, y), (x, y), epochs=4, checkpoint=tmp_path / "run.pt", resume=True, **keywords)
    assert len(got) == 4
    assert model.omega.is_cuda
    assert_close(whole, model, want, got)
    assert launches.captures == 3
