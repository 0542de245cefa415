"""What the CPU's loops stand on: threads that share tiles, and matrices written across."""

import os
import threading
import time
from concurrent import futures

import pytest
import torch

from nftk import _extension
from nftk.ops import in_threads as module
from nftk.ops.in_threads import in_threads, most_threads
from nftk.ops.transpose import copy_transposed_

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_every_piece_once_in_two_threads_of_one_each(two_threads):
    seen, torch_threads, lock = [], set(), threading.Lock()

    def work(pieces):
        for piece in pieces:
            time.sleep(0.001)
            with lock:
                seen.append((piece, threading.get_ident()))
                torch_threads.add(torch.get_num_threads())

    in_threads(work, range(20), CPU)
    assert sorted(piece for piece, _ in seen) == list(range(20))
    assert len({thread for _, thread in seen}) == 2
    assert torch_threads == {1}
    # and neither this thread nor those to come are left with one
    assert torch.get_num_threads() == 2
    found = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [2]


def test_few_pieces_stay_in_the_thread_that_asks(two_threads):
    seen = []
    in_threads(lambda pieces: seen.extend((piece, threading.get_ident()) for piece in pieces), range(5), CPU)
    assert seen == [(piece, threading.get_ident()) for piece in range(5)]


def test_modes_that_watch_operations_see_them(two_threads):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        in_threads(lambda pieces: [torch.ones(2, 3) @ torch.ones(3, 4) for _ in pieces], range(10), CPU)
    assert counter.get_total_flops() == 10 * 2 * 2 * 3 * 4


def test_what_a_thread_raises_is_raised_and_ends_the_others(two_threads):
    done = []

    def work(pieces):
        for piece in pieces:
            if piece == 3:
                raise ValueError("piece 3")
            time.sleep(0.01)
            done.append(piece)

    with pytest.raises(ValueError, match="piece 3"):
        in_threads(work, range(1000), CPU)
    assert len(done) < 10
    assert torch.get_num_threads() == 2


def test_an_interrupt_leaves_what_is_not_begun(two_threads, monkeypatch):
    done, calls = [], []

    def interrupted(jobs):
        calls.append(jobs)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return futures.wait(jobs)

    def work(pieces):
        for piece in pieces:
            time.sleep(0.01)
            done.append(piece)

    monkeypatch.setattr(module, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        in_threads(work, range(1000), CPU)
    count = len(done)
    assert count < 10
    time.sleep(0.05)
    assert len(done) == count


@pytest.mark.parametrize("most", [0, 1])
def test_a_system_without_more_threads(two_threads, monkeypatch, most):
    done, start, calls = [], threading.Thread.start, []

    def refused(self):
        calls.append(self)
        if len(calls) > most:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(module, "_team", None)
    monkeypatch.setattr(threading.Thread, "start", refused)
    in_threads(done.extend, range(10), CPU)
    assert done == list(range(10))
    assert torch.get_num_threads() == 2


def test_callers_in_many_threads_keep_their_own_number(two_threads):
    found, sums = set(), []

    def call():
        for _ in range(20):
            mine = []
            in_threads(mine.extend, range(30), CPU)
            sums.append(sum(mine))
            found.add(torch.get_num_threads())

    in_threads(list, range(10), CPU)  # the team is there
    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == {2}
    assert sums == [sum(range(30))] * 80


def test_more_threads_make_a_larger_team(two_threads):
    in_threads(list, range(10), CPU)
    torch.set_num_threads(3)
    seen = set()

    def work(pieces):
        for _ in pieces:
            time.sleep(0.01)
            seen.add((threading.get_ident(), torch.get_num_threads()))

    in_threads(work, range(30), CPU)
    assert len({thread for thread, _ in seen}) == 3
    assert {count for _, count in seen} == {1}
    assert torch.get_num_threads() == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_has_threads_of_its_own(two_threads):
    in_threads(list, range(10), CPU)
    child = os.fork()
    if child == 0:
        mine = []
        in_threads(mine.extend, range(10), CPU)
        os._exit(0 if sorted(mine) == list(range(10)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_inference_mode_and_no_gradients_go_along(two_threads):
    out = [None] * 8

    def work(pieces):
        for piece in pieces:
            out[piece] = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    in_threads(work, range(8), CPU)
    assert set(out) == {(False, False)}
    with torch.inference_mode():
        in_threads(work, range(8), CPU)
    assert set(out) == {(True, False)}


def test_most_threads():
    assert most_threads("cpu") == torch.get_num_threads()
    assert most_threads("cuda") == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 2000), (40, 50), (31, 33), (64, 96), (100, 1), (0, 5)])
def test_transpose_writes_the_matrix_across_and_nothing_else(dtype, rows, cols):
    whole, source = (torch.full((size + 4, 4096), -1, dtype=dtype) for size in (cols, rows))
    x = source[2 : 2 + rows, 3 : 3 + cols].copy_(torch.randint(0, 1000, (rows, cols)))
    copy_transposed_(whole[2 : 2 + cols, 5 : 5 + rows], x)
    assert torch.equal(whole[2 : 2 + cols, 5 : 5 + rows], x.mT)
    whole[2 : 2 + cols, 5 : 5 + rows] = -1
    assert bool((whole == -1).all())


@pytest.mark.skipif(_extension.NO_CPP is not None, reason=str(_extension.NO_CPP))
def test_transpose_is_cpp_where_rows_are_rows(monkeypatch):
    from nftk import _C

    calls, x, out = [], torch.randn(60, 40), torch.empty(40, 60)
    monkeypatch.setattr(_C, "transpose", lambda **keywords: calls.append(keywords["sizes"]))
    copy_transposed_(out, x)
    copy_transposed_(out, torch.randn(40, 60).mT)  # lies as it shall: torch's own copy
    copy_transposed_(torch.empty(60, 40).mT, x)
    copy_transposed_(out.double(), x)
    assert calls == [(60, 40)]
