"""What fit moves, and by which optimizer: theta, Omega within its constraint, and neither where it is frozen."""

import pytest
import torch
from torch import nn
from training_problem import assert_same_parameters, make, toy

import nftk


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
