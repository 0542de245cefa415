"""What the kernels share: finding the layer of a tile, products in the asked precision, activations, last arrivals."""

import triton
import triton.language as tl


@triton.jit
def find_tile(tile, widths: tl.constexpr, BLOCK: tl.constexpr):
    """Layer, first column and width of a tile; the layers' columns are cut into tiles of BLOCK one after the other.

    Returns (layer, column in the layer, the layer's width, the layer's first column among all, its first tile, the
    tile after its last). A tuple cannot be indexed by a number that only the GPU knows, so this walks it: L selects.
    The widths are constants of the compiled kernel: as arguments their sums filled the registers, and spilled.
    """
    layer = 0
    column = 0
    width = 0
    first_column = 0
    first_tile = 0
    after = 0
    next_tile = 0
    next_column = 0
    for j in tl.static_range(len(widths)):
        reached = tile >= next_tile
        tiles = tl.cdiv(widths[j], BLOCK)
        layer = tl.where(reached, j, layer)
        column = tl.where(reached, (tile - next_tile) * BLOCK, column)
        width = tl.where(reached, widths[j], width)
        first_column = tl.where(reached, next_column, first_column)
        first_tile = tl.where(reached, next_tile, first_tile)
        after = tl.where(reached, next_tile + tiles, after)
        next_tile += tiles
        next_column += widths[j]
    return layer, column, width, first_column, first_tile, after


@triton.jit
def tiles_before(layer, widths: tl.constexpr, BLOCK: tl.constexpr):
    """Number of tiles in the layers before one."""
    count = 0
    for j in tl.static_range(len(widths)):
        count += tl.where(j < layer, tl.cdiv(widths[j], BLOCK), 0)
    return count


@triton.jit
def pick(values, index):
    """values[index] for a tuple and a number that only the GPU knows."""
    found = values[0]
    for j in tl.static_range(1, len(values)):
        found = tl.where(index == j, values[j], found)
    return found


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """Acc + a b, summed in float32.

    PRECISION: "ieee" multiplies in float32; "tf32x3" takes three products of TF32 parts; "tf32"; "bf16" and "fp16"
    round the operands first.
    """
    if PRECISION == "bf16":
        acc = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), acc)
    elif PRECISION == "fp16":
        acc = tl.dot(a.to(tl.float16), b.to(tl.float16), acc)
    elif PRECISION == "tf32x3":
        # tensor cores truncate as they add, so no chain of theirs is longer than one tile; the rest is added here
        acc += tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32x3")
    else:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision=PRECISION)
    return acc


@triton.jit
def dot_weighted(g, weight, r, v, acc, WITH_R: tl.constexpr, PRECISION: tl.constexpr):
    """Acc + (g * weight + r) v: what a layer gets by its readout, weight its column of Omega; r only WITH_R."""
    if PRECISION == "fp16":
        # g * weight can be beyond float16 where weight * v, which torch multiplies by, is not
        acc = dot(g, v.to(tl.float32) * weight[:, None], acc, PRECISION)
        if WITH_R:
            acc = dot(r, v, acc, PRECISION)
    else:
        u = g.to(tl.float32) * weight[None, :]
        if WITH_R:
            u += r.to(tl.float32)
        acc = dot(u, v, acc, PRECISION)
    return acc


@triton.jit
def arrived_last(counter, arrivals):
    """Whether this program is the last of those that share a counter; the counter is then 0 again.

    What the program stored before is visible to the last one after this. Nothing waits.
    """
    # every thread's stores must be done before one thread announces them
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel") == arrivals - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def expm1(x):
    """exp(x) - 1, exact to rounding near 0 too: the series to x^8 / 8! below 1/2, where 1 has nothing to cancel."""
    series = 1.0 + x * (1.0 / 8)
    series = 1.0 + x * (1.0 / 7) * series
    series = 1.0 + x * (1.0 / 6) * series
    series = 1.0 + x * (1.0 / 5) * series
    series = 1.0 + x * (1.0 / 4) * series
    series = 1.0 + x * (1.0 / 3) * series
    series = 1.0 + x * (1.0 / 2) * series
    return tl.where(tl.abs(x) < 0.5, x * series, tl.exp(x) - 1.0)


@triton.jit
def activate(g, PHI: tl.constexpr):
    """H = phi(g), in float32."""
    if PHI == "relu":
        # not maximum: NaN must stay NaN
        h = tl.where(g < 0, 0.0, g)
    elif PHI == "leaky_relu":
        h = tl.where(g < 0, 0.01 * g, g)
    elif PHI == "gelu":
        h = 0.5 * g * (1.0 + tl.erf(g * 0.7071067811865476))
    elif PHI == "silu":
        h = g / (1.0 + tl.exp(-g))
    elif PHI == "tanh":
        minus = expm1(-2.0 * tl.abs(g))
        h = tl.where(g < 0, minus, -minus) / (2.0 + minus)
    elif PHI == "erf":
        h = tl.erf(g)
    elif PHI == "elu":
        h = tl.where(g < 0, expm1(g), g)
    elif PHI == "sin":
        h = tl.sin(g)
    else:
        tl.static_assert(PHI == "identity")
        h = g
    return h


@triton.jit
def activation_slope(saved, PHI: tl.constexpr):
    """phi'(g), in float32, from h for relu, leaky_relu, tanh, elu and identity, from g for the others."""
    if PHI == "relu":
        slope = tl.where(saved > 0, 1.0, 0.0)
    elif PHI == "leaky_relu":
        slope = tl.where(saved > 0, 1.0, 0.01)
    elif PHI == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * saved * saved)
        slope = 0.5 * (1.0 + tl.erf(saved * 0.7071067811865476)) + saved * density
    elif PHI == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp(-saved))
        slope = sigmoid * (1.0 + saved * (1.0 - sigmoid))
    elif PHI == "tanh":
        slope = 1.0 - saved * saved
    elif PHI == "erf":
        slope = 1.1283791670955126 * tl.exp(-saved * saved)
    elif PHI == "elu":
        slope = tl.where(saved > 0, 1.0, saved + 1.0)
    elif PHI == "sin":
        slope = tl.cos(saved)
    else:
        tl.static_assert(PHI == "identity")
        slope = tl.full(saved.shape, 1.0, tl.float32)
    return slope
