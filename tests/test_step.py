"""The step that a CUDA graph can hold, without a GPU: it is the plain loop's, and is captured when it should be."""

import copy
import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR

import nftk
from nftk.training import graphs
from nftk.training.batches import TensorBatches
from nftk.training.meter import Meter
from nftk.training.step import StaticSteps


def toy(n=53):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(n, 4, generator=g)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def make(**keywords):
    torch.manual_seed(2)
    return nftk.NFTKMLP(4, [8, 6], 3, **keywords)


class FakeCuda:
    """Runs on a CPU what a graph would hold, and keeps a log."""

    def __init__(self, error=None, waiting=False):
        self.log, self.error, self.waiting, self.replays = [], error, waiting, []

    def __call__(self, device):
        return self

    def side_stream(self):
        return nullcontext()

    def waits(self, step):
        self.log.append("watch")
        step()
        return self.waiting

    def capture(self, step):
        self.log.append("capture")
        if self.error is not None:
            raise self.error
        meter = step.func.__self__.meter
        meter.seen += 1000  # a capture runs the Python of a step, a replay does not

        def replay():
            self.log.append("replay")
            seen = meter.seen
            step()
            meter.seen = seen

        self.replays.append(weakref.ref(replay))
        return replay

    def on_step(self, epoch, step, steps):
        self.log.append(f"{epoch}.{step}")


@pytest.fixture
def cuda(monkeypatch):
    """Let fit on a CPU go the way of a GPU."""
    fake = FakeCuda()
    monkeypatch.setattr(graphs, "Cuda", fake)
    monkeypatch.setattr(graphs, "why_not", lambda run, sure: None)
    return fake


def assert_same(a, b, history_a, history_b):
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q), name
    rows = [[{k: v for k, v in r.to_dict().items() if k != "seconds"} for r in h] for h in (history_a, history_b)]
    assert rows[0] == rows[1]


def both(cuda, model=None, data=None, **keywords):
    """Fit as on a GPU, after asserting that the plain loop ends bit-identical; returns the history."""
    model = make() if model is None else model
    plain = copy.deepcopy(model)
    data = toy() if data is None else data
    keywords = {"epochs": 3, "batch_size": 10} | keywords
    want = nftk.fit(plain, data, data, cuda_graph=False, **keywords)
    assert not cuda.log
    on_step = keywords.pop("on_step", lambda *_: None)
    got = nftk.fit(model, data, data, on_step=lambda *at: (cuda.on_step(*at), on_step(*at)), **keywords)
    assert_same(plain, model, want, got)
    return got


EPOCH = "replay {e}.1 replay {e}.2 replay {e}.3 replay {e}.4 replay {e}.5 {e}.6"
FIRST = "{e}.1 {e}.2 watch {e}.3 capture replay {e}.4 replay {e}.5 {e}.6"


def log_of(*epochs):
    return " ".join(epoch.format(e=e) for e, epoch in enumerate(epochs, 1)).split()


class TestSameAsThePlainLoop:
    @pytest.mark.parametrize(
        "keywords",
        [
            {},
            {"loss": "mse"},
            {"proximal": 0.7, "lr": 0.1},
            {"schedule": "alternating", "phase_epochs": 2, "epochs": 6},
            *({"constraint": name, "lr_omega": 1.0} for name in ("simplex", "l1ball", "groupsparse", "none")),
            {"lr_schedule": lambda o: ExponentialLR(o, 0.5), "epochs": 4},
            {"optimizer": lambda ps: SGD(ps, lr=0.1, momentum=0.9, nesterov=True)},
            {"optimizer": lambda ps: SGD(ps, lr=torch.tensor(0.1), foreach=True)},
            {"optimizer": lambda ps: Adam(ps, lr=0.01)},
            {"batch_size": 53},
            {"batch_size": 99},
            {"batch_size": 1, "epochs": 1},
        ],
        ids=lambda keywords: "-".join(keywords) + str(keywords.get("constraint", keywords.get("batch_size", ""))),
    )
    def test_fit(self, cuda, keywords):
        both(cuda, **keywords)
        assert ("capture" in cuda.log) == (keywords.get("batch_size", 0) < 53)

    def test_dropout_and_targets(self, cuda):
        x, y = toy()
        both(cuda, make(dropout=0.5))
        cuda.log.clear()
        both(cuda, data=(x, functional.one_hot(y, 3).float()), loss="mse")

    def test_plain_module(self, cuda):
        both(cuda, nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)))

    def test_what_a_graph_reads_stays_where_it_is(self):
        x, y = toy()
        meter = Meter(torch.device("cpu"), 0, 6, "")
        meter.at_once = False
        seen = []
        steps = StaticSteps(TensorBatches(x, y, 10, x.device, True), meter, lambda x, y, active, meter: None)
        tensors = (steps.order, steps.full, steps.index, meter.total, meter.correct, meter.step, meter.first_bad)
        places = [t.data_ptr() for t in tensors]
        for epoch in (1, 2):
            torch.manual_seed(epoch)
            steps.start(epoch, "")
            seen.append(steps.order.clone())
            meter.add(torch.tensor(1.0), torch.eye(3), torch.arange(3))
            assert int(steps.index) == 1
        assert places == [t.data_ptr() for t in tensors]
        assert not torch.equal(*seen)
        torch.manual_seed(2)
        assert torch.equal(seen[1], torch.randperm(53))


