"""Plans under a byte budget: every pair once, never over the budget, and layers in groups where that saves walks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import error

import nftk
from nftk.tangent.plan import Plan, Tile, _split, costs, make_plan
from nftk.tangent.request import Request, detached, prepare
from nftk.tangent.sweep import Sweep


def make_request(**keywords):
    settings = {
        "per": "layer", "reduction": "trace", "normalize": None, "weights": None, "include_omega": False,
        "precision": "highest", "backend": "torch",
    }  # fmt: skip
    return Request(**settings | keywords)


@settings(deadline=None, max_examples=200)
@given(
    n1=st.integers(0, 23), n2=st.integers(0, 23), symmetric=st.booleans(), columns=st.integers(1, 9),
    times=st.integers(1, 4),
)  # fmt: skip
def test_every_pair_is_filled_once(n1, n2, symmetric, columns, times):
    n2 = n1 if symmetric else n2
    seen = torch.zeros(2, n1, n2, dtype=torch.int64)
    plan = Plan(((0, 1), (1, 2)), columns * times, columns, 0)
    for (first, last), rows, cols in (
        (tile.outputs, tile.rows, tile.columns) for tile in plan.tiles(plan.groups, n1, n2, symmetric)
    ):
        seen[first:last, slice(*rows), slice(*cols)] += 1
        if symmetric and rows != cols:
            seen[first:last, slice(*cols), slice(*rows)] += 1
        # rows are of one block
        assert rows[0] // plan.rows == (rows[1] - 1) // plan.rows
    assert (seen == 1).all()


@settings(deadline=None, max_examples=100)
@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=12), count=st.integers(1, 12))
def test_groups_take_every_layer_once(sizes, count):
    groups = _split(sizes, min(count, len(sizes)))
    assert [i for first, last in groups for i in range(first, last)] == list(range(len(sizes)))
    assert all(first < last for first, last in groups)


def chain_of(depth=3, width=8, m=5, d=4):
    torch.manual_seed(0)
    model = nftk.NFTKMLP(m, [width] * depth, d, dtype=torch.float64)
    return model, detached(*prepare(model, torch.zeros(1, m, dtype=torch.float64), None, "test"))[0]


@pytest.mark.parametrize("keywords", [{}, {"reduction": "full"}, {"normalize": "joint"}, {"per": "model"}], ids=str)
@pytest.mark.parametrize("symmetric", [False, True], ids=["rectangular", "symmetric"])
@pytest.mark.parametrize(
    "plan",
    [
        Plan(((0, 3),), 4, 2, 0),
        Plan(((0, 1), (1, 3)), 20, 5, 0),
        Plan(((0, 1), (1, 2), (2, 3)), 6, 3, 0),
        Plan(((0, 2), (2, 3)), 1, 1, 0),
    ],
    ids=str,
)
def test_any_plan_gives_the_same(plan, symmetric, keywords):
    model, chain = chain_of()
    x1, x2 = torch.randn(13, 5, dtype=torch.float64), None if symmetric else torch.randn(11, 5, dtype=torch.float64)
    sweep = Sweep(chain, x1, x2, make_request(**keywords), budget=1 << 40, op="test", plan=plan)
    out = torch.full(sweep.memory_shape(), torch.nan, dtype=torch.float64)
    sweep.run(out)
    whole = Sweep(chain, x1, x2, make_request(**keywords), budget=1 << 40, op="test")
    assert len(whole.tiles()) < len(sweep.tiles())
    want = torch.full_like(out, torch.nan)
    whole.run(want)
    assert error(out, want) < 1e-13


def test_tiles_done_are_left_alone():
    _, chain = chain_of()
    x = torch.randn(12, 5, dtype=torch.float64)
    sweep = Sweep(chain, x, None, make_request(), budget=1 << 40, op="test", plan=Plan(((0, 3),), 4, 2, 0))
    out = torch.full(sweep.memory_shape(), torch.nan, dtype=torch.float64)
    done = Tile((0, 3), (0, 4), (4, 6))
    assert done in sweep.tiles()
    sweep.run(out, {done})
    assert out[:, 0:4, 4:6].isnan().all()
    assert out[:, 4:6, 0:4].isnan().all()
    assert out.isnan().sum() == 3 * 16


MNIST = nftk.NFTKMLP(784, [256] * 10, 10)


def mnist_plan(budget, n1=5_000, n2=None, **keywords):
    chain = detached(*prepare(MNIST, torch.zeros(1, 784), None, "test"))[0]
    request = make_request(**keywords)
    may_group = request.per == "layer" and not request.one_output
    cost = costs(chain, request, n1, n2 or n1)
    found = make_plan(
        cost, n1, n2 or n1, symmetric=n2 is None, sides_differ=False, may_group=may_group, budget=budget, op="test"
    )  # fmt: skip
    return found, cost


@pytest.mark.parametrize("reduction", ["trace", "full", "sum_logits"])
@pytest.mark.parametrize("n2", [None, 700])
@pytest.mark.parametrize("budget", [1 << 26, 1 << 28, 1 << 30, 1 << 34])
def test_plans_stay_under_the_budget(budget, n2, reduction):
    plan, cost = mnist_plan(budget, n2=n2, reduction=reduction)
    assert plan.bytes <= budget
    held = max(cost.state_bytes + sum(cost.delta_bytes[a:b]) for a, b in plan.groups)
    assert held * plan.rows <= plan.bytes
    assert plan.columns <= plan.rows


def test_layers_go_in_groups_where_their_deltas_do_not_fit_together():
    """5,000 images of MNIST under 1 GiB: 2.8 GB of deltas, which would be made again for every block of rows."""
    plan, cost = mnist_plan(1 << 30)
    assert sum(cost.delta_bytes) * 5_000 > 2 << 30
    assert len(plan.groups) > 1
    assert plan.rows > 2_500
    plan, _ = mnist_plan(1 << 34)
    assert plan.groups == ((0, 10),)
    assert plan.rows == 5_000
    # a sum over layers needs them together
    assert len(mnist_plan(1 << 30, weights=(1.0,) * 10)[0].groups) == 1
