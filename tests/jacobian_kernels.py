"""The tangent kernel by its definition, from Jacobians, and what each reduction leaves of it."""

import torch

from nftk.reference import empirical_ntk_reference

REDUCTIONS = ("full", "trace", "diagonal", "sum_logits")


def jacobian_kernel(module, x1, x2, without=()):
    """Over all parameters of a module, or all but some."""
    everything = {name: p.detach() for name, p in module.named_parameters()}
    chosen = {name: p for name, p in everything.items() if name not in without}

    def function(p, x):
        return torch.func.functional_call(module, {**everything, **p}, (x,))

    return empirical_ntk_reference(function, chosen, x1, x2)


def loop_truth(model, x1, x2, names=None):
    """By autograd through the model itself, for what functional_call does not reach."""
    chosen = [p for name, p in model.named_parameters() if names is None or name in names]
    jacobians = []
    for x in (x1, x2):
        f = model(x)
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(
                value, chosen, retain_graph=True, allow_unused=True, materialize_grads=True)])
            for value in f.flatten()
        ]  # fmt: skip
        jacobians.append(torch.stack(rows).view(*f.shape, -1))
    return torch.einsum("xip,yjp->xyij", *jacobians)


def reduced(full, reduction):
    if reduction == "sum_logits":
        return full.sum((-2, -1))
    diagonal = full.diagonal(dim1=-2, dim2=-1)
    return {"full": full, "diagonal": diagonal, "trace": diagonal.sum(-1)}[reduction]