class TestMeterOnTheDevice:
    def test_first_bad_step(self, cuda):
        values = iter([1.0] * 8 + [float("nan"), 1.0, float("inf")] + [1.0] * 9)
        with pytest.raises(FloatingPointError, match="got nan at epoch 2, step 3 of 6; try a smaller lr .now 0.02"):
            nftk.fit(make(), toy(), batch_size=10, loss=lambda f, y: f.mean() * 0 + next(values), on_step=cuda.on_step)
        # all of the epoch was run, and the fourth step was not the first graph's
        assert cuda.log == log_of(FIRST, EPOCH)

    def test_restart_forgets(self):
        meter = Meter(torch.device("cpu"), 1, 2, "")
        meter.at_once = False
        f, y = torch.eye(3), torch.arange(3)
        meter.add(torch.tensor(float("nan")), f, y)
        meter.restart(2, "try less")
        meter.add(torch.tensor(2.0), f, y)
        assert meter.read() == (2.0, 1.0)
        assert meter.read(6) == (1.0, 0.5)
        meter.add(torch.tensor(float("inf")), f, y)
        with pytest.raises(FloatingPointError, match="epoch 2, step 2 of 2; try less"):
            meter.read()


class TestCapture:
    """When a step is captured and when it is launched, by the log of a stand-in."""

    def test_after_three_real_steps(self, cuda):
        both(cuda)
        assert cuda.log == log_of(FIRST, EPOCH, EPOCH)

    def test_warm_up_over_short_epochs(self, cuda):
        both(cuda, batch_size=40, epochs=5)
        assert cuda.log == log_of(
            "{e}.1 {e}.2", "{e}.1 {e}.2", "watch {e}.1 {e}.2", "capture replay {e}.1 {e}.2", "replay {e}.1 {e}.2"
        )

    def test_a_batch_of_everything(self, cuda):
        both(cuda, batch_size=99, epochs=5)
        assert cuda.log == log_of("{e}.1", "{e}.1", "watch {e}.1", "capture replay {e}.1", "replay {e}.1")

    def test_again_when_a_scheduler_changes_the_rate(self, cuda):
        both(cuda, lr_schedule=lambda o: ExponentialLR(o, 0.5))
        assert cuda.log == log_of(FIRST, FIRST, FIRST)

    @pytest.mark.parametrize("name", ["lr", "weight_decay"])
    def test_again_when_a_callback_changes_a_number(self, cuda, name):
        made = []

        def optimizer(ps):
            made.append(SGD(ps, lr=0.1, momentum=0.5))
            return made[-1]

        def on_step(epoch, step, steps):
            if (epoch, step) == (2, 1):
                made[-1].param_groups[0][name] = 0.03

        both(cuda, optimizer=optimizer, on_step=on_step)
        second = "replay {e}.1 {e}.2 {e}.3 watch {e}.4 capture replay {e}.5 {e}.6"
        assert cuda.log == log_of(FIRST, second, EPOCH)

    def test_never_while_the_rate_changes_at_every_step(self, cuda):
        made = []

        def optimizer(ps):
            made.append(SGD(ps, lr=torch.tensor(0.1), foreach=True))
            return made[-1]

        both(cuda, optimizer=optimizer, on_step=lambda *_: made[-1].param_groups[0]["lr"].mul_(0.9))
        assert cuda.log == [f"{e}.{s}" for e in (1, 2, 3) for s in range(1, 7)]

    def test_again_when_a_layer_is_frozen(self, cuda):
        def freeze(model):
            return lambda record: model.hidden[0].requires_grad_(record.epoch != 1)

        a, b = make(), make()
        want = nftk.fit(a, toy(), batch_size=10, epochs=3, on_epoch=freeze(a), cuda_graph=False)
        got = nftk.fit(b, toy(), batch_size=10, epochs=3, on_epoch=freeze(b), on_step=cuda.on_step)
        assert_same(a, b, want, got)
        # the third epoch's settings are the first one's
        assert cuda.log == log_of(FIRST, FIRST, EPOCH)

    def test_again_when_a_dropout_changes(self, cuda):
        a, b = (nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)) for _ in range(2))
        b.load_state_dict(a.state_dict())
        for model, keywords in ((a, {"cuda_graph": False}), (b, {"on_step": cuda.on_step})):
            nftk.fit(
                model, toy(), batch_size=10, epochs=3, **keywords,
                on_epoch=lambda record, model=model: setattr(model[1], "p", 0.1),
            )  # fmt: skip
        assert torch.equal(a[0].weight, b[0].weight)
        assert cuda.log == log_of(FIRST, FIRST, EPOCH)

    def test_one_graph_a_phase(self, cuda):
        history = both(cuda, schedule="alternating", phase_epochs=1, epochs=4)
        assert history.column("phase") == ["theta", "omega"] * 2
        assert cuda.log == log_of(FIRST, FIRST, EPOCH, EPOCH)

    def test_settings_are_looked_at_where_they_may_have_changed(self, cuda, monkeypatch):
        looks, look = [], graphs._settings
        monkeypatch.setattr(graphs, "_settings", lambda *args: (looks.append(1), look(*args))[1])
        nftk.fit(make(), toy(), batch_size=10, epochs=2)
        assert len(looks) == 2
        nftk.fit(make(), toy(), batch_size=10, epochs=2, on_step=cuda.on_step)
        assert len(looks) == 2 + 2 * 7

    def test_few_are_alive_and_none_after_the_end(self, cuda):
        alive = []
        gc.collect()
        gc.disable()
        try:
            nftk.fit(
                make(), toy(), batch_size=10, epochs=5, lr_schedule=lambda o: ExponentialLR(o, 0.5),
                on_epoch=lambda _: alive.append(sum(r() is not None for r in cuda.replays)),
            )  # fmt: skip
            assert alive == [1, 2, 2, 2, 2]
            assert not any(r() is not None for r in cuda.replays)
        finally:
            gc.enable()

    def test_gradients_are_those_of_the_graph(self, cuda):
        model = make()
        optimizer = SGD([p for p in model.parameters() if p is not model.omega], lr=0.1)
        right = []

        def capture(step):
            written = [torch.zeros_like(p) for p in model.parameters()]
            for p, grad in zip(model.parameters(), written, strict=True):
                p.grad = grad
            return lambda: right.append(
                all(p.grad is g for p, g in zip(model.parameters(), written, strict=True))
            )  # runs nothing

        cuda.capture = capture

        def on_step(epoch, step, steps):
            optimizer.param_groups[0]["lr"] = 0.2 if (epoch, step) == (2, 2) else 0.1

        nftk.fit(model, toy(), batch_size=10, epochs=2, optimizer=optimizer, on_step=on_step)
        # two in the first epoch; all but the third step in the second
        assert right == [True] * 6

    def test_never_if_not_wanted_or_not_on_a_gpu(self, cuda, monkeypatch):
        nftk.fit(make(), toy(), batch_size=10, cuda_graph=False)
        monkeypatch.undo()
        nftk.fit(make(), toy(), batch_size=10)
        assert not cuda.log


