"""What a training run leaves behind, epoch by epoch."""

import dataclasses
from typing import Any, SupportsIndex, overload


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: Number of the epoch, from 1.
        phase: What was trained: "joint", or "theta" or "omega" in the alternating schedule.
        loss: Mean training loss over the epoch, each batch before its update; penalties are not in it.
        train_accuracy: Share of training examples classified right as the epoch ran, in 0..1; None for regression.
        test_loss: Mean loss on the test data after the epoch; None without test data.
        test_accuracy: The same for the accuracy.
        zeros: Number of entries of Omega that are exactly zero; None for a model without Omega.
        zeros_share: The same as a share of all entries.
        zeros_from_start: Share of those zeros that were zero before training; None where there are none.
        lr: Learning rate of theta in this epoch; None for an optimizer without one.
        lr_omega: The same for Omega; None too for a model without Omega.
        seconds: Time of the epoch, evaluation included.
    """

    epoch: int
    phase: str
    loss: float
    train_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    zeros: int | None
    zeros_share: float | None
    zeros_from_start: float | None
    lr: float | None
    lr_omega: float | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a dictionary, ready for JSON.

        Returns:
            One key an attribute.
        """
        return dataclasses.asdict(self)


class History(list[EpochRecord]):
    """The records of a run in order: ``history[-1].test_accuracy``, ``history.column("loss")``."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> EpochRecord: ...
    @overload
    def __getitem__(self, index: slice) -> "History": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "EpochRecord | History":
        found = super().__getitem__(index)
        return History(found) if isinstance(found, list) else found

    def column(self, name: str) -> list[Any]:
        """Return one attribute over all epochs.

        Args:
            name: An attribute of :class:`EpochRecord`.

        Returns:
            Its values, one an epoch.

        Raises:
            ValueError: If there is no such attribute.
        """
        names = [field.name for field in dataclasses.fields(EpochRecord)]
        if name not in names:
            raise ValueError(f"nftk.History: name must be one of {', '.join(names)}, got {name!r}")
        return [getattr(record, name) for record in self]

    def best(self) -> EpochRecord:
        """Return the record with the highest test accuracy, the first of equals.

        Returns:
            The record.

        Raises:
            ValueError: If no record has a test accuracy.
        """
        tested = [record for record in self if record.test_accuracy is not None]
        if not tested:
            raise ValueError("nftk.History: best() must have epochs with test data, got none")
        return max(tested, key=lambda record: (record.test_accuracy or 0.0, -record.epoch))

    def __repr__(self) -> str:
        if not self:
            return "History of 0 epochs"
        last = self[-1]
        test = "" if last.test_accuracy is None else f", test accuracy {last.test_accuracy:.4f}"
        return f"History of {len(self)} epochs: loss {last.loss:.4g}{test}"
