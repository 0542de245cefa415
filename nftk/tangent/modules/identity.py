"""What a function or a module depends on beside its parameters, so that nothing else is finished under its name."""

import functools
import hashlib
import json
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# what torch itself keeps in a module
_TORCH = frozenset(nn.Module().__dict__) - {"training"}
_PLAIN = bool | int | float | complex | str | bytes | torch.dtype | torch.device | torch.Size


class Identity:
    """Tells what an object depends on, ready for JSON, and gives every tensor to a function."""

    def __init__(self, add: Callable[[Tensor], Tensor]) -> None:
        self._add = add
        self._seen: dict[int, tuple[Any, str]] = {}

    def of_module(self, model: nn.Module) -> list[object]:
        """Plain attributes of a module and those in it, and buffers that its state leaves out."""
        known = set(model.state_dict())
        told: list[object] = []
        for name, buffer in model.named_buffers():
            if name not in known:
                self._add(buffer)
        for name, module in model.named_modules():
            own = {key: value for key, value in module.__dict__.items() if key not in _TORCH}
            told.append([name, self.of(own)])
        return told

    def of(self, value: Any) -> object:
        """Any value: numbers and texts, what holds them, and functions with all that they enclose."""
        if value is None or isinstance(value, _PLAIN):
            return [type(value).__name__, repr(value)]
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = torch.from_numpy(np.array(value))
        if isinstance(value, Tensor):
            if value.layout is torch.strided and not value.is_meta:
                self._add(value.float() if value.dtype is torch.bfloat16 else value)
            return "tensor"
        if id(value) not in self._seen:
            # held, so that its number is not given to another; told once, whoever shares it
            self._seen[id(value)] = value, "itself"
            told = json.dumps(self._of_object(value))
            self._seen[id(value)] = value, hashlib.sha256(told.encode()).hexdigest()
        return self._seen[id(value)][1]

    def _of_object(self, value: Any) -> object:
        if isinstance(value, nn.Module):
            for x in value.state_dict().values():
                if isinstance(x, Tensor):
                    self._add(x)
            return [repr(value), self.of_module(value)]
        if isinstance(value, Mapping):
            return [[self.of(key), self.of(entry)] for key, entry in value.items()]
        if isinstance(value, list | tuple):
            return [self.of(entry) for entry in value]
        if isinstance(value, set | frozenset):
            return sorted(str(self.of(entry)) for entry in value)
        if isinstance(value, functools.partial):
            return [self.of(value.func), self.of(value.args), self.of(value.keywords)]
        if isinstance(value, types.MethodType):
            return [self.of(value.__func__), self.of(value.__self__)]
        if isinstance(value, types.FunctionType):
            return self._of_function(value)
        if isinstance(value, type | types.BuiltinFunctionType | types.ModuleType):
            return [getattr(value, "__module__", ""), getattr(value, "__qualname__", value.__name__)]
        call = type(value).__dict__.get("__call__")
        return [type(value).__qualname__, self.of(call), self.of(getattr(value, "__dict__", None))]

    def _of_function(self, function: types.FunctionType) -> object:
        enclosed = []
        for cell in function.__closure__ or ():
            try:
                enclosed.append(self.of(cell.cell_contents))
            except ValueError:
                enclosed.append("empty")
        # numbers that stand beside it, such as a class that it picks
        code, outside = function.__code__, function.__globals__
        numbers = [[name, outside[name]] for name in code.co_names if isinstance(outside.get(name), _PLAIN)]
        return [
            _of_code(code), self.of(function.__defaults__), self.of(function.__kwdefaults__), enclosed,
            self.of(numbers),
        ]  # fmt: skip


def _of_code(code: types.CodeType) -> list[object]:
    constants: list[object] = []
    for c in code.co_consts:
        if isinstance(c, types.CodeType):
            constants.append(_of_code(c))
        else:
            constants.append(sorted(map(repr, c)) if isinstance(c, frozenset) else repr(c))
    return [code.co_code.hex(), list(code.co_names), constants]
