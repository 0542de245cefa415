"""neural-tangents: each implementation, by readout or all at once with their axis a diagonal, vmapped or not.

Without layers: stax's kernels of infinite width, ten depths, each asked of its own network.
"""

import itertools

import _serve
import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np
from jax._src import source_info_util
from neural_tangents import stax

# its structured derivatives look for them where jax 0.4.30 no longer has them
jax.interpreters.ad.source_info_util = source_info_util
jax.interpreters.ad.config = jax.config


DEPTH = 10


def infinite(x):
    """Compiled together, the ten depths share what they have in common: no way to write the networks is faster."""
    jax.config.update("jax_enable_x64", x.dtype == np.float64)
    x, ways = jnp.asarray(x), {}
    for name, phi in {"relu": stax.Relu, "erf": stax.Erf, "gelu": stax.Gelu}.items():
        layer = [stax.Dense(1, W_std=2**0.5, b_std=None), phi()]
        readout = stax.Dense(1, W_std=1.0, b_std=None)
        kernels = [stax.serial(*layer * depth, readout)[2] for depth in range(1, DEPTH + 1)]

        def each(x, kernels=kernels):
            return [kernel(x, None, "ntk") for kernel in kernels]

        for mapped, function in (("", each), (" compiled", jax.jit(each))):

            def call(function=function, x=x):
                return jax.block_until_ready(function(x))

            ways[f"neural-tangents {name}{mapped}"] = call, lambda call=call: np.stack(call())
    return ways


def load(layers, readouts, x):
    if not layers:
        return infinite(x)
    # weights as its own rules know them, a factor of the product itself: with x @ w.T it is an order slower
    layers, readouts = [(w.T, b) for w, b in layers], [v.T for v in readouts]
    layers, readouts, x = jax.tree_util.tree_map(jnp.asarray, (layers, readouts, x))

    def states(layers, x):
        for w, b in layers:
            x = jax.nn.relu(x @ w + b)
            yield x

    def readout(parameters, x):
        layers, v = parameters
        *_, last = states(layers, x)
        return last @ v

    def stacked(parameters, x):
        layers, readouts = parameters
        return jnp.stack([h @ v for h, v in zip(states(layers, x), readouts, strict=True)], 1)

    ways = {}
    # AUTO compiles the other three to take one of them
    kinds = [kind for kind in nt.NtkImplementation if kind is not nt.NtkImplementation.AUTO]
    for kind, axis in itertools.product(kinds, (None, 0)):
        how = {"trace_axes": (), "vmap_axes": axis, "implementation": kind}
        apart = nt.empirical_ntk_fn(readout, **how)
        together = nt.empirical_ntk_fn(stacked, diagonal_axes=(1,), **how)

        def each(layers, readouts, x, kernel=apart):
            return jnp.stack([kernel(x, None, (layers[: i + 1], v)) for i, v in enumerate(readouts)])

        def at_once(layers, readouts, x, kernel=together):
            return kernel(x, None, (layers, readouts))

        # [L, x, x', i, j], and [x, x', L, i, j]
        for where, function, order in (("", each, (0, 1, 3, 2, 4)), (" stacked", at_once, (2, 0, 3, 1, 4))):
            compiled = jax.jit(function)

            def call(compiled=compiled):
                return jax.block_until_ready(compiled(layers, readouts, x))

            def result(call=call, order=order):
                return np.asarray(call()).transpose(order)

            mapped = "" if axis is None else " vmapped"
            ways[f"neural-tangents {kind.name.lower().replace('_', '-')}{where}{mapped}"] = call, result
    return ways


if __name__ == "__main__":
    _serve.main(load)
