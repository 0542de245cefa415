"""The data that fit and evaluate take: pairs of tensors, datasets, loaders, streams."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training_problem import assert_same_parameters, make, toy

import nftk


class TestData:
    def test_dataset_and_loader(self):
        x, y = toy()
        for data in (TensorDataset(x, y), DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)):
            a, b = make(), make()
            nftk.fit(a, data, TensorDataset(x, y), epochs=2)
            torch.randn(3)
            history = nftk.fit(b, data, TensorDataset(x, y), epochs=2)
            assert_same_parameters(a, b)
            assert history[-1].test_accuracy is not None

    def test_iterable_dataset(self):
        x, y = toy()

        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(zip(x, y, strict=True))

        for data in (Stream(), DataLoader(Stream(), batch_size=20)):
            assert len(nftk.fit(make(), data, epochs=2)) == 2

    def test_a_tensor_dataset_is_the_pair(self):
        x, y = toy()
        a, b = make(), make()
        nftk.fit(a, (x, y), epochs=2)
        nftk.fit(b, TensorDataset(x, y), epochs=2)
        assert_same_parameters(a, b)

    @pytest.mark.parametrize(
        ("x", "y", "kind", "message"),
        [
            (torch.ones(9, 4), torch.full((9,), 3), ValueError, r"train labels must be in 0\.\.2, got 3"),
            (torch.ones(9, 4).double(), torch.zeros(9).long(), TypeError, "train x must have the model's dtype"),
            (torch.full((9, 4), float("nan")), torch.zeros(9).long(), ValueError, "train x must be finite"),
        ],
    )
    def test_batches_of_a_loader_are_checked_too(self, x, y, kind, message):
        with pytest.raises(kind, match=message):
            nftk.fit(make(), DataLoader(TensorDataset(x, y), batch_size=4))

    def test_batches_of_another_form(self):
        loader = DataLoader([{"x": torch.ones(4), "y": 0}] * 3)
        with pytest.raises(TypeError, match="every batch must be a pair of tensors .* got dict"):
            nftk.fit(make(), loader)
        with pytest.raises(TypeError, match="train must be a pair of tensors .* got tuple of ndarray, ndarray"):
            nftk.fit(make(), tuple(t.numpy() for t in toy()))
        with pytest.raises(TypeError, match="data must be a pair of tensors .* got list of tuple"):
            nftk.evaluate(make(), [toy()])

    def test_plain_module(self):
        x, y = toy()
        mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        history = nftk.fit(mlp, (x, y), (x, y), epochs=30, batch_size=10, lr=0.2, schedule="alternating")
        assert history[-1].test_accuracy > 0.9
        assert history[-1].zeros is None
        assert set(history.column("phase")) == {"joint"}

    def test_evaluation_is_in_eval_mode_and_leaves_the_mode(self):
        x, y = toy()
        model = make(dropout=0.5)
        a = nftk.evaluate(model, (x, y))
        assert a == nftk.evaluate(model, TensorDataset(x, y))
        b = nftk.evaluate(model, DataLoader(TensorDataset(x, y), batch_size=31))
        assert (b.accuracy, b.loss) == (a.accuracy, pytest.approx(a.loss, rel=1e-6))
        assert model.training
        model.eval()
        nftk.fit(model, (x, y), epochs=1)
        assert not model.training
