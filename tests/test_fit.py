"""fit: both schedules to the letter, reproducible, resumable after a kill, and loud about what it cannot do."""

import copy
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nftk
from nftk.training.checkpoint import load_checkpoint
from nftk.training.run import Meter
from nftk.training.schedules import Schedule


def toy(n=60, m=4, d=3, dtype=torch.float32):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(n, m, generator=g, dtype=torch.float64).to(dtype)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long() * (d > 2)


def make(dtype=torch.float32, **keywords):
    torch.manual_seed(2)
    return nftk.NFTKMLP(4, [8, 8], 3, dtype=dtype, **keywords)


def assert_same_parameters(a, b):
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q), name


def without_seconds(history):
    return [{k: v for k, v in record.to_dict().items() if k != "seconds"} for record in history]


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


class TestData:
    def test_dataset_and_loader(self):
        x, y = toy()
        for data in (TensorDataset(x, y), DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)):
            a, b = make(), make()
            nftk.fit(a, data, TensorDataset(x, y), epochs=2)
            torch.randn(3)
            history = nftk.fit(b, data, TensorDataset(x, y), epochs=2)
            assert_same_parameters(a, b)
            assert history[-1].test_accuracy is not None

    def test_iterable_dataset(self):
        x, y = toy()

        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(zip(x, y, strict=True))

        for data in (Stream(), DataLoader(Stream(), batch_size=20)):
            assert len(nftk.fit(make(), data, epochs=2)) == 2

    def test_a_tensor_dataset_is_the_pair(self):
        x, y = toy()
        a, b = make(), make()
        nftk.fit(a, (x, y), epochs=2)
        nftk.fit(b, TensorDataset(x, y), epochs=2)
        assert_same_parameters(a, b)

    @pytest.mark.parametrize(
        ("x", "y", "kind", "message"),
        [
            (torch.ones(9, 4), torch.full((9,), 3), ValueError, r"train labels must be in 0\.\.2, got 3"),
            (torch.ones(9, 4).double(), torch.zeros(9).long(), TypeError, "train x must have the model's dtype"),
            (torch.full((9, 4), float("nan")), torch.zeros(9).long(), ValueError, "train x must be finite"),
        ],
    )
    def test_batches_of_a_loader_are_checked_too(self, x, y, kind, message):
        with pytest.raises(kind, match=message):
            nftk.fit(make(), DataLoader(TensorDataset(x, y), batch_size=4))

    def test_batches_of_another_form(self):
        loader = DataLoader([{"x": torch.ones(4), "y": 0}] * 3)
        with pytest.raises(TypeError, match="every batch must be a pair of tensors .* got dict"):
            nftk.fit(make(), loader)
        with pytest.raises(TypeError, match="train must be a pair of tensors .* got tuple of ndarray, ndarray"):
            nftk.fit(make(), tuple(t.numpy() for t in toy()))
        with pytest.raises(TypeError, match="data must be a pair of tensors .* got list of tuple"):
            nftk.evaluate(make(), [toy()])

    def test_plain_module(self):
        x, y = toy()
        mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        history = nftk.fit(mlp, (x, y), (x, y), epochs=30, batch_size=10, lr=0.2, schedule="alternating")
        assert history[-1].test_accuracy > 0.9
        assert history[-1].zeros is None
        assert set(history.column("phase")) == {"joint"}

    def test_evaluation_is_in_eval_mode_and_leaves_the_mode(self):
        x, y = toy()
        model = make(dropout=0.5)
        a = nftk.evaluate(model, (x, y))
        assert a == nftk.evaluate(model, TensorDataset(x, y))
        b = nftk.evaluate(model, DataLoader(TensorDataset(x, y), batch_size=31))
        assert (b.accuracy, b.loss) == (a.accuracy, pytest.approx(a.loss, rel=1e-6))
        assert model.training
        model.eval()
        nftk.fit(model, (x, y), epochs=1)
        assert not model.training


