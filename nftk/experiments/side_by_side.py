"""Run independent pieces of an experiment in processes of one thread each."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Found = TypeVar("Found")


def side_by_side(
    function: Callable[[Piece], Found], pieces: Sequence[Piece], *, jobs: int
) -> Iterator[tuple[Piece, Found]]:
    """Call a function of a module with each piece, jobs at a time; yields them as they end.

    On an exception pieces not begun are dropped, and those in progress end.
    """
    if jobs == 1 or len(pieces) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from ((piece, function(piece)) for piece in pieces)
        finally:
            torch.set_num_threads(threads)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        running = {pool.submit(function, piece): piece for piece in pieces}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
