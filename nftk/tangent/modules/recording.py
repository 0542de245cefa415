"""One run of a model, in which every torch function that takes a parameter is noted."""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

_SETTING = threading.RLock()
# operators that change their first argument, beside methods with a _ at their end
_IN_PLACE = {"__iadd__", "__isub__", "__imul__", "__itruediv__", "__setitem__"}


@dataclass
class Use:
    """A torch function that was given parameters."""

    function: Callable[..., Any]
    owners: tuple[str, ...]  # the parameters, in the order of the arguments
    leaves: list[Any]  # of (args, kwargs); tensors are cut off from the graph
    spec: Any
    places: tuple[int, ...]  # of the parameters among the leaves
    outputs: list[Tensor]  # what the function returned, cut off
    edges: list[Tensor | GradientEdge] = field(default_factory=list)  # where the gradients of the outputs arrive
    in_place: bool = False

    @property
    def name(self) -> str:
        """What the function is called."""
        return getattr(self.function, "__name__", str(self.function))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments."""
        args, kwargs = pytree.tree_unflatten(self.leaves, self.spec)
        return args, kwargs


class Recording(TorchFunctionMode):
    """Notes the uses of parameters while it is on, and lets the graph begin at their results.

    Args:
        parameters: By name.
        expanded: Numbers of the uses whose result is one for all examples, which is repeated for each.
        n: Number of examples.
    """

    def __init__(self, parameters: Mapping[str, Tensor], n: int, expanded: frozenset[int]) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self.bytes = 0  # of all results, views counted too
        self._n, self._expanded = n, expanded
        self._names: dict[int, str] = {}
        self._detached: dict[int, Tensor] = {}
        for name, parameter in parameters.items():
            detached = parameter.detach()
            for x in (parameter, detached):
                # a function such as .to(dtype) returns the cut off one itself
                self._names[id(x)], self._detached[id(x)] = name, detached
        self._kept = list(parameters.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(id(x) in self._names for x in _shallow((args, kwargs))):
            out = func(*args, **kwargs)
            if isinstance(out, Tensor):
                self.bytes += out.numel() * out.element_size()
            return out
        if getattr(func, "__name__", "") == "__setitem__":
            # it returns nothing that a graph could begin at: left to autograd, which tells that there was a use
            return func(*args, **kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        places = tuple(i for i, x in enumerate(leaves) if isinstance(x, Tensor) and id(x) in self._names)
        owners = tuple(self._names[id(leaves[i])] for i in places)
        for i in places:
            leaves[i] = self._detached[id(leaves[i])]
        inner_args, inner_kwargs = pytree.tree_unflatten(leaves, spec)
        out = func(*inner_args, **inner_kwargs)
        results, shape = pytree.tree_flatten(out)
        tensors = [i for i, x in enumerate(results) if isinstance(x, Tensor) and x.is_floating_point()]
        if not tensors or not torch.is_grad_enabled() or any(id(results[i]) in self._names for i in tensors):
            return out
        number = len(self.uses)
        name = getattr(func, "__name__", "")
        use = Use(func, owners, leaves, spec, places, [], in_place=name in _IN_PLACE or name.rstrip("_") + "_" == name)
        self.uses.append(use)
        for i, x in enumerate(leaves):
            if isinstance(x, Tensor) and i not in places:
                # autograd, which is asked too, refuses a model that writes into what a gradient depends on
                leaves[i] = x.detach()
        for i in tensors:
            x = results[i]
            self.bytes += x.numel() * x.element_size()
            if number in self._expanded:
                x = x.expand(self._n, *x.shape[1:])
            if use.in_place:
                pass
            elif x.requires_grad:
                use.edges.append(get_gradient_edge(x))
            else:
                leaf = x.detach().requires_grad_()
                use.edges.append(leaf)
                # not the leaf itself: it could be written into
                x = leaf.clone()
            results[i] = x
            use.outputs.append(x.detach())
        return pytree.tree_unflatten(results, shape)


def _shallow(x: Any) -> Iterator[Any]:
    """Entries of nested tuples, lists and dicts."""
    for entry in x.values() if isinstance(x, dict) else x:
        if isinstance(entry, tuple | list | dict):
            yield from _shallow(entry)
        else:
            yield entry


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """With gradients, without autocast, and without the shortcuts that torch takes where nobody wants gradients."""
    with _SETTING:
        before = torch.backends.mha.get_fastpath_enabled()
        tf32 = torch.backends.cudnn.allow_tf32
        torch.backends.mha.set_fastpath_enabled(False)
        torch.backends.cudnn.allow_tf32 = False
        try:
            with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
                # where torch.vmap goes example by example inside
                warnings.filterwarnings("ignore", "There is a performance drop")
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)
            torch.backends.cudnn.allow_tf32 = tf32