class TestOptimizers:
    def test_instances_and_factories(self):
        x, y = toy()
        a, b = make(), make()
        theta = [p for p in a.parameters() if p is not a.omega]
        nftk.fit(
            a, (x, y), epochs=2, optimizer=torch.optim.Adam(theta, lr=0.01),
            optimizer_omega=torch.optim.SGD([a.omega], lr=0.1, momentum=0.9),
        )  # fmt: skip
        history = nftk.fit(
            b, (x, y), epochs=2, optimizer=lambda ps: torch.optim.Adam(ps, lr=0.01),
            optimizer_omega=lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
        )  # fmt: skip
        assert_same_parameters(a, b)
        assert (history[0].lr, history[0].lr_omega) == (0.01, 0.1)

    def test_schedule(self):
        x, y = toy()
        history = nftk.fit(
            make(), (x, y), epochs=3, lr=0.4, lr_omega=0.2,
            lr_schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5),
        )  # fmt: skip
        assert history.column("lr") == pytest.approx([0.4, 0.2, 0.1])
        assert history.column("lr_omega") == pytest.approx([0.2, 0.1, 0.05])

    def test_schedule_steps_only_with_its_optimizer(self):
        history = nftk.fit(
            make(), toy(), epochs=4, schedule="alternating", phase_epochs=2, phase_tolerance=0.0, lr=0.4, lr_omega=0.2,
            lr_schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5),
        )  # fmt: skip
        assert history.column("phase") == ["theta", "theta", "omega", "omega"]
        assert history.column("lr") == pytest.approx([0.4, 0.2, 0.1, 0.1])
        assert history.column("lr_omega") == pytest.approx([0.2, 0.2, 0.2, 0.1])

    def test_plateau_schedule(self):
        x, y = toy()
        history = nftk.fit(
            make(), (x, y), epochs=4, lr=0.0, lr_omega=0.0,
            lr_schedule=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
        )  # fmt: skip
        assert len(history) == 4

    def test_wrong_optimizers(self):
        x, y = toy()
        model = make()
        with pytest.raises(ValueError, match="optimizer must leave Omega to optimizer_omega"):
            nftk.fit(model, (x, y), optimizer=torch.optim.SGD(model.parameters(), lr=1))
        with pytest.raises(ValueError, match="optimizer must hold parameters of the model"):
            nftk.fit(model, (x, y), optimizer=torch.optim.SGD(make().parameters(), lr=1))
        with pytest.raises(TypeError, match="optimizer_omega must be or make a torch.optim.Optimizer, got 3"):
            nftk.fit(model, (x, y), optimizer_omega=lambda ps: 3)


class TestOmega:
    @pytest.mark.parametrize("constraint", ["simplex", "l1ball", "groupsparse"])
    def test_constraint_holds_after_every_step(self, constraint):
        x, y = toy()
        model = make(constraint=constraint)
        nftk.fit(
            model, (x, y), epochs=2, lr_omega=1.0, batch_size=10,
            on_step=lambda *_: torch.testing.assert_close(model.constraint.project(model.omega), model.omega.detach()),
        )  # fmt: skip

    def test_constraint_of_the_call_wins(self):
        x, y = toy()
        model = make()
        nftk.fit(model, (x, y), epochs=1, lr_omega=1.0, constraint=nftk.constraints.Simplex(2.0))
        torch.testing.assert_close(model.omega.sum(1), torch.full((3,), 2.0))
        free = make(omega_init=-1.0)
        nftk.fit(free, (x, y), epochs=1, constraint="none")
        assert (free.omega < 0).any()

    def test_zeros_and_where_they_came_from(self):
        """Erratum 5: zeros that were there from the start are told from those that were learned."""
        x, y = toy()
        omega = torch.full((3, 2), 0.5)
        omega[0, 0] = omega[1, 1] = 0
        model = make(omega_init=omega)
        history = nftk.fit(model, (x, y), epochs=1, lr=0.0, lr_omega=0.0)
        assert (history[0].zeros, history[0].zeros_share, history[0].zeros_from_start) == (2, 2 / 6, 1.0)

        class Kill:
            def project_(self, omega):
                omega[2] = 0
                return omega

        history = nftk.fit(model, (x, y), epochs=1, lr=0.0, lr_omega=0.0, constraint=Kill())
        assert (history[0].zeros, history[0].zeros_from_start) == (4, 0.5)
        history = nftk.fit(make(), (x, y), epochs=1, lr_omega=0.0)
        assert (history[0].zeros, history[0].zeros_from_start) == (0, None)


