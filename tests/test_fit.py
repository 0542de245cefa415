"""fit: both schedules to the letter, reproducible, and loud about what it cannot do."""

import copy

import pytest
import torch
from torch import nn
from training_problem import assert_same_parameters, make, toy, without_seconds

import nftk
from nftk.training.run import Meter
from nftk.training.schedules import Schedule


class TestStep:
    """One step of fit against the equations, written out here."""

    @pytest.mark.parametrize("proximal", [0.0, 0.7])
    @pytest.mark.parametrize("weight_decay", [0.0, 0.3])
    @pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
    def test_joint_steps_by_hand(self, loss, weight_decay, proximal):
        """Equations 13 and 16: theta <- theta - eta (grad L + lambda (theta - theta_0)); Omega projected."""
        x, y = toy(20, dtype=torch.float64)
        model = make(torch.float64)
        ours = copy.deepcopy(model)
        # whole-batch steps, so that the order of the examples does not matter
        nftk.fit(
            ours, (x, y), loss=loss, epochs=3, batch_size=20, lr=0.1, lr_omega=2.0, weight_decay=weight_decay,
            proximal=proximal,
        )  # fmt: skip
        theta_0 = {name: p.detach().clone() for name, p in model.named_parameters()}
        for _ in range(3):
            f = model(x)
            if loss == "mse":
                target = nn.functional.one_hot(y, 3).double()
                value = (f - target).pow(2).sum() / len(x)
            else:
                value = -(f - f.logsumexp(1, keepdim=True))[range(20), y].mean()
            names, parameters = zip(*model.named_parameters(), strict=True)
            gradients = torch.autograd.grad(value, parameters)
            with torch.no_grad():
                for name, p, g in zip(names, parameters, gradients, strict=True):
                    if name == "omega":
                        p.copy_((p - 2.0 * (g + weight_decay * p)).clamp(min=0))
                    else:
                        p -= 0.1 * (g + weight_decay * p + proximal * (p - theta_0[name]))
        for (name, p), q in zip(model.named_parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(q, p, msg=lambda m, name=name: f"{name}: {m}")
        assert (ours.omega == 0).any(), "the projection was never active: this test checks nothing of it"

    def test_mse_on_targets_and_custom_loss(self):
        x, y = toy(dtype=torch.float64)
        target = nn.functional.one_hot(y, 3).double()
        models = [make(torch.float64) for _ in range(3)]
        a = nftk.fit(models[0], (x, y), loss="mse", epochs=2)
        b = nftk.fit(models[1], (x, target), loss="mse", epochs=2)
        nftk.fit(models[2], (x, target), loss=lambda f, t: (f - t).square().sum(1).mean(), epochs=2)
        assert_same_parameters(models[0], models[1])
        assert_same_parameters(models[0], models[2])
        assert a[-1].train_accuracy is not None
        assert b[-1].train_accuracy is None
        assert a.column("loss") == b.column("loss")


class TestAlternating:
    def test_only_one_of_the_two_moves(self):
        x, y = toy()
        model, states, records = make(), [], []

        def keep(record):
            states.append({k: v.clone() for k, v in model.state_dict().items()})
            records.append(record)

        start = {k: v.clone() for k, v in model.state_dict().items()}
        nftk.fit(model, (x, y), schedule="alternating", epochs=8, phase_epochs=2, phase_tolerance=0.0, on_epoch=keep)
        assert [r.phase for r in records] == ["theta", "theta", "omega", "omega"] * 2
        for before, after, record in zip([start, *states], states, records, strict=False):
            moved = {k for k in after if not torch.equal(before[k], after[k])}
            assert moved == ({"omega"} if record.phase == "omega" else set(after) - {"omega"})
        assert model.omega.requires_grad
        assert all(p.requires_grad for p in model.parameters())

    def test_a_phase_ends_when_it_has_converged(self):
        """The stated criterion: the loss fell by no more than the tolerance of its value."""
        schedule = Schedule("alternating", cap=100, tolerance=0.1)
        phases = []
        for loss in (1.0, 0.8, 0.73, 0.7, 0.6, 0.59, 0.3):
            phases.append(schedule.phase)
            schedule.advance(loss)
        # theta: 0.8 -> 0.73 is a fall of 8.75 %, so it ends; Omega: 0.7 -> 0.6 is 14 %, 0.6 -> 0.59 is 1.7 %
        assert phases == ["theta"] * 3 + ["omega"] * 3 + ["theta"]

    def test_a_rising_loss_counts_as_converged(self):
        schedule = Schedule("alternating", cap=100, tolerance=0.0)
        schedule.advance(1.0)
        schedule.advance(1.1)
        assert schedule.phase == "omega"

    def test_it_converges_in_training(self):
        x, y = toy()
        history = nftk.fit(make(), (x, y), schedule="alternating", epochs=30, phase_epochs=29, phase_tolerance=0.05)
        losses, phases = history.column("loss"), history.column("phase")
        last = phases.index("omega") - 1
        falls = [(a - b) / a for a, b in zip(losses[:last], losses[1 : last + 1], strict=True)]
        assert all(fall > 0.05 for fall in falls[:-1])
        assert falls[-1] <= 0.05

    def test_it_learns(self):
        x, y = toy(200)
        history = nftk.fit(make(), (x, y), schedule="alternating", epochs=40, batch_size=10, lr=0.1, lr_omega=0.1)
        assert history[-1].train_accuracy > 0.9


class TestReproducibility:
    def test_bit_identical_runs_and_global_generator_untouched(self):
        x, y = toy()
        a, b = make(), make()
        state = torch.get_rng_state()
        history_a = nftk.fit(a, (x, y), (x, y), epochs=3, batch_size=7, seed=11)
        assert torch.equal(state, torch.get_rng_state())
        torch.randn(100)
        history_b = nftk.fit(b, (x, y), (x, y), epochs=3, batch_size=7, seed=11)
        assert_same_parameters(a, b)
        assert without_seconds(history_a) == without_seconds(history_b)

    def test_seed_and_epoch_change_the_order(self):
        x, y = toy()
        a, b = make(), make()
        nftk.fit(a, (x, y), epochs=1, batch_size=7, seed=0)
        nftk.fit(b, (x, y), epochs=1, batch_size=7, seed=1)
        assert not torch.equal(a.omega, b.omega)

    def test_every_example_once_an_epoch(self):
        x = torch.arange(53.0).view(-1, 1).expand(-1, 4).contiguous()
        seen = []

        class Spy(nftk.NFTKMLP):
            def forward(self, x):
                seen.append(x[:, 0])
                return super().forward(x / 100)

        nftk.fit(Spy(4, [3], 2), (x, torch.zeros(53, dtype=torch.int64)), epochs=2, batch_size=10)
        assert [len(batch) for batch in seen] == [10, 10, 10, 10, 10, 3] * 2
        first, second = torch.cat(seen[:6]), torch.cat(seen[6:])
        assert torch.equal(first.sort().values, x[:, 0])
        assert torch.equal(second.sort().values, x[:, 0])
        assert not torch.equal(first, second)


class TestNonFinite:
    def test_stops_with_a_sentence_and_finite_parameters(self):
        x, y = toy()
        model = make()
        with pytest.raises(FloatingPointError, match=r"got (nan|inf) at epoch \d+, step \d+ of 6; try a smaller lr"):
            nftk.fit(model, (x, y), epochs=50, batch_size=10, lr=1e18, lr_omega=1e18)

    def test_cpu_stops_before_the_update(self):
        x, y = toy()
        model, steps = make(), []
        loss_values = iter([1.0, 1.0, float("nan")])

        def loss(f, y):
            return f.mean() * 0 + next(loss_values)

        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(FloatingPointError, match="got nan at epoch 1, step 3 of 6"):
            nftk.fit(
                model, (x, y), loss=loss, batch_size=10, weight_decay=0.0,
                on_step=lambda *step: steps.append(step),
            )  # fmt: skip
        assert steps == [(1, 1, 6), (1, 2, 6)]
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

    def test_other_devices_keep_the_first_bad_step_until_the_epoch_ends(self):
        meter = Meter(torch.device("cpu"), epoch=4, steps=5, advice="try less")
        meter.at_once = False
        f, y = torch.eye(3), torch.arange(3)
        for value in (1.0, float("nan"), 2.0, float("inf"), 3.0):
            meter.add(torch.tensor(value), f, y)
        with pytest.raises(FloatingPointError, match="at epoch 4, step 2 of 5; try less"):
            meter.read()

    def test_meter_reads_mean_and_accuracy(self):
        for at_once in (True, False):
            meter = Meter(torch.device("cpu"), epoch=1, steps=2, advice="")
            meter.at_once = at_once
            meter.add(torch.tensor(1.0), torch.eye(3), torch.tensor([0, 1, 0]))
            meter.add(torch.tensor(5.0), torch.eye(3)[:1], torch.tensor([0]))
            assert meter.read() == (2.0, 0.75)


NAN = float("nan")


@pytest.mark.parametrize(
    ("train", "keywords", "kind", "message"),
    [
        ((torch.ones(3, 5), torch.zeros(3).long()), {}, ValueError, r"train x must have shape \[n, 4\], got \[3, 5\]"),
        ((torch.ones(3, 4).double(), torch.zeros(3).long()), {}, TypeError, "train x must have the model's dtype"),
        ((torch.ones(3, 4).long(), torch.zeros(3).long()), {}, TypeError, "train x must have the model's dtype"),
        ((torch.ones(3, 4), torch.zeros(2).long()), {}, ValueError, "a target for each, got 3 and 2"),
        ((torch.ones(0, 4), torch.zeros(0).long()), {}, ValueError, "at least one example"),
        ((torch.ones(3, 4), torch.tensor([0, 3, 1])), {}, ValueError, r"train labels must be in 0\.\.2, got 3"),
        ((torch.ones(3, 4), torch.tensor([0, -1, 1])), {}, ValueError, r"train labels must be in 0\.\.2, got -1"),
        ((torch.ones(3, 4), torch.zeros(3)), {}, TypeError, "train y must hold int64 labels of shape"),
        ((torch.ones(3, 4), torch.zeros(3, 2)), {"loss": "mse"}, TypeError, r"float32 targets \[n, 3\]"),
        ((torch.ones(3, 4), torch.full((3, 3), NAN)), {"loss": "mse"}, ValueError, "train y must be finite"),
        ((torch.tensor([[1.0] * 4, [NAN] * 4]), torch.zeros(2).long()), {}, ValueError, "not in example 1"),
        ("mnist", {}, TypeError, "train must be a pair of tensors .* got str"),
        (toy(), {"test": (torch.ones(3, 5), torch.zeros(3).long())}, ValueError, r"test x must have shape"),
        (toy(), {"loss": "hinge"}, ValueError, "loss must be one of 'cross_entropy', 'mse' or a callable"),
        (toy(), {"schedule": "random"}, ValueError, "schedule must be one of 'joint', 'alternating', got 'random'"),
        (toy(), {"epochs": -1}, ValueError, "epochs must be at least 0, got -1"),
        (toy(), {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        (toy(), {"lr": -0.1}, ValueError, "lr must be finite and at least 0, got -0.1"),
        (toy(), {"lr_omega": NAN}, ValueError, "lr_omega must be finite and at least 0, got nan"),
        (toy(), {"proximal": -1}, ValueError, "proximal must be finite and at least 0, got -1"),
        (toy(), {"phase_epochs": 0}, ValueError, "phase_epochs must be at least 1, got 0"),
        (toy(), {"constraint": "box"}, ValueError, "constraint must be one of"),
        (toy(), {"device": "abacus"}, ValueError, "device must be one that torch can use here, got 'abacus'"),
        (toy(), {"resume": True}, ValueError, "checkpoint must name a file for resume=True"),
    ],
)
def test_errors(train, keywords, kind, message):
    with pytest.raises(kind, match=message):
        nftk.fit(make(), train, **keywords)


def test_history():
    x, y = toy()
    history = nftk.fit(make(), (x, y), (x, y), epochs=3)
    assert [record.epoch for record in history] == [1, 2, 3]
    assert history.best().test_accuracy == max(history.column("test_accuracy"))
    assert "3 epochs" in repr(history)
    assert history[1:].column("epoch") == [2, 3]
    with pytest.raises(ValueError, match="name must be one of epoch, phase, .* got 'accuracy'"):
        history.column("accuracy")
    assert nftk.fit(make(), (x, y), epochs=0) == []
