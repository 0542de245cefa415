"""What a function or a module depends on beside its parameters, so that nothing else is finished under its name."""

import collections
import contextlib
import dis
import functools
import hashlib
import json
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

# what torch itself keeps in a module, with what torch.compile leaves there: it changes rounding only
_TORCH = (frozenset(nn.Module().__dict__) | {"_compiled_call_impl"}) - {"training"}
_BY_REPR = bool, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format, range
_BASES = int, float, complex, str, bytes
_NUMERIC = "biufcSUmM"
# their code is told by name and version
_LIBRARIES = sys.stdlib_module_names | {"torch", "numpy", "nftk", "triton"}
_INSTALLED = "site-packages", "dist-packages"
# what Python, its metaclasses, copy and torch add to a class of their own accord
_OF_EVERY_CLASS = frozenset(("__module__", "__dict__", "__weakref__", "__slotnames__", "__doc__", "__firstlineno__",
    "__static_attributes__", "__abstractmethods__", "__annotations__", "__annotate__", "__annotate_func__", "_abc_impl",
    "__annotations_cache__", "__conditional_annotations__", "__orig_bases__", "__parameters__", "_backward_cls",
    "_autograd_function_id", "_compiled_autograd_backward_state"))  # fmt: skip
# objects of these modules are what their attributes are; of others in the standard library, a log or a lock, only the
# type counts, as what they hold is not the model's and changes
_HOLDERS = frozenset(("argparse", "collections", "dataclasses", "enum", "functools", "types"))
_SAID_BY_REPR = frozenset(("builtins", "datetime", "decimal", "fractions", "numpy", "operator", "_operator", "pathlib",
    "pathlib._local", "re", "typing"))  # fmt: skip
_CONTAINERS = dict, list, tuple, set, frozenset, bytearray, types.MappingProxyType, np.ndarray
# these fill caches as they run
_CACHING = "torch.fx", "torch._ops", "torch._library", "torch._dynamo", "torch._inductor", "torch._C", "triton"
_WRAPPED = "__wrapped__", "fn", "func", "_init_fn", "_torchdynamo_orig_callable"
_GLOBAL_NAMES = frozenset(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"))
_HOOKS = (
    ("forward_pre_hooks", ("forward_pre_hooks_with_kwargs",)),
    ("forward_hooks", ("forward_hooks_with_kwargs", "forward_hooks_always_called")),
    ("backward_pre_hooks", ()),
    ("backward_hooks", ()),
)

# what is plain in a value, and the values that it leads to
_Look = tuple[list[object], Sequence[Any]]
# the same with places for values, and whether these have no order
_Vertex = tuple[str, list[int | str], bool]


class Identity:
    """Tells what an object depends on, ready for JSON.

    Two objects that nothing leads apart are told alike: copies, and what another process made of the same source. So
    no address, no order of a set and no memory that two names share is told, and what cannot be looked into, such as an
    object of an extension, is told by the name of its type.
    """

    def __init__(self, add: Callable[[Tensor], Tensor]) -> None:
        self._add = add
        # held, so that their numbers are not given to others
        self._tensors: dict[int, tuple[Tensor, str]] = {}

    def of_module(self, model: nn.Module) -> list[object]:
        """Classes, hooks and attributes of a module and those in it; buffers that its state leaves out are added."""
        known = set(model.state_dict())
        for name, buffer in model.named_buffers():
            if name not in known:
                self._add(buffer)
        first: dict[int, str] = {}
        parameters = [
            [name, first.setdefault(id(p), name), p.requires_grad, list((p._backward_hooks or {}).values())]
            for name, p in model.named_parameters(remove_duplicate=False)
        ]
        modules = [[name, *_of_one_module(module)] for name, module in model.named_modules()]
        return [self.of([parameters, modules, list(_hooks(vars(torch_module), "_global_"))])]

    def of(self, value: Any) -> str:
        """Any value and all that it leads to, as a checksum unless it is plain."""
        held: list[Any] = []
        places: dict[int, int] = {}

        def refer(part: Any) -> int | str:
            told = self._plain(part)
            if told is not None:
                return told
            if id(part) not in places:
                places[id(part)] = len(held)
                held.append(part)
            return places[id(part)]

        root = refer(value)
        if isinstance(root, str):
            return root
        seen: list[_Vertex] = []
        while len(seen) < len(held):
            told, parts = self._look(held[len(seen)])
            unordered = isinstance(held[len(seen)], set | frozenset)
            seen.append((json.dumps(told), [refer(part) for part in parts], unordered))
        return _named(seen)

    def _plain(self, value: Any) -> str | None:
        """Numbers, texts and tensors."""
        if isinstance(value, _BY_REPR):
            return f"{type(value).__name__} {value!r}"
        for base in _BASES:
            if isinstance(value, base) and not hasattr(value, "__dict__"):
                return f"{type(value).__name__} {base.__repr__(value)}"
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in _NUMERIC:
            content = np.ascontiguousarray(value).tobytes()
            return f"array {value.dtype} {value.shape} {hashlib.sha256(content).hexdigest()}"
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self._tensors:
            self._tensors[id(value)] = value, _of_tensor(value)
        return self._tensors[id(value)][1]

    def _look(self, value: Any) -> _Look:
        if isinstance(value, type):
            return _of_class(value)
        if isinstance(value, types.FunctionType):
            return _of_function(value)
        if isinstance(value, types.MethodType):
            return ["method"], [value.__func__, value.__self__]
        if isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType):
            bound = value.__self__
            return ["builtin", value.__qualname__], [] if isinstance(bound, types.ModuleType) else [bound]
        if isinstance(value, types.ModuleType):
            return ["module", _with_version(value.__name__)], []
        if isinstance(value, property):
            return ["property"], [value.fget, value.fset, value.fdel]
        if isinstance(value, staticmethod | classmethod):
            return [type(value).__name__], [value.__func__]
        if isinstance(value, types.MethodDescriptorType | types.WrapperDescriptorType | types.GetSetDescriptorType):
            return ["builtin", value.__objclass__.__qualname__, value.__name__], []
        return self._of_object(value)

    def _of_object(self, value: Any) -> _Look:
        kind = type(value)
        told: list[object] = ["object", kind.__qualname__, _repr(value)]
        if isinstance(value, nn.Module):
            return told, [*_of_one_module(value), value._parameters, value._buffers, value._modules]
        if str(kind.__module__).startswith(_CACHING):
            attributes = getattr(value, "__dict__", {})
            return told, [attributes[name] for name in _WRAPPED if name in attributes]
        return told, [kind, *_attributes(value), *_contents(value)]


