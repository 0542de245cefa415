"""Which examples an index means: a number, a slice, a list or a mask, as in numpy; and which layers a name."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nftk._checks import check_list

Index = int | slice | Sequence[int] | Tensor | np.ndarray[Any, Any]


def places(op: str, index: object, size: int) -> range | list[int]:
    """Numbers of the examples that index means, among size of them, each from 0 up."""
    if isinstance(index, slice):
        try:
            return range(*index.indices(size))
        except (TypeError, ValueError) as error:
            raise type(error)(f"nftk.{op}: a slice must have integer ends and a step but 0, got {index}") from None
    plain = _plain(index)
    if _is_integer(plain):
        place = _wrapped(op, plain, size)
        return range(place, place + 1)
    if isinstance(plain, str | bytes) or not isinstance(plain, Sequence):
        raise TypeError(
            f"nftk.{op}: an index must be an integer, a slice, a list of integers or a mask, got {plain!r}; select "
            "takes layers by name"
        )
    entries = [_plain(entry) for entry in plain]
    if entries and all(isinstance(entry, bool) for entry in entries):
        if len(entries) != size:
            raise ValueError(f"nftk.{op}: a mask must have {size} entries, one an example, got {len(entries)}")
        return [place for place, kept in enumerate(entries) if kept]
    for entry in entries:
        if not _is_integer(entry):
            raise TypeError(f"nftk.{op}: a list must hold integers, or a mask true and false, got {entry!r}")
    return [_wrapped(op, entry, size) for entry in entries]


def parts(op: str, index: object) -> tuple[object, object]:
    """What selects rows and what selects columns."""
    both = index if isinstance(index, tuple) else (index,)
    if len(both) > 2:
        raise IndexError(
            f"nftk.{op}: an index must have two parts at most, rows and columns, got {len(both)}; select takes layers"
        )
    rows, columns = (*both, slice(None), slice(None))[:2]
    return rows, columns


def same(rows: range | list[int], columns: range | list[int]) -> bool:
    """Whether both are the same examples in the same order."""
    return rows == columns if type(rows) is type(columns) else list(rows) == list(columns)


def take(x: Tensor, dim: int, chosen: range | list[int]) -> Tensor:
    """Those entries along one dimension: a view where they ascend evenly, else a copy."""
    if isinstance(chosen, range) and chosen.step > 0:
        return x[(slice(None),) * dim + (slice(chosen.start, chosen.stop, chosen.step),)]
    return x.index_select(dim, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))


def layer_places(op: str, layers: Sequence[int | str], names: tuple[str, ...]) -> list[int]:
    """Numbers of the layers that are wanted, by number or by name, each from 0 up."""
    check_list(op, "layers", layers)
    found = []
    for wanted in map(_plain, layers):
        if wanted in names:
            found.append(names.index(wanted))
        elif _is_integer(wanted) and -len(names) <= wanted < len(names):
            found.append(int(wanted) % len(names))
        else:
            raise ValueError(
                f"nftk.{op}: layers must be below {len(names)} or among {', '.join(map(repr, names))}, got {wanted!r}"
            )
    return found


def _plain(x: object) -> Any:
    return x.tolist() if isinstance(x, Tensor | np.ndarray | np.generic) else x


def _is_integer(x: object) -> bool:
    return isinstance(x, Integral) and not isinstance(x, bool)


def _wrapped(op: str, place: int, size: int) -> int:
    if not -size <= place < size:
        rule = f"an index must be from {-size} to {size - 1}" if size else "there is nothing to index"
        raise IndexError(f"nftk.{op}: {rule}, got {place}")
    return int(place) % size
