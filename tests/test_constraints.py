"""The four sets: exact projections, and attach for people with their own loop."""

import copy
import dataclasses

import hypothesis
import hypothesis.extra.numpy as hnp
import pytest
import torch
from hypothesis import strategies as st

import nftk
from nftk import constraints
from nftk.constraints import GroupSparse, L1Ball, NonNegative, Simplex

SETS = [
    NonNegative(),
    Simplex(),
    Simplex(radius=2.5),
    L1Ball(),
    L1Ball(radius=0.3),
    GroupSparse(),
    GroupSparse(radius=0.7),
    GroupSparse(max_layers=1),
    GroupSparse(max_layers=3),
    GroupSparse(radius=1.5, max_layers=2),
]
IDS = [str(s) for s in SETS]


def violation(constraint, omega):
    """How far omega is outside the set, written from the set's definition and not from its projection."""
    worst = (-omega).clamp(min=0).max()
    d = omega.shape[0]
    if isinstance(constraint, Simplex):
        worst = max(worst, (omega.sum(1) - constraint.radius).abs().max())
    if isinstance(constraint, L1Ball):
        worst = max(worst, (omega.sum(1) - constraint.radius).clamp(min=0).max())
    if isinstance(constraint, GroupSparse):
        norms = omega.square().sum(0).sqrt()
        radius = d**0.5 if constraint.radius is None and constraint.max_layers is None else constraint.radius
        if radius is not None:
            worst = max(worst, (norms.sum() - radius).clamp(min=0))
        if constraint.max_layers is not None:
            worst = max(worst, norms.sort(descending=True).values[constraint.max_layers :].sum())
    return float(worst)


def random_feasible(constraint, shape, generator):
    """A point of the set, made without the projection: on its boundary, inside it, or sparse."""
    d, depth = shape
    omega = torch.rand(shape, generator=generator, dtype=torch.float64)
    omega = omega * (torch.rand(shape, generator=generator) < 0.6)
    shrink = torch.rand((), generator=generator, dtype=torch.float64) ** 0.3
    if isinstance(constraint, Simplex):
        omega = omega + 1e-3
        return omega / omega.sum(1, keepdim=True) * constraint.radius
    if isinstance(constraint, L1Ball):
        return omega / omega.sum(1, keepdim=True).clamp_min(1e-9) * constraint.radius * shrink
    if isinstance(constraint, GroupSparse):
        if constraint.max_layers is not None:
            order = torch.randperm(depth, generator=generator)
            omega[:, order[constraint.max_layers :]] = 0
        radius = d**0.5 if constraint.radius is None and constraint.max_layers is None else constraint.radius
        if radius is not None:
            omega = omega / omega.square().sum(0).sqrt().sum().clamp_min(1e-9) * radius * shrink
        return omega
    return 3 * omega


matrices = hnp.arrays(
    "float64",
    st.tuples(st.integers(1, 5), st.integers(1, 6)),
    elements=st.one_of(st.floats(-3, 3), st.sampled_from([0.0, 1.0, -1.0, 0.5, 100.0, -100.0])),
)


@pytest.mark.parametrize("constraint", SETS, ids=IDS)
@hypothesis.given(omega=matrices, seed=st.integers(0, 2**31))
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_projection_is_exact(constraint, omega, seed):
    """Feasible, idempotent, and nearer than any feasible point: what defines a projection."""
    omega = torch.from_numpy(omega)
    nearest = constraint.project(omega)
    scale = 1 + float(omega.abs().max())
    assert violation(constraint, nearest) <= 1e-12 * scale
    torch.testing.assert_close(constraint.project(nearest), nearest, rtol=1e-12, atol=1e-12 * scale)
    distance = (nearest - omega).norm()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        other = random_feasible(constraint, omega.shape, generator)
        assert violation(constraint, other) <= 1e-9
        # and points near the projection, where a wrong one would be beaten first
        mixed = (
            other if isinstance(constraint, GroupSparse) and constraint.max_layers else 0.98 * nearest + 0.02 * other
        )
        assert distance <= (other - omega).norm() + 1e-9 * scale
        assert distance <= (mixed - omega).norm() + 1e-9 * scale


