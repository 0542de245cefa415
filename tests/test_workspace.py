"""kernels/_workspace.py: zeros that last, shared by the launches of a stream; captured ones have parts of their own."""

import threading

import pytest
import torch

from nftk import _dispatch

pytestmark = pytest.mark.skipif(_dispatch._TRITON_PACKAGE is not None, reason=str(_dispatch._TRITON_PACKAGE))
CPU = torch.device("cpu")


@pytest.fixture
def workspace(monkeypatch):
    """The module with nothing allotted yet."""
    from nftk.kernels import _workspace

    monkeypatch.setattr(_workspace, "_by_stream", {})
    monkeypatch.setattr(_workspace, "_for_capture", {})
    return _workspace


def test_one_stream_shares_its_counters(workspace):
    first = workspace.counters(5, CPU)
    assert first.dtype is torch.int32
    assert first.tolist() == [0] * 5
    assert workspace.counters(9, CPU).data_ptr() == first.data_ptr()


def test_more_counters_than_a_chunk(workspace):
    few, many = workspace.counters(5, CPU), workspace.counters(70_000, CPU)
    assert len(many) == 70_000
    assert not many.any()
    assert few.data_ptr() != many.data_ptr() == workspace.counters(5, CPU).data_ptr()


def test_counters_belong_to_no_pool(workspace, monkeypatch):
    """CUDA graph trees of torch.compile send what the calling thread allots to their pool, and take it back."""
    zeros, threads = torch.zeros, []

    def note(*args, **keywords):
        threads.append(threading.get_ident())
        return zeros(*args, **keywords)

    monkeypatch.setattr(torch, "zeros", note)
    workspace.counters(5, CPU)
    assert len(threads) == 2
    assert threading.get_ident() not in threads


def test_captured_launches_have_parts_of_their_own(workspace):
    """Cut 16 bytes apart from what was zeroed before; when that is used up, zeros of the graph itself."""
    workspace.counters(5, CPU)
    parts = [workspace._own_part(count, CPU, 0) for count in (5, 1, 8)]
    starts = [part.data_ptr() for part in parts]
    assert [b - a for a, b in zip(starts, starts[1:], strict=False)] == [32, 16]
    assert len(workspace._own_part(70_000, CPU, 0)) == 70_000
    assert len(workspace._own_part(1, torch.device("cpu"), 1)) == 1  # nothing was zeroed for that device
    assert not any(part.any() for part in parts)
