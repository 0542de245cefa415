"""The tangent kernel by its definition, from Jacobians, and what each reduction leaves of it."""

import torch

REDUCTIONS = ("full", "trace", "diagonal", "sum_logits")


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
