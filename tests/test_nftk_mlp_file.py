"""NFTKMLP in a file: what comes back, what no file can hold, and files that are no such file."""

import pytest
import torch
from nftk_mlp_examples import inputs, make, square

import nftk


class TestFile:
    @pytest.mark.parametrize(
        "keywords",
        [
            {},
            {"activation": ["relu", "tanh", "sin"], "output_bias": True, "constraint": "simplex"},
            {"parameterization": "ntk", "bias_var": [0.0, 0.1, 0.2], "constraint": None, "dropout": 0.2},
            {"bias": False, "dtype": torch.bfloat16, "constraint": nftk.constraints.GroupSparse(max_layers=2)},
        ],
        ids=["defaults", "tanh", "ntk", "bfloat16"],
    )
    def test_round_trip(self, keywords, tmp_path):
        model = make(**keywords).eval()
        model.save(tmp_path / "model.safetensors")
        twin = nftk.NFTKMLP.load(tmp_path / "model.safetensors")
        x = inputs().to(model.omega.dtype)
        assert torch.equal(twin(x), model(x))
        assert twin.constraint == model.constraint
        assert repr(twin) == repr(model)
        assert not twin.training
        assert all(p.requires_grad for p in twin.parameters())
        assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]

    def test_what_no_file_can_hold(self, tmp_path):
        with pytest.raises(ValueError, match=r"activation must be a named one, got a callable"):
            make(activation=square).save(tmp_path / "m")
        own = type("Own", (), {"project_": lambda self, omega: omega})()
        with pytest.raises(ValueError, match="constraint must be one of nftk.constraints"):
            make(constraint=own).save(tmp_path / "m")
        assert not list(tmp_path.iterdir())

    def test_tied_and_parametrized_weights(self, tmp_path):
        model = make((8, 8, 8))
        model.hidden[2].weight = model.hidden[1].weight
        model.save(tmp_path / "tied")
        x = inputs()
        assert torch.equal(nftk.NFTKMLP.load(tmp_path / "tied")(x), model(x))
        torch.nn.utils.parametrizations.weight_norm(model.hidden[0])
        with pytest.raises(ValueError, match="model must have no parameters but its own, got hidden.0.param"):
            model.save(tmp_path / "normed")

    def test_bad_files(self, tmp_path):
        path = tmp_path / "model.safetensors"
        with pytest.raises(ValueError, match="must be a file, got none there"):
            nftk.NFTKMLP.load(path)
        path.write_bytes(b"not a network")
        with pytest.raises(ValueError, match="must be a whole safetensors file, got"):
            nftk.NFTKMLP.load(path)
        make().save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[:-10])
        with pytest.raises(ValueError, match="must be a whole safetensors file, got"):
            nftk.NFTKMLP.load(path)
        from safetensors.torch import save_file

        save_file({"a": torch.ones(1)}, path)
        with pytest.raises(ValueError, match="must be a network that nftk saved, got a header without"):
            nftk.NFTKMLP.load(path)
        path.write_bytes(whole.replace(b'\\"out_features\\": 4', b'\\"out_features\\": 5'))
        with pytest.raises(ValueError, match="must be a network that nftk saved, got .*size mismatch"):
            nftk.NFTKMLP.load(path)
