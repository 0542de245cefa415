"""nngeometry's GramMatrix layer by layer: each readout with the layers below it is a network of its own.

Of a convolutional network: all pairs of outputs at once; or the trace, as the sum over networks of one output.
"""

import os

import _convolutional
import _serve
import torch
from nngeometry.gram import GramMatrix
from nngeometry.layercollection import LayerCollection
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def convolutional(layers, x):
    network = _convolutional.network(layers)
    collection = LayerCollection.from_model(network)
    examples = DataLoader(TensorDataset(torch.from_numpy(x)), batch_size=len(x))

    def gram(outputs):
        def function(*batch):
            return network(batch[0])[:, outputs]

        return GramMatrix(network, examples, function=function, layer_collection=collection).data.detach()

    def trace():
        return sum(gram(slice(c, c + 1))[0, :, 0] for c in range(len(layers[-1][0])))

    return {
        "nngeometry full": (
            lambda: gram(slice(None)),
            lambda: gram(slice(None)).permute(1, 0, 3, 2).unsqueeze(0).numpy(),
        ),
        "nngeometry trace": (trace, lambda: trace().unsqueeze(0).numpy()),
    }


def load(layers, readouts, x):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if not readouts:
        return convolutional(layers, x)
    networks = []
    for i, v in enumerate(readouts):
        parts = []
        for w, b in layers[: i + 1]:
            parts += [_linear(w, b), nn.ReLU()]
        network = nn.Sequential(*parts, _linear(v, None))
        networks.append((network, LayerCollection.from_model(network)))
    # all in one batch: the passes back are then the fewest
    examples = DataLoader(TensorDataset(torch.from_numpy(x)), batch_size=len(x))

    def call():
        return [
            GramMatrix(network, examples, function=lambda *d, f=network: f(d[0]), layer_collection=collection).data
            for network, collection in networks
        ]

    return {"nngeometry": (call, lambda: torch.stack(call()).permute(0, 2, 1, 4, 3).detach().numpy())}


def _linear(w, b):
    made = nn.Linear(w.shape[1], w.shape[0], bias=b is not None)
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(w))
        if b is not None:
            made.bias.copy_(torch.from_numpy(b))
    return made


if __name__ == "__main__":
    _serve.main(load)