class TestGivingUp:
    @pytest.mark.parametrize(
        ("trouble", "reason", "log"),
        [
            ({"error": RuntimeError("CUDA error: no\nmore")}, "capturing it failed: CUDA error: no$", FIRST),
            ({"waiting": True}, "it makes the host wait for the device$", FIRST.replace("capture ", "")),
        ],
        ids=["capture", "wait"],
    )
    def test_goes_on_without_losing_a_step(self, cuda, trouble, reason, log):
        vars(cuda).update(trouble)
        a, b = make(), make()
        want = nftk.fit(a, toy(), batch_size=10, epochs=3, cuda_graph=False)
        with pytest.warns(UserWarning, match="goes on without a CUDA graph of its step, since " + reason) as warned:
            got = nftk.fit(b, toy(), batch_size=10, epochs=3, on_step=cuda.on_step)
        assert len(warned) == 1
        assert_same(a, b, want, got)
        eager = EPOCH.replace("replay ", "")
        assert cuda.log == log_of(log.replace("replay ", ""), eager, eager)
        with pytest.raises(RuntimeError, match="cuda_graph must be None or False for this step, got True: " + reason):
            nftk.fit(make(), toy(), batch_size=10, cuda_graph=True)

    def test_other_errors_are_not_swallowed(self, cuda):
        cuda.error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            nftk.fit(make(), toy(), batch_size=10)


def test_resume_with_and_without_graphs(cuda, tmp_path):
    whole, first, second = make(dropout=0.1), make(dropout=0.1), make(dropout=0.1)
    keywords = {"batch_size": 10, "proximal": 0.1, "optimizer": lambda ps: SGD(ps, lr=0.1, momentum=0.9)}
    want = nftk.fit(whole, toy(), epochs=4, cuda_graph=False, **keywords)
    nftk.fit(first, toy(), epochs=2, checkpoint=tmp_path / "run.pt", **keywords)
    assert cuda.log.count("replay") == 7
    for cuda_graph in (False, None):
        path = tmp_path / f"{cuda_graph}.pt"
        path.write_bytes((tmp_path / "run.pt").read_bytes())
        got = nftk.fit(
            second, toy(), epochs=4, checkpoint=path, resume=True, cuda_graph=cuda_graph, **keywords
        )  # fmt: skip
        assert_same(whole, second, want, got)
    assert cuda.log.count("replay") == 14
