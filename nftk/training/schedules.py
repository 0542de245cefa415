"""Which of theta and Omega an epoch trains."""

import dataclasses

SCHEDULES = ("joint", "alternating")


@dataclasses.dataclass
class Schedule:
    """The state of a schedule between epochs.

    ``joint``: every step updates both. ``alternating``: whole epochs of theta (equation 13) at fixed Omega until
    converged, then of Omega (equation 16) at fixed theta until converged, and so on. A phase has converged when
    the epoch's mean training loss has fallen by no more than ``tolerance`` of its value since the phase's epoch
    before; a phase ends after ``cap`` epochs in any case.
    """

    kind: str
    cap: int
    tolerance: float
    phase: str = "joint"
    epochs_in_phase: int = 0
    last_loss: float | None = None

    def __post_init__(self) -> None:
        if self.kind == "alternating" and self.phase == "joint":
            self.phase = "theta"

    @property
    def trains_theta(self) -> bool:
        """Whether the next epoch updates theta."""
        return self.phase != "omega"

    @property
    def trains_omega(self) -> bool:
        """Whether the next epoch updates Omega."""
        return self.phase != "theta"

    def advance(self, loss: float) -> None:
        """Take note of an epoch's mean training loss, and change phase where it is time."""
        if self.kind == "joint":
            return
        self.epochs_in_phase += 1
        converged = self.last_loss is not None and self.last_loss - loss <= self.tolerance * abs(self.last_loss)
        self.last_loss = loss
        if converged or self.epochs_in_phase >= self.cap:
            self.phase = "omega" if self.phase == "theta" else "theta"
            self.epochs_in_phase, self.last_loss = 0, None