def _contents(value: Any) -> Iterator[Any]:
    """What Python's own containers hold, in theirs or a class made of them."""
    for base in _BASES:
        if isinstance(value, base):
            yield base.__repr__(value)
    if isinstance(value, dict | types.MappingProxyType):
        items = dict.items(value) if isinstance(value, dict) else value.items()
        yield from (part for item in items for part in item)
    kinds: tuple[Any, ...] = list, tuple, set, frozenset, collections.deque
    for kind in kinds:
        if isinstance(value, kind):
            # not as a class made of it may go through it
            yield from kind.__iter__(value)
    if isinstance(value, bytearray):
        yield bytes(value)
    if isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    if isinstance(value, np.ndarray):
        yield value.tolist()


def _attributes(value: Any) -> list[Any]:
    """Those of an object by name, in its dictionary and in slots."""
    home = type(value).__module__
    if _library(home) in sys.stdlib_module_names and home not in _HOLDERS:
        return []
    own = getattr(value, "__dict__", None)
    found = dict(own) if isinstance(own, dict) else {}
    if isinstance(value, nn.Module):
        found = {name: entry for name, entry in found.items() if name not in _TORCH}
    for kind in type(value).__mro__:
        if "__slots__" in vars(kind):
            for name, slot in vars(kind).items():
                if isinstance(slot, types.MemberDescriptorType):
                    with contextlib.suppress(AttributeError):  # it may be empty
                        found[f"{kind.__qualname__}.{name}"] = slot.__get__(value, kind)
    return [part for item in sorted(found.items(), key=lambda item: str(item[0])) for part in item]


def _of_one_module(module: nn.Module) -> list[Any]:
    return [type(module), _attributes(module), list(_hooks(vars(module), "_"))]


def _hooks(found: dict[str, Any], prefix: str) -> Iterator[list[Any]]:
    """Hooks in their order, with what they were registered with; their numbers count all hooks ever."""
    for name, flags in _HOOKS:
        registered = [found.get(prefix + flag, {}) for flag in flags]
        yield [[hook, *[key in flag for flag in registered]] for key, hook in found.get(prefix + name, {}).items()]


def _of_class(kind: type) -> _Look:
    """Of a library's class its name, and functions that somebody else put into it."""
    entries = {name: entry for name, entry in vars(kind).items() if name not in _OF_EVERY_CLASS}
    # a metaclass may have a say in what is made of the class
    above = [type(kind), *kind.__bases__]
    if _library(kind.__module__) or _installed(sys.modules.get(kind.__module__)):
        entries = {name: entry for name, entry in entries.items() if _is_foreign(entry)}
        told = [_with_version(kind.__module__), kind.__qualname__]
        return ["class", *told], [part for name in sorted(entries) for part in (name, entries[name])]
    slots = types.MemberDescriptorType | types.GetSetDescriptorType
    named = {name: entry for name, entry in entries.items() if not isinstance(entry, slots)}
    return ["class", kind.__qualname__], [*above, *(part for n in sorted(named) for part in (n, named[n]))]


def _is_foreign(entry: Any) -> bool:
    function = getattr(entry, "__func__", entry)
    if not isinstance(function, types.FunctionType):
        return False
    home = str(function.__globals__.get("__name__", ""))
    # collections gives what it makes a home of its own
    return not (home.startswith("namedtuple_") or _library(home) or _installed(sys.modules.get(home)))


