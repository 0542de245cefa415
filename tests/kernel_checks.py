"""What the tests of the kernels share: guarded inputs, errors against the truth, and what a call does to a device."""

import math

import torch


def guarded(tensor, layout="rows"):
    """The same numbers with NaN behind every row and below the last one, so that a read past an end shows."""
    if tensor.ndim == 1:
        buffer = torch.full((len(tensor) + 3,), math.nan, dtype=tensor.dtype)
        buffer[: len(tensor)] = tensor
        return buffer[: len(tensor)]
    rows, cols = tensor.shape
    if layout == "dense":
        buffer = torch.full((rows + 1, cols), math.nan, dtype=tensor.dtype)
    elif layout == "columns":
        buffer = torch.full((cols + 3, rows + 1), math.nan, dtype=tensor.dtype).T
    else:
        buffer = torch.full((rows + 1, cols + 3), math.nan, dtype=tensor.dtype)
    buffer[:rows, :cols] = tensor
    return buffer[:rows, :cols]


def error(x, y):
    """Relative error of x, as a whole, against a truth y."""
    return ((x.double() - y.double()).norm() / y.double().norm().clamp_min(1e-30)).item()


def slack(dtype):
    """What an error may exceed twice eager's by: where eager happens to be exact, or its terms cancel.

    In 16 bits one rounding, since a gradient of few entries can be right by luck where eager rounds elsewhere.
    """
    eps = torch.finfo(dtype).eps
    return 8 * eps if eps < 1e-6 else eps


def device_work(profile):
    """Names of the torch operations in a profile that would start work on a GPU: not those that only look or allot."""
    free = {"empty", "new_empty", "empty_strided", "view", "split", "split_with_sizes", "slice", "select", "narrow",
            "as_strided", "t", "transpose", "detach", "detach_", "unbind", "alias", "expand", "reshape",
            "_reshape_alias", "result_type", "unsqueeze", "squeeze", "permute", "set_", "resize_"}  # fmt: skip
    names = {event.key.removeprefix("aten::") for event in profile.key_averages() if event.key.startswith("aten::")}
    return sorted(names - free)


def compile_and_list(f):
    """torch.compile of f with fullgraph, run by eager kernels; and the list that its graphs' operations go into."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    torch._dynamo.reset()
    seen = []

    def inspect(graph, example_inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=inspect, bw_compiler=inspect)
    return torch.compile(f, fullgraph=True, backend=backend), seen