@pytest.mark.parametrize("constraint", SETS, ids=IDS)
def test_feasible_point_stays(constraint):
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        omega = random_feasible(constraint, (4, 5), generator)
        torch.testing.assert_close(constraint.project(omega), omega, rtol=1e-12, atol=1e-12)


def test_group_sparse_by_hand():
    omega = torch.tensor([[3.0, 0.3, -1.0], [4.0, 0.4, 0.0]], dtype=torch.float64)
    # column norms 5, 0.5, 0; a budget of 4 takes 1 off the longest and drops the rest
    want = torch.tensor([[2.4, 0, 0], [3.2, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(GroupSparse(radius=4.0).project(omega), want)
    want = torch.tensor([[3.0, 0.3, 0], [4.0, 0.4, 0]], dtype=torch.float64)
    torch.testing.assert_close(GroupSparse(max_layers=2).project(omega), want)


def test_group_sparse_drops_whole_layers():
    omega = torch.rand(10, 20, dtype=torch.float64) * torch.linspace(0.1, 1, 20)
    dropped = (GroupSparse(radius=2.0).project(omega) == 0).all(0)
    assert 5 < dropped.sum() < 20
    assert not (GroupSparse(radius=2.0).project(omega)[:, ~dropped] == 0).any()


def test_equal_layers_keep_those_nearer_the_input():
    nearest = GroupSparse(max_layers=2).project(torch.ones(3, 4))
    assert torch.equal(nearest, torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(3, 4))


def test_default_budget_holds_the_uniform_start():
    model = nftk.NFTKMLP(4, [8] * 5, 7, constraint="groupsparse")
    torch.testing.assert_close(model.omega, torch.full((7, 5), 0.2))
    torch.testing.assert_close(model.project_().omega, torch.full((7, 5), 0.2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("constraint", SETS, ids=IDS)
def test_dtypes_and_in_place(constraint, dtype):
    omega = torch.randn(6, 9).to(dtype)
    exact = constraint.project(omega.double())
    result = constraint.project_(omega)
    assert result is omega
    assert omega.dtype is dtype
    torch.testing.assert_close(omega, exact.to(dtype))
    assert (omega >= 0).all()


@pytest.mark.parametrize("constraint", SETS, ids=IDS)
def test_nan_stays_visible(constraint):
    assert constraint.project(torch.tensor([[float("nan"), 1.0], [0.5, 0.2]])).isnan().any()


def test_non_contiguous_and_parameter():
    omega = torch.nn.Parameter(torch.randn(5, 3).T)
    want = Simplex().project(omega.detach().contiguous())
    assert torch.equal(Simplex().project_(omega), want)
    assert omega.requires_grad
    assert omega.grad_fn is None


@pytest.mark.parametrize("constraint", SETS, ids=IDS)
def test_config_round_trip(constraint):
    assert constraints.from_config(constraint.config()) == constraint
    assert copy.deepcopy(constraint) == constraint
    assert dataclasses.is_dataclass(constraint)


def test_names():
    assert constraints.resolve("simplex") == Simplex()
    assert constraints.resolve("nonnegative") == NonNegative()
    assert constraints.resolve("l1ball") == L1Ball()
    assert constraints.resolve("groupsparse") == GroupSparse()
    assert constraints.resolve("none") is None
    assert constraints.from_config(None) is None


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: constraints.resolve("box"), ValueError, "constraint must be one of .*'nonnegative', .*got 'box'"),
        (lambda: constraints.resolve(3), TypeError, "must be a name or have a method project_, got 3"),
        (lambda: constraints.resolve(Simplex), TypeError, "must be a name or have a method project_"),
        (lambda: constraints.from_config({"name": "box"}), ValueError, "name must be one of .* got 'box'"),
        (lambda: constraints.from_config({"name": "simplex", "r": 1}), ValueError, "simplex must have known settings"),
        (lambda: Simplex(radius=0), ValueError, "radius must be finite and above 0, got 0"),
        (lambda: L1Ball(radius=float("nan")), ValueError, "radius must be finite and above 0, got nan"),
        (lambda: GroupSparse(radius=-1.0), ValueError, "radius must be finite and above 0, got -1"),
        (lambda: Simplex(radius=10**400), ValueError, "radius must be finite and above 0, got 10000"),
        (lambda: GroupSparse(max_layers=0), ValueError, "max_layers must be at least 1, got 0"),
        (lambda: GroupSparse(max_layers=1.5), TypeError, "max_layers must be an integer, got 1.5"),
        (lambda: Simplex(radius="big"), TypeError, "radius must be a number, got 'big'"),
        (lambda: NonNegative().project_(torch.ones(3)), ValueError, r"omega must have shape \[d, L\], got \[3\]"),
        (lambda: NonNegative().project_([[1.0]]), TypeError, "omega must be a torch.Tensor, got list"),
    ],
)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


class TestAttach:
    @staticmethod
    def step(model, optimizer):
        optimizer.zero_grad()
        (model(torch.ones(2, 4)).sum() + 10 * sum(p.sum() for p in model.parameters())).backward()
        optimizer.step()

    def test_projects_after_every_step_until_removed(self):
        model = nftk.NFTKMLP(4, [8, 8], 3, constraint="simplex")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = constraints.attach(model, optimizer)
        for _ in range(3):
            self.step(model, optimizer)
            torch.testing.assert_close(model.omega.sum(1), torch.ones(3))
        handle.remove()
        self.step(model, optimizer)
        assert not torch.allclose(model.omega.sum(1), torch.ones(3))

    def test_with_a_scheduler_which_wraps_step(self):
        model = nftk.NFTKMLP(4, [8, 8], 3)
        optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        constraints.attach(model, optimizer)
        self.step(model, optimizer)
        scheduler.step()
        assert (model.omega == 0).all()

    def test_inside_a_larger_module_and_a_wrapped_optimizer(self):
        class Wrapper:
            def __init__(self, optimizer):
                self.optimizer = optimizer

        model = torch.nn.Sequential(nftk.NFTKMLP(4, [8], 3), nftk.NFTKMLP(3, [8], 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        constraints.attach(model, Wrapper(Wrapper(optimizer)))
        self.step(model, optimizer)
        assert (model[0].omega == 0).all()
        assert (model[1].omega == 0).all()

    def test_errors(self):
        model = nftk.NFTKMLP(4, [8], 3)
        with pytest.raises(TypeError, match="optimizer must be a torch.optim.Optimizer, got 3"):
            constraints.attach(model, 3)
        linear = torch.nn.Linear(2, 2)
        with pytest.raises(ValueError, match="model must hold a module with project_, got Linear without one"):
            constraints.attach(linear, torch.optim.SGD(linear.parameters()))

    def test_in_lightning(self):
        lightning = pytest.importorskip("lightning", reason="lightning is not installed")

        class Lit(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = nftk.NFTKMLP(4, [8, 8], 3, constraint="simplex")

            def training_step(self, batch, _):
                return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

            def configure_optimizers(self):
                optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
                constraints.attach(self, optimizer)
                return optimizer

        x = torch.randn(64, 4)
        data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
        model = Lit()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **quiet)
        trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=16))
        assert not torch.equal(model.net.omega, torch.full((3, 2), 0.5))
        torch.testing.assert_close(model.net.omega.sum(1), torch.ones(3))

    def test_in_the_trainer_of_transformers(self, tmp_path):
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")

        class WithLoss(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nftk.NFTKMLP(4, [8, 8], 3, constraint="simplex")

            def forward(self, x, labels):
                f = self.net(x)
                return {"loss": torch.nn.functional.cross_entropy(f, labels), "logits": f}

        model = WithLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        constraints.attach(model, optimizer)
        settings = {"max_steps": 8, "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
        data = [{"x": x, "labels": int(x[0] > 0)} for x in torch.randn(64, 4)]
        arguments = transformers.TrainingArguments(str(tmp_path), **settings)
        transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None)).train()
        assert not torch.equal(model.net.omega, torch.full((3, 2), 0.5))
        torch.testing.assert_close(model.net.omega.sum(1), torch.ones(3))
