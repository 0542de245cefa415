"""Independent pieces of work shared among threads, each of which leaves torch's own threads alone."""

import collections
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")
# so that no thread waits long for the last of them
_PIECES = 3


def most_threads(device: str) -> int:
    """How many threads :func:`in_threads` may take on a kind of device."""
    return torch.get_num_threads() if device == "cpu" else 1


def in_threads(work: Callable[[Iterator[T]], None], pieces: Sequence[T], device: torch.device) -> None:
    """Call ``work`` on an iterator over all pieces, or on one in every thread, which share them as they come.

    On a CPU many products of middle size take fewer core seconds on one core each than one after the other on all.
    There are as many threads as torch has (``torch.get_num_threads()``), and each runs torch's operations on one.
    """
    threads = most_threads(device.type)
    # what watches or changes torch's operations watches those of its own thread
    watched = torch._C._len_torch_dispatch_stack() > 0 or torch._C._is_torch_function_mode_enabled()
    if threads == 1 or len(pieces) < _PIECES * threads or watched:
        work(iter(pieces))
        return
    todo = collections.deque(pieces)
    errors: list[BaseException] = []
    started = threading.Semaphore(0)
    inference = torch.is_inference_mode_enabled()

    def own() -> Iterator[T]:
        while True:
            try:
                yield todo.popleft()
            except IndexError:
                return

    def run() -> None:
        try:
            try:
                torch.set_num_threads(1)
                # a thread takes its first number over when it is first asked, which is to be now
                torch.get_num_threads()
            finally:
                started.release()
            with torch.inference_mode(inference), torch.no_grad():
                work(own())
        except BaseException as error:
            errors.append(error)
            todo.clear()

    team: list[threading.Thread] = []
    try:
        for _ in range(threads):
            thread = threading.Thread(target=run, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system gives no more of them
                break
            team.append(thread)
            started.acquire()
        # of this thread, and what threads to come begin with; those above keep their one
        torch.set_num_threads(threads)
        if not team:
            work(own())
        for thread in team:
            thread.join()
    except BaseException:
        # a Ctrl-C: what is begun ends, the rest is left
        todo.clear()
        for thread in team:
            thread.join()
        raise
    finally:
        torch.set_num_threads(threads)
    if errors:
        raise errors[0]
