"""empirical_ntk of models as others write them: mappings in and out, Hugging Face's and timm's."""

import importlib
import importlib.util

import pytest
import torch
from jacobian_kernels import loop_truth
from kernel_checks import error
from module_examples import tokens
from torch import nn

import nftk
from nftk.reference import empirical_ntk_reference

# of the truth, which goes through torch.vmap
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
ntk = nftk.empirical_ntk


@pytest.fixture(scope="module")
def _torchvision():
    """One for CUDA beside a torch without: its operators do not load, and it only wants to describe two of them."""
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        pass
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.last = nn.Embedding(6, 4), nn.Linear(4, 3)

    def forward(self, ids, mask):
        h = self.tokens(ids) * mask[..., None]
        return {"scores": self.last(h.sum(1)), "hidden": h}


def test_mappings_and_output_fn():
    torch.manual_seed(0)
    model = Named().double()
    x = {"ids": tokens(5, 6), "mask": torch.rand(5, 5, dtype=torch.float64)}
    k = ntk(model, x, {key: value[:2] for key, value in x.items()}, per="model", output_fn=lambda out: out["scores"])
    function = lambda p, i: torch.func.functional_call(model, p, (x["ids"], x["mask"]))["scores"]  # noqa: E731
    whole = empirical_ntk_reference(function, {n: p.detach() for n, p in model.named_parameters()}, None, None)
    assert error(k.blocks[0], whole[:, :2]) < 1e-12
    with pytest.raises(TypeError, match="model must return a tensor, or something with such .logits; output_fn"):
        ntk(model, x, per="model")
    with pytest.raises(ValueError, match=r"output_fn must return outputs of shape \[n, d\], here \[3, d\]"):
        ntk(model, x, per="model", output_fn=lambda out: out["hidden"])
    with pytest.raises(ValueError, match="tensors of x1 must share their first dimension, but"):
        ntk(model, {**x, "mask": x["mask"][:2]}, per="model", output_fn=lambda out: out["scores"])
    with pytest.raises(ValueError, match="x2 must have the entries of x1, ids, mask, got ids"):
        ntk(model, x, {"ids": x["ids"]}, per="model", output_fn=lambda out: out["scores"])


TRANSFORMERS = ("bert", "gpt2", "distilbert", "vit")


def hugging_face(kind):
    import transformers

    common = {"num_labels": 3}
    if kind == "bert":
        config = transformers.BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                                         intermediate_size=12, max_position_embeddings=6, **common)  # fmt: skip
        return transformers.BertForSequenceClassification(config)
    if kind == "distilbert":
        config = transformers.DistilBertConfig(vocab_size=20, dim=8, n_layers=2, n_heads=2, hidden_dim=12,
                                               max_position_embeddings=6, **common)  # fmt: skip
        return transformers.DistilBertForSequenceClassification(config)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=6, pad_token_id=0,
                                         use_cache=False, **common)  # fmt: skip
        return transformers.GPT2ForSequenceClassification(config)
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
                                    image_size=8, patch_size=4, **common)  # fmt: skip
    return transformers.ViTForImageClassification(config)


@pytest.mark.usefixtures("_torchvision")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformers_as_they_come(kind):
    pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    model = hugging_face(kind).double().eval()
    x = {"input_ids": torch.randint(1, 20, (4, 5)), "attention_mask": torch.ones(4, 5, dtype=torch.int64)}
    if kind == "vit":
        x = {"pixel_values": torch.randn(4, 3, 8, 8, dtype=torch.float64)}
    else:
        x["input_ids"][0, 3:], x["attention_mask"][0, 3:] = 0, 0
    k = ntk(model, x, {key: value[1:] for key, value in x.items()}, per="module")
    jacobian = []
    f = model(**x).logits
    for value in f.flatten():
        grads = torch.autograd.grad(
            value, list(model.parameters()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        jacobian.append(torch.cat([g.flatten() for g in grads]))
    jacobian = torch.stack(jacobian).view(*f.shape, -1)
    want = torch.einsum("xip,yjp->xyij", jacobian, jacobian)[:, 1:]
    assert error(k.blocks.sum(0), want) < 1e-10
    # its linear maps have a rule
    plan = nftk.tangent.plan(model, x, per="module")
    assert not [row for row in plan.rows if row.form == "torch.func" and "norm" not in row.module.lower()], plan


@pytest.mark.usefixtures("_torchvision")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_timm_as_it_comes(name):
    if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip("timm is not installed, or torchvision, which it needs")
    import timm

    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2} if "vit" in name else {}
    model = timm.create_model(name, pretrained=False, num_classes=2, **size).double().eval()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    k = ntk(model, x, per="module")
    assert error(k.blocks.sum(0), loop_truth(model, x, x)) < 1e-10
