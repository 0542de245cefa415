"""What a constraint is, and how one is named, stored and read back."""

import dataclasses
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from nftk._checks import check_tensor

_BY_NAME: dict[str, type["Constraint"]] = {}


@runtime_checkable
class Projection(Protocol):
    """Anything that can move Omega onto a set."""

    def project_(self, omega: Tensor) -> Tensor:
        """Move omega onto the set, in place, and return it."""
        ...


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A closed set of matrices Omega ``(d, L)``; subclasses say which, and how to project onto it."""

    name: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        """Register the subclass, so that its name can be given as a string."""
        _BY_NAME[cls.name] = cls

    @torch.no_grad()
    def project_(self, omega: Tensor) -> Tensor:
        """Move Omega to the nearest point of the set, in place.

        Args:
            omega: Weights, shape ``(d, L)``, any floating dtype and device. Written in place, outside autograd.

        Returns:
            ``omega`` itself. The arithmetic runs in float64 where the device has it, and the result is rounded once.

        Raises:
            TypeError: If ``omega`` is not a floating tensor.
            ValueError: If ``omega`` is not a matrix.
        """
        check_tensor(f"constraints.{type(self).__name__}", "omega", omega)
        if omega.ndim != 2:
            shape = list(omega.shape)
            raise ValueError(f"nftk.constraints.{type(self).__name__}: omega must have shape [d, L], got {shape}")
        return self._project_(omega)

    def project(self, omega: Tensor) -> Tensor:
        """Return the nearest point of the set as a new tensor; see :meth:`project_`.

        Args:
            omega: Weights, shape ``(d, L)``.

        Returns:
            A new tensor of the same shape, dtype and device, without gradient.
        """
        return self.project_(omega.detach().clone())

    def config(self) -> dict[str, Any]:
        """Return the name and the settings, ready for JSON; :func:`from_config` reads them back.

        Returns:
            A dictionary with the key ``"name"`` and one key a setting.
        """
        return {"name": self.name, **dataclasses.asdict(self)}

    def _project_(self, omega: Tensor) -> Tensor:
        if omega.numel():
            wide = torch.float32 if omega.device.type == "mps" else torch.float64
            omega.copy_(self._nearest(omega.to(wide)))
        return omega

    def _nearest(self, omega: Tensor) -> Tensor:
        raise NotImplementedError


def resolve(constraint: "str | Projection | None") -> Projection | None:
    """Turn a constraint's name into the constraint with its default settings; objects and None pass through.

    Args:
        constraint: ``"nonnegative"``, ``"simplex"``, ``"l1ball"``, ``"groupsparse"``, ``"none"``, an object
            with ``project_(omega)``, or None for no constraint.

    Returns:
        An object with ``project_``, or None.

    Raises:
        ValueError: If a name is unknown.
        TypeError: If the object has no method ``project_``.
    """
    if constraint is None or constraint == "none":
        return None
    if isinstance(constraint, str):
        if constraint not in _BY_NAME:
            names = ", ".join(map(repr, [*_BY_NAME, "none"]))
            raise ValueError(f"nftk.constraints: constraint must be one of {names}, got {constraint!r}")
        return _BY_NAME[constraint]()
    if isinstance(constraint, type) or not isinstance(constraint, Projection):
        raise TypeError(f"nftk.constraints: constraint must be a name or have a method project_, got {constraint!r}")
    return constraint


def from_config(config: dict[str, Any] | None) -> Constraint | None:
    """Build a constraint from what :meth:`Constraint.config` returned.

    Args:
        config: The dictionary, or None for no constraint.

    Returns:
        The constraint, or None.

    Raises:
        ValueError: If the name or a setting is unknown.
    """
    if config is None:
        return None
    settings = {key: value for key, value in config.items() if key != "name"}
    if config.get("name") not in _BY_NAME:
        names = ", ".join(map(repr, _BY_NAME))
        raise ValueError(f"nftk.constraints: name must be one of {names}, got {config.get('name')!r}")
    try:
        return _BY_NAME[config["name"]](**settings)
    except TypeError:
        raise ValueError(f"nftk.constraints: {config['name']} must have known settings, got {settings}") from None