def _of_function(function: types.FunctionType) -> _Look:
    """Its code, what it encloses, its defaults and attributes, and what its names mean outside."""
    enclosed = []
    for cell in function.__closure__ or ():
        try:
            enclosed.append(cell.cell_contents)
        except ValueError:
            enclosed.append("empty")
    outside = function.__globals__
    home = str(outside.get("__name__", ""))
    parts: list[Any] = [enclosed, dict(sorted(function.__dict__.items()))]
    if _library(home):
        return ["function", _with_version(home), function.__qualname__], parts
    code = function.__code__
    parts += [function.__defaults__, function.__kwdefaults__]
    told: list[object] = ["function", _of_code(code)]
    if _installed(sys.modules.get(home)):
        return [*told, _with_version(home)], parts
    return told, [*parts, *_named_outside(code, outside)]


def _named_outside(code: types.CodeType, outside: dict[str, Any]) -> Iterator[Any]:
    """Globals of a function by name, and what it may take from modules that are no library."""
    codes = list(_codes(code))
    names = {i.argval for c in codes for i in dis.get_instructions(c) if i.opname in _GLOBAL_NAMES}
    attributes = sorted({name for c in codes for name in c.co_names})
    modules = []
    for name in sorted(names & outside.keys()):
        yield name
        yield outside[name]
        modules.append((name, outside[name]))
    looked: set[int] = set()
    while modules:
        path, module = modules.pop()
        if not isinstance(module, types.ModuleType) or id(module) in looked:
            continue
        looked.add(id(module))
        if _library(module.__name__) or _installed(module):
            continue
        for name in attributes:
            if name in vars(module):
                yield f"{path}.{name}"
                yield vars(module)[name]
                modules.append((f"{path}.{name}", vars(module)[name]))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _of_code(code: types.CodeType) -> list[object]:
    counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    names = [list(n) for n in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)]
    exceptions = getattr(code, "co_exceptiontable", b"")
    return [code.co_code.hex(), exceptions.hex(), counts, names, _of_constant(code.co_consts)]


def _of_constant(constant: Any) -> object:
    if isinstance(constant, types.CodeType):
        return _of_code(constant)
    if isinstance(constant, tuple):
        return [_of_constant(c) for c in constant]
    if isinstance(constant, frozenset):
        return sorted(json.dumps(_of_constant(c)) for c in constant)
    return repr(constant)


def _of_tensor(x: Tensor) -> str:
    told = f"{type(x).__name__} {x.dtype} {tuple(x.shape)} {x.layout}"
    try:
        dense = x.detach() if x.layout is torch.strided else x.detach().to_dense()
        content = dense.cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
        return f"{told} {hashlib.sha256(content.numpy().data).hexdigest()}"
    except (RuntimeError, TypeError, NotImplementedError):
        # without numbers of its own, such as one on the device meta
        return told


def _library(module: str | None) -> str | None:
    """Name of the library that a module belongs to, if what lies in it is told by name."""
    top = str(module or "").partition(".")[0]
    return top if top in _LIBRARIES else None


def _installed(module: types.ModuleType | None) -> bool:
    # __main__ is a file of an installed program where this runs a notebook
    if module is None or module.__name__ == "__main__":
        return False
    return any(folder in str(vars(module).get("__file__")) for folder in _INSTALLED)


def _with_version(module: str) -> str:
    top = sys.modules.get(module.partition(".")[0])
    version = vars(top).get("__version__") if top is not None else None
    return f"{module} {version}" if isinstance(version, str) else module


def _repr(value: Any) -> str:
    """What an object says of itself, where that is about its contents."""
    home = str(type(value).__module__)
    if not (home.startswith(_CACHING) or home in _SAID_BY_REPR) or isinstance(value, _CONTAINERS):
        return ""
    told = repr(value)
    return "" if " at 0x" in told else told


def _named(seen: Sequence[_Vertex]) -> str:
    # what leads to no cycle is named once, after all that it leads to; of the rest, vertices are named by what is plain
    # in them and by the names so far of those that they lead to, until one more round tells no more of them apart; then
    # the names say it all (colour refinement)
    names = [_checksum(told) for told, _, _ in seen]

    def name(i: int) -> str:
        told, parts, unordered = seen[i]
        said = [part if isinstance(part, str) else names[part] for part in parts]
        return _checksum(json.dumps([told, sorted(said) if unordered else said]))

    users: list[list[int]] = [[] for _ in seen]
    for i, (_, parts, _) in enumerate(seen):
        for part in parts:
            if isinstance(part, int):
                users[part].append(i)
    waiting = [sum(isinstance(part, int) for part in parts) for _, parts, _ in seen]
    ready = [i for i, count in enumerate(waiting) if not count]
    while ready:
        i = ready.pop()
        names[i] = name(i)
        for user in users[i]:
            waiting[user] -= 1
            if not waiting[user]:
                ready.append(user)
    rest = [i for i, count in enumerate(waiting) if count]
    apart = 0
    while len({names[i] for i in rest}) > apart:
        apart = len({names[i] for i in rest})
        for i, renamed in [(i, name(i)) for i in rest]:
            names[i] = renamed
    return _checksum(json.dumps([names[0], sorted(set(names))]))


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
