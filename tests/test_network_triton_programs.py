"""The programs of nftk.ops.network's Triton kernels: what they share, how they wait, and how many launches they are."""

import pytest
import torch
from kernel_checks import device_work
from network_inputs import BACKWARD, FORWARD, SHAPES, THREE, TWO, compare, flat, make_inputs, run, truth


def split_weight_sums(monkeypatch, splits, columns=1):
    from nftk.kernels import choice

    def tiles(kernel, *args, **kwargs):
        return choice.Tiles(16, 16, 16, splits if kernel == "network_bwd_weights" else columns, 4, 2)

    monkeypatch.setattr(choice, "default_tiles", tiles)
    monkeypatch.setattr(choice, "programs_at_once", lambda device: 12)


def test_bits_do_not_depend_on_who_arrives_last(small_tiles, grid, monkeypatch):
    split_weight_sums(monkeypatch, 3)
    i = make_inputs(THREE, requires_grad=True)

    def everything():
        f = run(i, backend="triton")
        return [f, *torch.autograd.grad(f.sin().sum(), flat(i))]

    first = everything()
    compare(i)
    for grid.order in ("backward", "random", "together"):
        for a, b in zip(first, everything(), strict=True):
            assert torch.equal(a, b), grid.order


@pytest.mark.parametrize(("columns", "name"), [(2, "gelu"), (3, "relu")])
def test_programs_that_share_a_block_of_rows(small_tiles, grid, monkeypatch, columns, name):
    """The cooperative launch: all programs at once, each a thread, waiting for each other after every layer."""
    i = make_inputs((18, 5, (5, 40, 17), 3), requires_grad=True)
    split_weight_sums(monkeypatch, 1)
    alone = run(i, backend="triton", activation=name)
    grads = torch.autograd.grad(alone.sin().sum(), flat(i))
    split_weight_sums(monkeypatch, 2, columns)
    grid.order = "together"
    for _ in range(2):  # the counters are back at zero for the second
        together = run(i, backend="triton", activation=name)
        assert torch.equal(together, alone)
        for a, b in zip(torch.autograd.grad(together.sin().sum(), flat(i)), grads, strict=True):
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            assert torch.equal(run(i, backend="triton", activation=name), alone)


@pytest.mark.parametrize("frozen", [1, 2])
def test_programs_that_share_a_block_leave_frozen_layers_alone(small_tiles, grid, monkeypatch, frozen):
    """The walk back ends above the frozen layers, and its counters are back at zero there too."""
    i = make_inputs((18, 5, (5, 40, 17), 3))
    wanted = [t.requires_grad_() for t in (*i.weights[frozen:], *i.biases[frozen:], i.omega)]
    grads = torch.autograd.grad(truth(i).sin().sum(), wanted)
    split_weight_sums(monkeypatch, 1, 2)
    grid.order = "together"
    for _ in range(2):
        for a, b in zip(torch.autograd.grad(run(i, backend="triton").sin().sum(), wanted), grads, strict=True):
            torch.testing.assert_close(a, b)


def test_no_more_programs_wait_for_each_other_than_the_chip_holds(monkeypatch):
    """Beyond that the stored columns are not taken: programs that are not on the chip would be waited for for ever."""
    from nftk.kernels import choice

    split_weight_sums(monkeypatch, 1, 3)
    monkeypatch.setattr(choice, "programs_at_once", lambda device: 14)
    for rows, splits in [(1, 3), (64, 3), (65, 1), (1000, 1)]:  # in blocks of 16
        for op in ("network_fwd", "network_bwd"):
            assert choice.walk_tiles(op, torch.empty(rows, 5), (7, 8), 2, "tf32x3").splits == splits, rows


def test_few_programs_walk_many_blocks(small_tiles, monkeypatch):
    """More blocks of rows than programs: each walks several, over the same scratch."""
    from nftk.kernels import choice

    monkeypatch.setattr(choice, "programs_at_once", lambda device: 1)
    compare(make_inputs((35, 5, (3, 20), 3), requires_grad=True))


@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_launches(small_tiles, grid, monkeypatch, name):
    """One launch forward, two backward, and no other work on the device: no memset, cast, copy or stack."""
    split_weight_sums(monkeypatch, 2)
    i = make_inputs(TWO, requires_grad=True)
    run(i, backend="triton")  # the counters' memory is made once
    torch.use_deterministic_algorithms(False)  # its NaN in fresh memory would count
    grid.launches.clear()
    with torch.profiler.profile() as forward:
        f = run(i, activation=name, backend="triton")
    assert grid.launches == FORWARD
    seed = torch.ones(1).expand(f.shape)
    with torch.profiler.profile() as backward:
        torch.autograd.grad(f, flat(i), seed)
    assert grid.launches == FORWARD + BACKWARD
    for profile in (forward, backward):
        assert device_work(profile) == []


def test_gradients_are_taken_over_without_a_copy(small_tiles):
    """Parameters get views of the one buffer that the kernel wrote, so accumulating starts no work either."""
    i = make_inputs(SHAPES[1], requires_grad=True)
    run(i, backend="triton").sum().backward()
    assert len({w.grad.untyped_storage().data_ptr() for w in i.weights}) == 1
    assert all(w.grad.is_contiguous() for w in i.weights)
