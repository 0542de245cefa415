"""Which training steps may be CUDA graphs: the rule and its words, without a GPU."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

import nftk
from nftk.training import graphs
from nftk.training.batches import LoaderBatches, TensorBatches
from nftk.training.losses import LOSSES, cross_entropy
from nftk.training.run import Run
from nftk.training.schedules import Schedule


def toy():
    x = torch.randn(53, 4, generator=torch.Generator().manual_seed(5))
    return x, (x[:, 0] > 0).long()


def make(**keywords):
    return nftk.NFTKMLP(4, [8, 6], 3, **keywords)


def make_run(model=None, **changes):
    """A run as it would be on a GPU, with some of its parts changed."""
    model = make() if model is None else model
    x, y = toy()
    omega = getattr(model, "omega", None)
    keywords = {
        "model": model, "omega": omega, "train": TensorBatches(x, y, 10, x.device, True), "test": None,
        "loss": cross_entropy, "schedule": Schedule("joint", 5, 0.01), "schedulers": [],
        "optimizer": SGD([p for p in model.parameters() if p is not omega], lr=0.1),
        "optimizer_omega": None if omega is None else SGD([omega], lr=0.1),
        "constraint": nftk.constraints.NonNegative(), "proximal": 0.0, "seed": 0, "device": torch.device("cuda"),
    }  # fmt: skip
    return Run(**keywords | changes)


class Own(nn.Sequential):
    pass


class OwnSGD(SGD):
    pass


class OwnConstraint:
    def project_(self, omega):
        return omega


OWN = "is code of your own, of which a graph runs the Python only once"
HOOKS = "there are hooks, of which a graph runs the Python only once"


def hooked(kind):
    model = make()
    if kind == "module":
        model.hidden[1].register_forward_hook(lambda *_: None)
    elif kind == "backward":
        model.register_full_backward_hook(lambda *_: None)
    elif kind == "parameter":
        model.omega.register_hook(lambda grad: grad)
    elif kind == "accumulated":
        model.omega.register_post_accumulate_grad_hook(lambda p: None)
    run = make_run(model)
    if kind == "optimizer":
        nftk.constraints.attach(model, run.optimizer)
    return run


def compiled():
    return type("Compiled", (nn.Sequential,), {"__module__": "torch._dynamo.eval_frame"})(nn.Linear(4, 3))


class TestRule:
    @pytest.mark.parametrize(
        "run",
        [
            make_run,
            lambda: make_run(optimizer=Adam([torch.zeros(1)], capturable=True)),
            lambda: make_run(optimizer=SGD([torch.zeros(1)], lr=0.1, momentum=0.9)),
            lambda: make_run(loss=functional.cross_entropy),
            lambda: make_run(loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
            lambda: make_run(loss=LOSSES["mse"], constraint=None),
            lambda: make_run(make(activation=["relu", nn.PReLU()])),
            lambda: make_run(make(activation=[torch.sigmoid, functional.softplus])),
            lambda: make_run(loss=torch.Tensor.dot),
            lambda: make_run(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))),
        ],
    )
    def test_a_graph_by_default(self, run):
        assert graphs.why_not(run()) is None

    @pytest.mark.parametrize(
        ("run", "reason"),
        [
            (lambda: make_run(device=torch.device("cpu")), "the device is cpu"),
            (lambda: make_run(device=torch.device("mps")), "the device is mps"),
            (
                lambda: make_run(
                    train=LoaderBatches(DataLoader(TensorDataset(*toy())), torch.device("cuda"), lambda x, y: None)
                ),
                "train is no pair of tensors",
            ),
            (
                lambda: make_run(optimizer=Adam([torch.zeros(1)])),
                "an optimizer, Adam, is made without capturable=True",
            ),
            (
                lambda: make_run(optimizer_omega=OwnSGD([torch.zeros(1)], lr=0.1)),
                "an optimizer, OwnSGD, is made without capturable=True",
            ),
        ],
    )
    def test_no_graph_in_any_case(self, run, reason):
        assert graphs.why_not(run()) == reason
        assert graphs.why_not(run(), sure=True) == reason
        assert graphs.graphs_for(run(), None) is None
        with pytest.raises(ValueError, match=f"nftk.fit: cuda_graph must be None or False where {reason}, got True"):
            graphs.graphs_for(run(), True)

    @pytest.mark.parametrize(
        ("run", "reason"),
        [
            (lambda: make_run(loss=lambda f, y: f.sum()), f"<lambda> {OWN}"),
            (lambda: make_run(loss=functools.partial(functional.cross_entropy)), f"partial {OWN}"),
            (lambda: make_run(constraint=OwnConstraint()), f"OwnConstraint {OWN}"),
            (lambda: make_run(Own(nn.Linear(4, 3))), f"Own {OWN}"),
            (lambda: make_run(nn.Sequential(Own(nn.Linear(4, 3)))), f"Own {OWN}"),
            (lambda: make_run(make(activation=lambda g: g.relu())), f"<lambda> {OWN}"),
            (lambda: make_run(compiled()), f"Compiled {OWN}"),
            *((functools.partial(hooked, k), HOOKS) for k in ("module", "backward", "parameter", "accumulated")),
            (functools.partial(hooked, "optimizer"), HOOKS),
        ],
    )
    def test_only_if_the_caller_is_sure(self, run, reason):
        assert graphs.why_not(run()) == reason
        assert graphs.why_not(run(), sure=True) is None
        assert graphs.graphs_for(run(), None) is None

    def test_fit_refuses(self):
        with pytest.raises(ValueError, match="cuda_graph must be None or False where the device is cpu, got True"):
            nftk.fit(make(), toy(), cuda_graph=True)
        for value in (1, "yes"):
            with pytest.raises(TypeError, match=f"cuda_graph must be True, False or None, got {value!r}"):
                nftk.fit(make(), toy(), cuda_graph=value)

    def test_settings_of_any_kind_can_be_compared(self):
        p = nn.Parameter(torch.zeros(2))
        optimizer = SGD([p], lr=torch.tensor(0.1))
        optimizer.param_groups[0] |= {"mine": [1], "unset": None, "betas": (0.9, 0.99)}
        seen = {graphs._settings([optimizer], [p])}
        for name, value in (("mine", [2]), ("unset", 1), ("betas", (0.8, 0.99)), ("lr", torch.tensor(0.2))):
            optimizer.param_groups[0][name] = value
            seen.add(graphs._settings([optimizer], [p]))
        assert len(seen) == 5
        optimizer.param_groups[0]["params"] = [p, p]
        optimizer.param_groups[0]["lr"] = torch.tensor(0.2)
        assert graphs._settings([optimizer], [p]) in seen
