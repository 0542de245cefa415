"""All measures of a surrogate's faithfulness at once."""

import dataclasses
from typing import Any

import numpy as np

from nftk.surrogate.bootstrap import Measured
from nftk.surrogate.measures import accuracy_difference, check_clip, checked, kendall_tau, r2_after_link, r_miss


@dataclasses.dataclass(frozen=True, repr=False)
class Faithfulness:
    """How near a surrogate is to its network, each measure with its bootstrap interval.

    Attributes:
        tau_correct: Kendall's tau of the correct class's probabilities.
        tau_all: That of every class, averaged.
        accuracy_difference: TAD, the surrogate's test accuracy less the network's.
        r_miss: Errors of both over errors of either.
        r2: Of the logits of the correct class.
        accuracy: The surrogate's test accuracy.
        network_accuracy: The network's.
        agreement: Share of examples that both give the same class.
        saturated: Of the surrogate's probabilities of the correct class, how many were nearer to 0 or 1 than clip.
        network_saturated: Of the network's; float32 gives 1 itself from a logit of 17 on.
        examples: n.
        confidence: Of the intervals.
        resamples: Of the bootstrap.
    """

    tau_correct: Measured
    tau_all: Measured
    accuracy_difference: Measured
    r_miss: Measured
    r2: Measured
    accuracy: float
    network_accuracy: float
    agreement: float
    saturated: int
    network_saturated: int
    examples: int
    confidence: float
    resamples: int

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain numbers, for JSON.

        Returns:
            By name; a measure is a dictionary with value, low, high and undefined.
        """
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: x._asdict() if isinstance(x, Measured) else x for name, x in named.items()}

    def __repr__(self) -> str:
        intervals = f", {100 * self.confidence:g} % intervals" if self.resamples else ""
        lines = [
            f"Faithfulness on {self.examples} examples{intervals}:",
            f"  Kendall tau, correct class   {self.tau_correct}",
            f"  Kendall tau, all classes     {self.tau_all}",
            f"  accuracy difference          {self.accuracy_difference}",
            f"  R_Miss                       {self.r_miss}",
            f"  R^2 of logits                {self.r2}",
            f"  accuracy {self.accuracy:.4f}, the network's {self.network_accuracy:.4f}; same class for "
            f"{self.agreement:.4f} of examples",
        ]
        if self.saturated or self.network_saturated:
            lines.append(f"  saturated, set to the bounds: {self.saturated}, the network's {self.network_saturated}")
        return "\n".join(lines)


def faithfulness(
    network: Any,
    surrogate: Any,
    y: Any,
    *,
    clip: float = 1e-6,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Faithfulness:
    """Measure how near a surrogate is to the network it stands for, on test examples.

    Args:
        network: The network's probabilities ``(n, C)``, or of two classes that of the second ``(n,)``.
        surrogate: The surrogate's (:meth:`nftk.surrogate.KernelSurrogate.predict_proba`).
        y: True classes ``(n,)``, 0 to C - 1.
        clip: As for :func:`nftk.surrogate.r2_after_link`.
        resamples: Of the bootstrap, over examples, the same ones for each measure.
        confidence: Of the intervals.
        seed: Of the resamples.

    Returns:
        All measures; printed, a table.

    Raises:
        ValueError: If shapes do not fit, or entries are no probabilities or classes.
        TypeError: If they are no numbers.

    References:
        Engel et al., Faithful and Efficient Explanations for Neural Networks via Neural Tangent Kernel Surrogate
        Models, ICLR 2024, arXiv 2305.14585, section 4.

    Example:
        >>> from nftk.surrogate import faithfulness
        >>> found = faithfulness([0.1, 0.4, 0.8], [0.2, 0.6, 0.9], [0, 1, 1])
        >>> found.accuracy_difference.value, found.r_miss.value
        (0.3333333333333333, 0.0)
    """
    op = "surrogate.faithfulness"
    p, q, truth = checked(op, network, surrogate, y)
    check_clip(op, clip)
    settings: dict[str, Any] = {"resamples": resamples, "confidence": confidence, "seed": seed}
    rows = np.arange(len(truth))
    saturated = [int(((each < clip) | (each > 1 - clip)).sum()) for each in (q[rows, truth], p[rows, truth])]
    return Faithfulness(
        kendall_tau(p, q, truth, **settings),
        kendall_tau(p, q, truth, classes="all", **settings),
        accuracy_difference(p, q, truth, **settings),
        r_miss(p, q, truth, **settings),
        r2_after_link(p, q, truth, clip=clip, **settings),
        accuracy=float((q.argmax(1) == truth).mean()),
        network_accuracy=float((p.argmax(1) == truth).mean()),
        agreement=float((p.argmax(1) == q.argmax(1)).mean()),
        saturated=saturated[0],
        network_saturated=saturated[1],
        examples=len(truth),
        confidence=confidence,
        resamples=resamples,
    )
