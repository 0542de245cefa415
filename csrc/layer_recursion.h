// The infinite-width recursion of all layers over the pairs of two sets of examples, on the CPU. nftk/ops/duals.py says
// what a gap and the rows of an example are, and has the same formulas in torch's operations. T, float or double, is what
// is computed in; S that of the gaps and the result, which float may be where T is double.
#pragma once
#include <cstdint>
#include <vector>

#include "vector_width.h"

namespace nftk {

enum class RecursionKind { leaky_relu, erf, sin, gelu, series };

struct RecursionLayer {
  RecursionKind kind;
  int64_t order;  // terms of a series, without the two rests
  double slope;   // of leaky_relu
  double weight_var, bias_var, own_weight, own_bias, readout_var, own_readout;
};

// Numbers that an example has at such a layer.
int64_t recursion_rows(const RecursionLayer& layer);

template <class T, class S> struct LayerRecursion {
  std::vector<RecursionLayer> layers;
  const S* gap;  // (n1, n2); may be one of out's matrices, since each tile is read before it is written
  int64_t gap_stride;
  int64_t n1, n2;
  const T *rows1, *rows2;  // (rows, n1), (rows, n2), contiguous
  S* out;                  // (layers or outputs, n1, n2)
  int64_t out_stride, out_row;
  const double* weights;  // (outputs, layers), or none for every layer's own matrix
  int64_t outputs;
  bool tangent;    // Theta, else the readouts' covariances
  bool symmetric;  // both sets are one: of gap the upper triangle is read, both are written
  int threads;
};

template <class T, class S> void layer_recursion(const LayerRecursion<T, S>& call, VectorWidth width = widest_vectors());

// A Gram matrix of directions into gaps, in place; pairs whose cosine is beyond 1 - near take theirs from the difference,
// or the sum, of the directions u1 (n1, m) and u2 (n2, m). upper: both are one, and nothing below the diagonal counts.
template <class T> struct GapsFromGram {
  T* gram;
  int64_t stride, n1, n2, m;
  const double *u1, *u2;
  double near;
  bool upper;
  int threads;
};

template <class T> void gaps_from_gram(const GapsFromGram<T>& call);

}  // namespace nftk
