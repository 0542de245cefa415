"""What a network of the experiments is made from, and the settings that all rows of a data set share."""

import dataclasses
import hashlib
from typing import Any, Literal

from nftk.constraints import Constraint, NonNegative

# whatever changes what a recipe means goes in here, so that no network of an older meaning is taken for a new one
MEANING = 1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that, with the data, determines a trained network.

    Args:
        data: "mnist" or "imdb".
        depth: Hidden layers.
        width: Of each.
        model: "nftk", or "mlp", the plain network beside it.
        loss: As in fit.
        epochs: As in fit.
        batch_size: As in fit.
        lr: As in fit.
        lr_omega: As in fit.
        weight_decay: As in fit.
        omega_start: A number for all entries, or "uniform" for 1 / L; "xavier": drawn, half of the entries negative.
        omega_form: "projected" as in the paper's equation 16; "held", the same, but entries that start at 0 stay there;
            or "relu" of free weights.
        constraint: Set that Omega is held to.
        l1: Price of an entry of Omega, see nftk.training.ProximalSGD.
        group: Price of a layer.
        seed: Of weights and shuffling.
        train_limit: So many training examples only, the same for every seed; 0 for all.
        test_limit: The same for the test.
        held_out: So many training examples are left out and take the place of the test set; 0 for none.
        after: Recipe of the network that this one goes on from, instead of new weights.
    """

    data: str
    depth: int
    width: int
    model: Literal["nftk", "mlp"] = "nftk"
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    epochs: int = 10
    batch_size: int = 50
    lr: float = 0.02
    lr_omega: float = 0.05
    weight_decay: float = 2e-6
    omega_start: float | Literal["uniform", "xavier"] = "uniform"
    omega_form: Literal["projected", "held", "relu"] = "projected"
    constraint: Constraint = dataclasses.field(default_factory=NonNegative)
    l1: float = 0.0
    group: float = 0.0
    seed: int = 0
    train_limit: int = 0
    test_limit: int = 0
    held_out: int = 0
    after: "Recipe | None" = None

    def name(self) -> str:
        """Name of the folder that holds the network: what a person looks for, and a key of all settings."""
        key = hashlib.sha256(f"{MEANING} {self!r}".encode()).hexdigest()[:10]
        return f"{self.data}-{self.model}-{self.depth}x{self.width}-{self.loss}-seed{self.seed}-{key}"

    def describe(self) -> str:
        """One line for a progress display."""
        parts = [self.data, self.model, f"{self.depth}x{self.width}", self.loss, f"seed {self.seed}"]
        parts += [f"Omega {self.omega_form} from {self.omega_start}"] if self.model == "nftk" else []
        parts += [f"l1 {self.l1:g}"] if self.l1 else []
        parts += [f"group {self.group:g}"] if self.group else []
        parts += [] if self.constraint == NonNegative() else [str(self.constraint)]
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The recipe for a record, ready for JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        after = None if self.after is None else self.after.name()
        return fields | {"constraint": self.constraint.config(), "after": after}
