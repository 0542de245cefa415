"""Indexing LayerKernels: rows and columns of examples, views and copies, and what stays symmetric."""

import numpy as np
import pytest
import torch
from layer_kernel_examples import make

from nftk import LayerKernels


def test_indexing_views_and_copies():
    k = make("full")
    part = k[1:3, ::2]
    assert part.blocks.data_ptr() == k.blocks[:, 1:3].data_ptr()
    assert torch.equal(part.blocks, k.blocks[:, 1:3, ::2])
    assert k[1].shape == (1, 4)
    assert k[-1, -1].shape == (1, 1)
    assert torch.equal(k[-1, -1].blocks, k.blocks[:, 3:, 3:])
    assert torch.equal(k[[2, 0], torch.tensor([1, 3])].blocks, k.blocks[:, [2, 0]][:, :, [1, 3]])
    assert torch.equal(k[torch.tensor([True, False, True, False])].blocks, k.blocks[:, [0, 2]])
    assert torch.equal(k[::-1].blocks, k.blocks.flip(1))
    assert torch.equal(k[:, 2::-2].blocks, k.blocks[:, :, [2, 0]])
    assert torch.equal(k[np.array([1, 2])].blocks, k.blocks[:, 1:3])
    assert torch.equal(k[(2,)].blocks, k.blocks[:, 2:3])
    for two in (np.int64(2), torch.tensor(2), -2, np.array(2)):
        assert torch.equal(k[:, two].blocks, k.blocks[:, :, 2:3])
        assert torch.equal(k[:, [two]].blocks, k.blocks[:, :, 2:3])


def test_indexing_lists_wrap():
    k = make("trace")
    for last in ([-1, 0, -4], (-1, 0, -4), np.array([-1, 0, -4]), torch.tensor([-1, 0, -4])):
        assert torch.equal(k[last, :].blocks, k.blocks[:, [3, 0, 0]])
    assert torch.equal(k[range(-2, 1)].blocks, k.blocks[:, [2, 3, 0]])


@pytest.mark.parametrize(
    "nothing", [[], (), torch.tensor([]), np.array([]), slice(3, 1), slice(0, 0), [False] * 4], ids=repr
)
def test_indexing_nothing(nothing):
    k = make("full")
    assert k[nothing, :].blocks.shape == (2, 0, 4, 3, 3)
    assert k[:, nothing].blocks.shape == (2, 4, 0, 3, 3)
    assert k[nothing, nothing].combine(torch.ones(2)).shape == (0, 0, 3, 3)


def test_indexing_keeps_gradients():
    k = make("trace")
    blocks = k.blocks.requires_grad_()
    k = LayerKernels(blocks, k.names, "trace")
    k[[0, 0], ::-1].blocks.sum().backward()
    assert torch.equal(blocks.grad[0, :, 0], torch.tensor([2.0, 0, 0, 0], dtype=torch.float64))


def test_indexing_errors():
    k = make("trace", n2=5)
    for bad in (4, -5, [0, 4], [-5], torch.tensor([4])):
        with pytest.raises(IndexError, match=r"nftk.LayerKernels: an index must be from -4 to 3, got (4|-5)$"):
            k[bad]
    with pytest.raises(IndexError, match="an index must be from -5 to 4, got 5"):
        k[0, 5]
    with pytest.raises(IndexError, match="there is nothing to index, got 0"):
        k[[]][0]
    for bad in (1.0, None, ..., "readout 1", {1}, 1j, torch.tensor(1.0), k):
        with pytest.raises(TypeError, match="an index must be an integer, a slice, a list of integers or a mask, got"):
            k[bad]
    for bad in (True, np.True_, torch.tensor(False)):
        with pytest.raises(TypeError, match="an index must be .* got (True|False)"):
            k[bad]
    for bad in ([0.0], [0, None], [True, 2], [[0, 1]], torch.ones(1, 1, dtype=torch.int64), ["a"], np.array([1.5])):
        with pytest.raises(TypeError, match="a list must hold integers, or a mask true and false, got"):
            k[bad]
    for bad in (slice(0, 1.5), slice("a", None), slice(None, None, 0)):
        with pytest.raises(
            (TypeError, ValueError), match=r"a slice must have integer ends and a step but 0, got slice"
        ):
            k[bad]
    with pytest.raises(IndexError, match=r"an index must have two parts at most, rows and columns, got 3.*select"):
        k[0, 1, 2]
    with pytest.raises(ValueError, match="a mask must have 4 entries, one an example, got 3"):
        k[[True, False, True]]


def test_kernels_are_no_sequence():
    k = make("trace")
    for walk in (list, iter, lambda k: zip(k, k.names, strict=True)):
        with pytest.raises(
            TypeError, match=r"nftk.LayerKernels: a loop must be over k.blocks or k.names, which .*layer"
        ):
            walk(k)
    for walk in (reversed, np.asarray, lambda k: "readout 1" in k):
        with pytest.raises(TypeError):
            walk(k)


def test_indexing_knows_symmetry():
    k = make("trace")
    assert k[:2, :2].symmetric
    assert k[0:2, :2].symmetric
    assert k[:9, :].symmetric
    assert k[-2:, 2:4].symmetric
    assert k[::2, 0:3:2].symmetric
    assert k[::-1, ::-1].symmetric
    assert k[1, 1].symmetric
    assert k[1, -3].symmetric
    assert k[1, 1:2].symmetric
    assert k[[3, 1], [3, 1]].symmetric
    assert k[[3, 1], (-1, 1)].symmetric
    assert k[[1, 2], torch.tensor([1, 2])].symmetric
    assert k[[False, True, True, False], 1:3].symmetric
    assert not k[:2].symmetric
    assert k[:].symmetric
    assert not k[:2, 2:].symmetric
    assert not k[:2, 1::-1].symmetric
    assert not k[1, 2].symmetric
    assert not k[[3, 1], [1, 3]].symmetric
    assert not k[[3, 1], [3, 1, 1]].symmetric
    assert not make("trace", n2=4)[:2, :2].symmetric
    assert not make("trace", n2=5)[:, :].symmetric