class TestFrozen:
    def test_frozen_omega_is_left_alone(self):
        model = make(omega_init=-0.5)
        model.omega.requires_grad_(False)
        nftk.fit(model, toy(), epochs=1)
        assert (model.omega == -0.5).all()

    def test_projection_only_follows_an_update(self):
        model = make(omega_init=-0.5)
        nftk.fit(model, toy(), epochs=1, schedule="alternating")
        assert (model.omega == -0.5).all()

    def test_frozen_layers(self):
        model = make()
        before = model.hidden[0].weight.detach().clone()
        model.hidden[0].requires_grad_(False)
        nftk.fit(model, toy(), epochs=1, proximal=0.1)
        assert torch.equal(before, model.hidden[0].weight)
        assert not model.hidden[0].weight.requires_grad

    def test_nothing_left_to_train(self):
        model = make().requires_grad_(False)
        with pytest.raises(
            ValueError, match="must have parameters to train with schedule 'joint', got theta and omega fro"
        ):
            nftk.fit(model, toy())
        model = make()
        model.omega.requires_grad_(False)
        with pytest.raises(ValueError, match="with schedule 'alternating', got omega frozen"):
            nftk.fit(model, toy(), schedule="alternating")

    def test_network_inside_another_module_is_refused(self):
        with pytest.raises(ValueError, match="model must be the NFTKMLP itself .* got Sequential"):
            nftk.fit(nn.Sequential(make()), toy())

    def test_under_no_grad(self):
        model, other = make(), make()
        nftk.fit(model, toy(), epochs=1)
        with torch.no_grad():
            nftk.fit(other, toy(), epochs=1)
        assert_same_parameters(model, other)

    def test_model_is_in_train_mode_only_while_it_trains(self):
        seen = []
        model = make(dropout=0.5).eval()
        model.register_forward_pre_hook(lambda module, _: seen.append(module.training))
        x, y = toy()
        nftk.fit(model, (x, y), (x, y), epochs=1, batch_size=30)
        assert seen == [True, True, False]


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


SCRIPT = """
import sys, torch, nftk
torch.set_num_threads(1)
torch.manual_seed(2)
x = torch.randn(400, 4)
y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
model = nftk.NFTKMLP(4, [16, 16], 3, dropout=0.1)
history = nftk.fit(
    model, (x, y), (x, y), epochs=14, batch_size=8, proximal=0.1, schedule=sys.argv[3], phase_epochs=3,
    optimizer=lambda p: torch.optim.Adam(p, lr=1e-3), checkpoint=sys.argv[1], resume=True,
    lr_schedule=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    on_step=lambda epoch, step, steps: print(epoch, step, flush=True),
)
columns = {k: history.column(k) for k in ("loss", "test_loss", "zeros", "lr", "phase")}
torch.save({"model": model.state_dict(), "history": columns}, sys.argv[2])
"""


