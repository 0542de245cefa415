"""Counters that are zero before every launch and after it, without a memset in between."""

import threading

import torch
from torch import Tensor

_CHUNK = 1 << 16
_by_stream: dict[tuple[str, int, int], Tensor] = {}
_for_capture: dict[int, list[Tensor]] = {}


def counters(count: int, device: torch.device) -> Tensor:
    """Return count zeros, int32. The kernel that takes them puts them back to zero.

    Launches on one stream run one after the other, so they share one block of memory. A launch that is captured in a
    CUDA graph can be replayed beside anything, so each has a part of its own.
    """
    index, stream = 0, 0
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        if torch.cuda.is_current_stream_capturing():
            return _own_part(count, device, index)
        stream = torch.cuda.current_stream(device).cuda_stream
    key = (device.type, index, stream)
    found = _by_stream.get(key)
    if found is None or len(found) < count:
        found = _lasting_zeros(max(count, _CHUNK), device)
        _by_stream[key] = found
        if index not in _for_capture:
            # zeroed while nothing is captured, for the first captures to cut from
            _for_capture[index] = [_lasting_zeros(_CHUNK, device)]
    return found[:count]


def _lasting_zeros(count: int, device: torch.device) -> Tensor:
    """Zeros that no memory pool owns.

    torch.compile(mode="reduce-overhead") lets a call warm up with all that its thread allots in the pool of its CUDA
    graphs, and takes that memory back behind its owners. So this is allotted by another thread, on its own stream.
    """
    made: list[Tensor] = []

    def allot() -> None:
        made.append(torch.zeros(count, dtype=torch.int32, device=device))

    apart = threading.Thread(target=allot)
    apart.start()
    apart.join()
    (zeros,) = made
    if device.type == "cuda":
        used_on = torch.cuda.current_stream(device)
        used_on.wait_stream(torch.cuda.default_stream(device))
        # when a longer one takes its place, launches on that stream may still be using it
        zeros.record_stream(used_on)
    return zeros


def _own_part(count: int, device: torch.device, index: int) -> Tensor:
    spare = _for_capture.get(index)
    if not spare or len(spare[0]) < count:
        # a memset in the graph: right, and one launch more
        return torch.zeros(count, dtype=torch.int32, device=device)
    # 16 bytes apart, so that all are aligned alike and Triton compiles for one alignment
    cut = -(-count // 4) * 4
    part, spare[0] = spare[0][:count], spare[0][cut:]
    return part
