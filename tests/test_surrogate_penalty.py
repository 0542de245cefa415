"""Choosing a penalty: what is held out, and where the search ends."""

import pytest
import torch

from nftk.regression import KernelWarning
from nftk.surrogate.penalty import choose, held_out


def test_a_search_goes_on_over_ties():
    """Where errors are few, penalties in turn may have equally many; none of them is worse."""
    losses = {8.0: 1.0, 4.0: 1.0, 2.0: 1.0, 1.0: 1.0, 0.5: 0.0, 0.25: 1.0}
    found = choose("op", list(losses), losses.__getitem__, given=True)
    assert found.penalty == 0.5
    assert found.penalties.tolist() == list(losses)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_of_each_class_an_example_is_left_to_fit(share):
    y = torch.tensor([0] * 10 + [1] + [2] * 2)
    kept, out = held_out(y, share, 0)
    assert y[kept].bincount(minlength=3).min() == 1
    assert y[out].bincount(minlength=3).tolist() == [min(round(share * 10), 9), 0, 1]


def test_a_choice_may_be_cut_short():
    asked = []
    with pytest.warns(KernelWarning, match="ended at 2, where a fit stopped at the bound; smaller ones are not tried"):
        found = choose(
            "op", [4.0, 2.0, 1.0], lambda p: asked.append(p) or p, given=True,
            stopped=lambda: "the bound" if asked[-1] == 2 else "",
        )  # fmt: skip
    assert asked == [4.0, 2.0]
    assert found.penalty == 2