class TestResume:
    @pytest.mark.parametrize("schedule", ["joint", "alternating"])
    def test_kill_9_in_the_middle_ends_bit_identical(self, tmp_path, schedule):
        def start(name):
            arguments = [tmp_path / f"{name}.pt", tmp_path / f"{name}.end", schedule]
            return subprocess.Popen(
                [sys.executable, "-c", SCRIPT, *map(str, arguments)], stdout=subprocess.PIPE, text=True
            )

        with start("whole") as whole:
            whole.communicate()
        killed_at = []
        # in the middle of an epoch, right after a checkpoint, and wherever the signal lands
        for target, pause in (("3 25", 0.0), ("7 1", 0.0), ("10 50", 0.01)):
            with start("killed") as process:
                for line in process.stdout:
                    if line.split() == target.split():
                        time.sleep(pause)
                        process.send_signal(signal.SIGKILL)
                        break
                process.stdout.close()
                assert process.wait() == -signal.SIGKILL
            killed_at.append(len(load_checkpoint(tmp_path / "killed.pt")["history"]))
            assert not (tmp_path / "killed.end").exists()
        assert killed_at[0] < killed_at[1] < killed_at[2] < 14
        with start("killed") as last:
            last.communicate()
        want, got = (torch.load(tmp_path / f"{name}.end") for name in ("whole", "killed"))
        assert want["history"] == got["history"]
        for name, tensor in want["model"].items():
            assert torch.equal(tensor, got["model"][name]), name

    def test_a_kill_while_writing_leaves_the_old_checkpoint(self, tmp_path, monkeypatch):
        x, y = toy()
        path = tmp_path / "run.pt"
        nftk.fit(make(), (x, y), epochs=2, checkpoint=path)
        before = path.read_bytes()
        save = torch.save

        def half(state, file):
            save(state, file)
            with open(file, "r+b") as handle:
                handle.truncate(100)
            raise KeyboardInterrupt

        monkeypatch.setattr(torch, "save", half)
        with pytest.raises(KeyboardInterrupt):
            nftk.fit(make(), (x, y), epochs=4, checkpoint=path, resume=True)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_more_epochs_continue_a_finished_run(self, tmp_path):
        x, y = toy()
        a, b = make(), make()
        whole = nftk.fit(a, (x, y), (x, y), epochs=5, batch_size=7)
        nftk.fit(b, (x, y), (x, y), epochs=3, batch_size=7, checkpoint=tmp_path / "run.pt")
        c = make()
        history = nftk.fit(c, (x, y), (x, y), epochs=5, batch_size=7, checkpoint=tmp_path / "run.pt", resume=True)
        assert_same_parameters(a, c)
        assert without_seconds(history) == without_seconds(whole)

    def test_own_generator_of_a_loader_is_resumed(self, tmp_path):
        x, y = toy()

        def loader():
            return DataLoader(
                TensorDataset(x, y), batch_size=7, shuffle=True, generator=torch.Generator().manual_seed(9)
            )

        a, b, c = make(), make(), make()
        nftk.fit(a, loader(), epochs=4)
        nftk.fit(b, loader(), epochs=2, checkpoint=tmp_path / "run.pt")
        nftk.fit(c, loader(), epochs=4, checkpoint=tmp_path / "run.pt", resume=True)
        assert_same_parameters(a, c)

    def test_other_settings_data_or_model_are_refused(self, tmp_path):
        x, y = toy()
        path = tmp_path / "run.pt"
        nftk.fit(make(), (x, y), epochs=1, checkpoint=path)
        with pytest.raises(ValueError, match=r"checkpoint must be a new file without resume=True"):
            nftk.fit(make(), (x, y), epochs=2, checkpoint=path)
        resume = {"checkpoint": path, "resume": True, "epochs": 2}
        with pytest.raises(ValueError, match=r"lr must be 0.02 to continue .*run.pt, got 0.1"):
            nftk.fit(make(), (x, y), lr=0.1, **resume)
        with pytest.raises(ValueError, match="seed must be 0 to continue"):
            nftk.fit(make(), (x, y), seed=1, **resume)
        for other in ((x + 1, y), (x, 2 - y), (x.flip(0), y)):
            with pytest.raises(ValueError, match="train_digest must be"):
                nftk.fit(make(), other, **resume)
        with pytest.raises(ValueError, match="learning_rates must be"):
            nftk.fit(make(), (x, y), optimizer=lambda p: torch.optim.SGD(p, lr=0.3), **resume)
        frozen = make()
        frozen.hidden[0].requires_grad_(False)
        with pytest.raises(ValueError, match="trainable must be"):
            nftk.fit(frozen, (x, y), **resume)
        with pytest.raises(ValueError, match="model must be"):
            nftk.fit(nftk.NFTKMLP(4, [8, 9], 3), (x, y), **resume)
        with pytest.raises(ValueError, match="constraint must be"):
            nftk.fit(make(), (x, y), constraint="simplex", **resume)
        path.write_bytes(path.read_bytes()[:500])
        with pytest.raises(ValueError, match="must be a whole checkpoint, got"):
            nftk.fit(make(), (x, y), **resume)
        torch.save({"a": 1}, path)
        with pytest.raises(ValueError, match="must be a checkpoint of nftk.fit"):
            nftk.fit(make(), (x, y), **resume)

    def test_everything_comes_from_the_checkpoint(self, tmp_path):
        """A fresh model that another seed drew, without zeros, goes on as the one that was killed."""
        omega = torch.full((3, 2), 0.5)
        omega[0, 0] = 0
        settings = {"proximal": 1.0, "lr": 0.1, "lr_omega": 0.0}
        whole, first = make(omega_init=omega), make(omega_init=omega)
        want = nftk.fit(whole, toy(), epochs=4, **settings)
        nftk.fit(first, toy(), epochs=2, checkpoint=tmp_path / "run.pt", **settings)
        torch.manual_seed(9)
        other = nftk.NFTKMLP(4, [8, 8], 3)
        got = nftk.fit(other, toy(), epochs=4, checkpoint=tmp_path / "run.pt", resume=True, **settings)
        assert_same_parameters(whole, other)
        assert got[-1].zeros_from_start == want[-1].zeros_from_start == 1.0

    def test_there_is_a_checkpoint_before_the_first_step(self, tmp_path):
        path = tmp_path / "run.pt"
        seen = []
        nftk.fit(make(), toy(), epochs=1, checkpoint=path, on_step=lambda *_: seen.append(path.exists()))
        assert all(seen)

    def test_folder_that_is_not_there_and_a_full_disk(self, tmp_path, monkeypatch):
        with pytest.raises(ValueError, match=r"c.pt must be in a folder that exists, got no .*nowhere"):
            nftk.fit(make(), toy(), checkpoint=tmp_path / "nowhere" / "c.pt")

        def full(state, file):
            raise RuntimeError("basic_ios::clear: iostream error")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"iostream error: '.*c\.pt'"):
            nftk.fit(make(), toy(), checkpoint=tmp_path / "c.pt")
        assert not list(tmp_path.iterdir())

    def test_another_thread_count_warns(self, tmp_path):
        x, y = toy()
        nftk.fit(make(), (x, y), epochs=1, checkpoint=tmp_path / "run.pt")
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(threads + 1)
            with pytest.warns(UserWarning, match="will not end bit-identical"):
                nftk.fit(make(), (x, y), epochs=2, checkpoint=tmp_path / "run.pt", resume=True)
        finally:
            torch.set_num_threads(threads)


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
