"""Independent pieces of work shared among threads, in each of which torch's operations run on one core."""

import collections
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")
# so that no thread waits long for the last of them
_PIECES = 3

_lock = threading.Lock()
_team: tuple[int, ThreadPoolExecutor] | None = None


def most_threads(device: str) -> int:
    """How many threads :func:`in_threads` may take on a kind of device."""
    return torch.get_num_threads() if device == "cpu" else 1


def in_threads(work: Callable[[Iterator[T]], None], pieces: Sequence[T], device: torch.device) -> None:
    """Call ``work`` on an iterator over all pieces, or on one in every thread, which share them as they come.

    On a CPU many products of middle size take fewer core seconds on one core each than one after the other on all.
    There are as many threads as torch has (``torch.get_num_threads()``); they are kept for the next call. A Ctrl-C lets
    what is begun end.
    """
    threads = most_threads(device.type)
    # what watches or changes torch's operations watches those of its own thread
    watched = torch._C._len_torch_dispatch_stack() > 0 or torch._C._is_torch_function_mode_enabled()
    if threads == 1 or len(pieces) < _PIECES * threads or watched:
        work(iter(pieces))
        return
    todo = collections.deque(pieces)
    inference = torch.is_inference_mode_enabled()

    def own() -> Iterator[T]:
        while True:
            try:
                yield todo.popleft()
            except IndexError:
                return

    def run() -> None:
        try:
            with torch.inference_mode(inference), torch.no_grad():
                work(own())
        except BaseException:
            todo.clear()
            raise

    team = _team_of(threads)
    if team is None:
        work(own())
        return
    jobs = [team.submit(run) for _ in range(threads)]
    try:
        wait(jobs)
    except BaseException:
        todo.clear()
        wait(jobs)
        raise
    for job in jobs:
        job.result()


def _team_of(threads: int) -> ThreadPoolExecutor | None:
    """At least so many threads, or None where the system gives no more."""
    global _team
    with _lock:
        if _team is None or _team[0] < threads:
            # all at once and once only: torch's number of threads is also what other new threads begin with
            team, ready = ThreadPoolExecutor(threads, "nftk", _one_core), threading.Barrier(threads + 1)
            try:
                for _ in range(threads):
                    team.submit(ready.wait)
                ready.wait()
            except RuntimeError:
                ready.abort()
                return None
            finally:
                torch.set_num_threads(threads)
            _team = threads, team
        return _team[1]


def _one_core() -> None:
    torch.set_num_threads(1)
    # a thread takes the number over when it is first asked, which is to be now
    torch.get_num_threads()


def _forget() -> None:
    global _team, _lock
    _team, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    # threads stay behind
    os.register_at_fork(after_in_child=_forget)
