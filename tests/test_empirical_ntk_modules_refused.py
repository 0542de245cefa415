"""What empirical_ntk refuses of a module, its inputs and the settings, with the sentence that it says."""

import copy

import pytest
import torch
from module_examples import make, tokens
from torch import nn
from torch.nn import functional as F

import nftk

# of the truth, which goes through torch.vmap
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
ntk = nftk.empirical_ntk


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.first(x)
        return self.last(h - h.mean(0))


class Noisy(Centred):
    def forward(self, x):
        return self.last(F.dropout(self.first(x)))


def refusals():
    table = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.Flatten(), nn.Linear(20, 2))
    conv = nn.Sequential(nn.Conv1d(1, 1, 1), nn.Flatten(), nn.Linear(3, 2))
    broken = copy.deepcopy(conv)
    broken[0].weight.data[:] = torch.nan
    mixed = copy.deepcopy(conv)
    mixed[0].double()
    x, image = torch.randn(4, 3), torch.randn(4, 1, 3)
    return {
        "batch norm": (nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1), conv[1], conv[2]), image, ValueError,
                       "model must be in eval mode, got BatchNorm1d"),
        "dropout": (nn.Sequential(conv, nn.Dropout()), image, ValueError, "model must be in eval mode, got Dropout"),
        "batch": (Centred(), x, ValueError, "model must give an example the same outputs in every batch"),
        "chance": (Noisy(), x, ValueError, "model must draw no random numbers, in eval mode"),
        "table": (table, tokens(4, 5), NotImplementedError, "an embedding must be without max_norm"),
        "nan": (broken, image, ValueError, "parameters of model must be finite, got NaN or infinity in 0.weight"),
        "dtypes": (mixed, image, ValueError, "must share one floating dtype and device"),
        "shape": (nn.Sequential(conv[0]), image, ValueError, r"model must return outputs of shape \[n, d\], here"),
        "nothing": (nn.Sequential(nn.Conv1d(1, 1, 1), nn.Flatten(), nn.LazyLinear(2)), image, ValueError,
                    "model must have seen an input"),
        "parallel": (nn.DataParallel(conv), image, NotImplementedError, "model must be a plain nn.Module"),
        "no parameters": (nn.Sequential(nn.Softmax(1), nn.Flatten()), image, ValueError, "model must have parameters"),
        "numbers": (conv, image.double(), ValueError, "x1 must have the model's dtype, torch.float32"),
        "infinite": (conv, image / 0, ValueError, "x1 must be finite"),
        "list": (conv, [1.0], TypeError, "x1 must be a torch.Tensor, got list"),
        "scalar": (conv, torch.tensor(1.0), ValueError, "x1 must have examples along its first dimension"),
    }  # fmt: skip


@pytest.mark.parametrize("name", refusals())
def test_refused(name):
    model, x, kind, text = refusals()[name]
    with pytest.raises(kind, match=text):
        ntk(model, x, per="module")


def test_settings_refused():
    model, x, _ = make("cnn")
    with pytest.raises(NotImplementedError, match="per='module' and per='model' take any module"):
        ntk(model, x)
    with pytest.raises(ValueError, match="output_fn must go with per='module' or 'model'"):
        ntk(model, x, output_fn=lambda f: f)
    with pytest.raises(TypeError, match="output_fn must be a function"):
        ntk(model, x, per="model", output_fn=1)
    with pytest.raises(NotImplementedError, match="differentiable must go with an NFTKMLP"):
        ntk(model, x, per="model", differentiable=True)
    with pytest.raises(ValueError, match="include_omega must go with an NFTKMLP"):
        ntk(model, x, per="model", include_omega=True)
    with pytest.raises(ValueError, match=r"memory_budget must be at least \d+ bytes"):
        ntk(model, x, per="model", memory_budget=1000)


def test_a_model_that_changes_its_ways_is_refused():
    class Fickle(Centred):
        def forward(self, x):
            h = self.first(x)
            return self.last(h) if len(x) < 4 else self.last(h) + self.last(0 * h) - self.last.bias

    with pytest.raises(NotImplementedError, match="model must use its parameters in the same way for every batch"):
        ntk(Fickle(), torch.randn(6, 3), per="model")
