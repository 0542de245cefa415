"""What the two walks over the layers share."""

import triton
import triton.language as tl
from nftk.kernels import choice
from nftk.kernels.choice import Tiles
from torch import Tensor


@triton.jit
def layer_done(counter, arrivals, COLUMNS: tl.constexpr):
    """Make a layer's columns visible to all programs that share a block of rows."""
    tl.debug_barrier()
    if COLUMNS > 1:
        # a cooperative launch: all programs are on the chip at once, so those that come early may wait
        seen = tl.atomic_add(counter, 1, sem="acq_rel") + 1
        while seen < arrivals:
            seen = tl.atomic_add(counter, 0, sem="acquire")
        tl.debug_barrier()


def groups_of(rows: int, tiles: Tiles, x: Tensor) -> int:
    """Groups of programs, one block of rows each at a time: no more than the chip holds."""
    blocks = triton.cdiv(rows, tiles.block_b)
    if tiles.splits > 1:
        return blocks
    # two on a multiprocessor, so that one computes while the other waits for its loads
    return min(blocks, 2 * choice.programs_at_once(x.device))


def block_of_outputs(d: int) -> int:
    return max(16, triton.next_power_of_2(d))
