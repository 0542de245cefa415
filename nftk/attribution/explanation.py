"""explain: one test example's prediction, and the training examples and layers that speak for and against it."""

import dataclasses

import torch
from torch import Tensor

from nftk._checks import check_integer
from nftk.attribution.attribute import Attribution
from nftk.attribution.ranking import Ranked, bottom_k, top_k


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """What a class's output of one test example is made of.

    Attributes:
        class_: The class.
        output: f_c, the sum of all scores and the intercept, which is apart from them here.
        intercept: b_c.
        supporters: Training examples that speak most for the class; fewer than asked for where fewer do.
        opposers: Those that speak most against it.
        supporters_by_layer: Their scores by layer, ``(L, k)``.
        opposers_by_layer: Alike.
        layers_for: Sum of all positive scores, by layer ``(L,)``.
        layers_against: Of all negative ones.
        names: Of the layers.
    """

    class_: int
    output: float
    intercept: float
    supporters: Ranked
    opposers: Ranked
    supporters_by_layer: Tensor
    opposers_by_layer: Tensor
    layers_for: Tensor
    layers_against: Tensor
    names: tuple[str, ...]


def explain(attribution: Attribution, index: int = 0, class_: int | None = None, *, top: int = 5) -> Explanation:
    """Find the training examples and the layers that a prediction rests on.

    Args:
        attribution: Scores of some test examples.
        index: Which of them.
        class_: A class; None: the one that the surrogate gives the example.
        top: How many training examples for and against.

    Returns:
        The explanation.

    Raises:
        ValueError: If there is no such test example or class, or top is below 1.
        TypeError: If a number is no integer.
    """
    op = "attribution.explain"
    n_test, n_train = attribution.kernels.shape[1:]
    if check_integer(op, "index", index, 0) >= n_test:
        raise ValueError(f"nftk.{op}: index must be below {n_test}, the number of test examples, got {index}")
    top = min(check_integer(op, "top", top, 1), n_train)
    # a share of the intercept says nothing of an example, but may turn its sign
    row = dataclasses.replace(
        attribution,
        kernels=attribution.kernels[:, index : index + 1],
        outputs=attribution.outputs[index : index + 1],
        intercept=attribution.intercept + n_train * attribution.share,
        share=torch.zeros_like(attribution.share),
    )
    chosen = int(row.predicted) if class_ is None else class_
    layers, scores = row.by_layer(chosen)[:, 0], row.scores(chosen)[0]
    supporters, opposers = top_k(scores, top), bottom_k(scores, top)
    kept = int((supporters.scores > 0).sum()), int((opposers.scores < 0).sum())
    supporters, opposers = (
        Ranked(*(x[:n] for x in side)) for side, n in zip((supporters, opposers), kept, strict=True)
    )
    supports, opposes = row.layer_totals(chosen)
    return Explanation(
        class_=chosen,
        output=float(row.outputs[0, chosen]),
        intercept=float(row.intercept[chosen]),
        supporters=supporters,
        opposers=opposers,
        supporters_by_layer=layers[:, supporters.examples],
        opposers_by_layer=layers[:, opposers.examples],
        layers_for=torch.squeeze(supports, 1),
        layers_against=torch.squeeze(opposes, 1),
        names=attribution.names,
    )
